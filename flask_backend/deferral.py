"""Calls that wait for the commit of a transaction, and are sent after it."""

from __future__ import annotations

import json
import logging
import math
import shlex
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from flask import Flask

from . import transactions
from .broker.producer import Producer
from .bulk import BulkOutcome
from .config import StandIn
from .errors import BackendError, BrokerConnectionError, BrokerError
from .job import BulkError, DeferredJob, Job, Jobs, JobState, bulk_uid
from .message import decode, expires_at
from .options import Options
from .registry import Handlers
from .signals import send, task_not_sent, task_scheduled
from .system.loggers import get_logger
from .tracebacks import log_failure

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

logger = get_logger("flask_backend.after_commit")

T = TypeVar("T")

NOT_SENT = "%s was not sent after its commit: %s; to send it: %s"
FORGOTTEN = "%s was dropped: its transaction has written and has ended without a commit"
LEFT_OPEN = "%s was dropped: its session was left without a commit, a rollback or close()"


@dataclass(frozen=True, slots=True)
class Target:
    """Where calls go: those of one ``map``, or a single one."""

    app: Flask
    producer: Producer
    queue: str
    options: Options
    endpoint: str | None
    handlers: Handlers | None = field(default=None, compare=False)


class PendingCall:
    """A call, or a message, that waits for a commit; then it is a job, or was dropped."""

    waits_for = "a commit"

    def __init__(self, target: Target, body: bytes, uid: str | None, session: Session | None) -> None:
        self.target = target
        self.body = body
        self.uid = uid
        self.job: Job | None = None
        self.state = JobState.UNSENT
        self.is_waiting = True
        self._session = session

    @property
    def queue(self) -> str:
        return self.target.queue

    @property
    def broker(self) -> str:
        return self.target.producer.uri

    def withdraw(self) -> bool:
        """Stop waiting; return whether it was still waiting."""
        if self._session is None:
            return False
        transactions.withdraw(self._session, self)
        self._end(JobState.DROPPED)
        return True

    def drop(self, *, is_forgotten: bool) -> None:
        self._end(JobState.DROPPED)
        if is_forgotten:
            logger.warning(FORGOTTEN, self, extra=self._facts())

    def sent(self, job_id: int) -> Job:
        producer = self.target.producer
        self.job = Job(self.queue, job_id, self.uid, producer.uri, producer)
        self._end(self.state)
        return self.job

    def finish(self, state: JobState = JobState.DONE) -> None:
        self._end(state)

    def fail(self, error: BaseException) -> None:
        """Log the command that sends it, and send the signal; the transaction is committed."""
        self._end(self.state)
        command = self.command()
        log_failure(logger, logging.ERROR, NOT_SENT, self, error, command, extra=self._facts())
        job = DeferredJob(self)
        send(task_not_sent, self.target.app, job=job, endpoint=self.target.endpoint, error=error, command=command)

    def command(self) -> str:
        """Return the line that sends the call, with what is left of its time to expire."""
        target = self.target
        if target.endpoint is not None:
            message = decode(self.body)
            words = [target.endpoint, json.dumps(message.args, ensure_ascii=False)]
            words += [json.dumps(message.kwargs, ensure_ascii=False)] if message.kwargs else []
            until = expires_at(message.headers)
        elif target.handlers is not None and target.handlers.receiver is not None:
            words, until = [target.handlers.receiver.name, self.body.decode()], None
        else:
            return f"backend.send({self.queue!r}, json.loads({self.body.decode()!r}))"
        words += ["--queue", self.queue]
        options = target.options
        if delay_s := options.resolve(1).delay_s:
            words += ["--delay", str(delay_s)]
        if options.priority is not None:
            words += ["--priority", str(options.priority)]
        if options.ttr is not None:
            words += ["--ttr", f"{options.ttr:g}"]
        if until is not None:
            words += ["--expires", str(max(1, math.ceil(until - time.time())))]
        return shlex.join(["flask-backend", "call", *words, "--yes"])

    def _end(self, state: JobState) -> None:
        self.state = state
        self.is_waiting = False
        self._session = None

    def _facts(self) -> Mapping[str, Any]:
        return {"task": self.target.endpoint, "queue": self.queue}

    def __str__(self) -> str:
        what = f"a call of {self.target.endpoint}" if self.target.endpoint is not None else "a message"
        return f"{what} on {self.queue}" + (f" ({self.uid})" if self.uid else "")

    def __del__(self) -> None:
        if getattr(self, "is_waiting", False):
            logger.warning(LEFT_OPEN, self, extra=self._facts())


def find_session(app: Flask, producer: Producer, options: Options) -> Session | None:
    """Return the session for whose commit a call waits, if any."""
    given = options.after_commit
    if given is False:
        return None
    if given is not None:
        return transactions.session_of(given)
    return transactions.find_written_session(app) if producer.settings.waits_for_commit else None


def defer(target: Target, session: Session, body: bytes, uid: str | None) -> DeferredJob:
    """Let a call wait for the end of the session's transaction."""
    pending = PendingCall(target, body, uid, session)
    transactions.wait_for_end(session, [pending], send_all)
    return DeferredJob(pending)


class DeferredBulkCall:
    """The jobs of many items that wait, for :class:`Jobs` and :exc:`BulkError`."""

    def __init__(self, queue: str, outcome: BulkOutcome, pending: Mapping[int, PendingCall]) -> None:
        self.queue = queue
        self.outcome = outcome
        self.pending = pending

    def job(self, index: int) -> Job | None:
        pending = self.pending.get(index)
        return None if pending is None else DeferredJob(pending)

    def jobs(self) -> Jobs:
        """Return the jobs. Raises :exc:`BulkError` unless all items are accepted."""
        if not self.outcome.is_complete:
            raise BulkError(self)
        return Jobs(self)


def make_calls(
    queue: str, items: Iterable[T], encode: Callable[[int, T], bytes], make: Callable[[int, bytes], PendingCall]
) -> DeferredBulkCall:
    """Make a call of each item that can be encoded; the outcome names the others."""
    outcome = BulkOutcome()
    pending: dict[int, PendingCall] = {}
    for index, item in enumerate(items):
        try:
            body = encode(index, item)
        except BackendError as error:
            outcome.refuse(index, error)
            continue
        pending[index] = make(index, body)
        outcome.accepted.add(index, index)
    return DeferredBulkCall(queue, outcome, pending)


def defer_many(
    target: Target,
    session: Session,
    items: Iterable[T],
    encode: Callable[[int, T], bytes],
    uid_prefix: str | None,
) -> Jobs:
    """Let many calls wait. Raises :exc:`BulkError` if one cannot be encoded; the others wait."""

    def make(index: int, body: bytes) -> PendingCall:
        return PendingCall(target, body, None if uid_prefix is None else bulk_uid(uid_prefix, index), session)

    call = make_calls(target.queue, items, encode, make)
    transactions.wait_for_end(session, list(call.pending.values()), send_all)
    return call.jobs()


class PendingBatch(Protocol):
    """A batch that waits for a commit."""

    @property
    def target(self) -> Target: ...
    @property
    def is_waiting(self) -> bool: ...
    def send(self) -> None: ...
    def fail(self, error: BaseException) -> None: ...
    def finish(self) -> None: ...


def send_all(waiting: Sequence[PendingCall | PendingBatch]) -> None:
    """Send calls whose transaction is committed. An error of the broker is logged, and not raised: the commit is done.

    Another exception, for example of a task in ``sync://`` or a time limit, is raised after the last call.
    """
    raised: BaseException | None = None
    away: dict[Producer, BrokerConnectionError] = {}  # one timeout is enough
    for (target, _), group in groupby(waiting, key=lambda each: (each.target, isinstance(each, PendingCall))):
        calls = list(group)
        try:
            if (known := away.get(target.producer)) is not None:
                _fail(calls, known)
            else:
                _send_group(target, [each for each in calls if isinstance(each, PendingCall)])
                for batch in calls:
                    if not isinstance(batch, PendingCall):
                        batch.send()
        except BaseException as error:
            if target.producer.settings.broker is StandIn.SYNC:
                _finish(calls)
            else:
                _fail(calls, error)
            if isinstance(error, BrokerConnectionError):
                away[target.producer] = error
            if not isinstance(error, BrokerError):
                raised = raised or error
    if raised is not None:
        raise raised


def _finish(calls: Iterable[PendingCall | PendingBatch]) -> None:
    """In ``sync://`` the exception is that of a task, which has run."""
    for pending in calls:
        if pending.is_waiting:
            pending.finish()


def _fail(calls: Iterable[PendingCall | PendingBatch], error: BaseException) -> None:
    for pending in calls:
        if pending.is_waiting:
            pending.fail(error)


def _send_group(target: Target, calls: Sequence[PendingCall]) -> None:
    producer = target.producer
    jobs: list[Job] = []
    if not calls:
        return
    try:
        if len(calls) == 1:
            jobs.append(calls[0].sent(producer.put(target.queue, calls[0].body, target.options)))
            return
        outcome = producer.put_many(target.queue, calls, lambda _, pending: pending.body, target.options)
        for index, pending in enumerate(calls):
            if (job_id := outcome.accepted.find(index)) is not None:
                jobs.append(pending.sent(job_id))
            else:
                pending.fail(outcome.reasons.get(index) or outcome.failure or BrokerError("it was refused"))
        if isinstance(outcome.failure, BrokerConnectionError):
            raise outcome.failure
    finally:
        if jobs and target.endpoint is not None and task_scheduled.receivers:
            send(task_scheduled, target.app, endpoint=target.endpoint, jobs=jobs)
