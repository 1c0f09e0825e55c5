"""Batches: calls that are sent together, and a callback that is scheduled when all of them are finished."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable
from contextlib import AbstractContextManager
from types import TracebackType
from typing import TYPE_CHECKING, Any, ParamSpec, Protocol, Self, TypeVar

from flask import Flask

from . import transactions
from .broker.batches import Outgoing, Sent, When
from .broker.producer import Producer
from .bulk import BulkOutcome
from .config import StandIn
from .deferral import (
    FORGOTTEN,
    LEFT_OPEN,
    DeferredBulkCall,
    PendingCall,
    Target,
    find_session,
    logger,
    make_calls,
    send_all,
)
from .errors import BrokerConnectionError, BrokerError, OptionError
from .job import BulkError, DeferredJob, Job, Jobs, JobState, bulk_uid
from .message import new_uid, show_value
from .options import AfterCommit, Options
from .scheduling import Around
from .task import BoundTask, Task
from .tracing import Sending

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

NOT_SENT = "%r was not sent after its commit: %s; the next lines send its calls and its callback, but not as a batch"
SENT_IN_PART = (
    "of %r only %d were sent after its commit: %s; its callback waits for these, the next lines send the others"
)

P = ParamSpec("P")
T = TypeVar("T")


class BatchHost(Protocol):
    """The part of the extension that a batch uses."""

    @property
    def around(self) -> Around | None: ...
    def app_in_use(self) -> Flask: ...
    def producer_of(self, app: Flask) -> Producer: ...
    def sending(
        self, queue: str, endpoint: str | None = None, uid: str | None = None, *, is_batch: bool = False
    ) -> AbstractContextManager[Sending]: ...
    def announce(self, app: Flask, endpoint: str, jobs: Collection[Job]) -> None: ...


class _Member(PendingCall):
    """A call that waits for the end of its batch."""

    waits_for = "the end of its batch"

    def __init__(self, batch: Batch, target: Target, body: bytes, uid: str | None) -> None:
        super().__init__(target, body, uid, None)
        self._batch: Batch | None = batch

    def withdraw(self) -> bool:
        if not self.is_waiting or self._batch is None:
            return False
        self._batch.remove(self)
        self._end(JobState.DROPPED)
        return True

    def __del__(self) -> None:
        """Leave the warning to the batch, which logs it once."""


class Batch:
    """Calls that are sent when the block ends, and a callback: see :meth:`flask_backend.Backend.batch`.

    ``id`` names it in log lines, in ``flask-backend batches``, and as ``current_job.batch`` in its calls and its
    callback.
    """

    def __init__(self, host: BatchHost, when: When, after_commit: AfterCommit | None) -> None:
        if when not in ("done", "ended"):
            raise OptionError(
                f'when is {show_value(when)}; expected "done", when all calls are done, or "ended", when each is done '
                "or buried"
            )
        self.id = new_uid(8)
        self._host = host
        self._when: When = when
        self._options = Options(after_commit=after_commit)
        self._members: list[_Member] = []
        self._callback: _Member | None = None
        self._place: tuple[Flask, Producer] | None = None  # where it is sent, while the block is entered
        self._is_used = False
        self._is_waiting = False  # for a commit

    # -- for the block ---------------------------------------------------------------------------------------

    def on_complete(self, task: Task[P, Any] | BoundTask[P], /, *args: P.args, **kwargs: P.kwargs) -> None:
        """Set the call that is scheduled when all calls of the batch are finished: a task, and its own arguments.

        For options, pass ``task.options(...)``; a delay counts from then. Raises the errors of a call of the task,
        :exc:`RuntimeError` outside of the block, and :exc:`OptionError` for a second callback.
        """
        if self._callback is not None:
            raise OptionError(f"the batch has a callback already: {self._callback.target.endpoint}")
        members, self._members = self._members, []
        try:
            self._checked(task).schedule_in(self._collector(), args, kwargs)
            [callback] = self._members
        finally:
            self._members = members
        if callback.target.options.has_due_time:
            raise OptionError("the delay of a callback counts from its scheduling: pass seconds or a timedelta")
        self._callback = callback

    def add(self, task: Task[P, Any] | BoundTask[P], /, *args: P.args, **kwargs: P.kwargs) -> Job:
        """Add a call: a task, or ``task.options(...)``, and the task's own arguments. Return its job, to be sent.

        Raises the errors of a call of the task, and :exc:`RuntimeError` outside of the block.
        """
        return self._checked(task).schedule_in(self._collector(), args, kwargs)

    def map(self, task: Task[..., Any] | BoundTask[...], /, *iterables: Iterable[Any]) -> Jobs:
        """Add a call for each item, as :meth:`flask_backend.Task.map` schedules them; the items are read at once.

        Raises :exc:`BulkError`, with the outcome of each item, if one is invalid: then none is added. Raises
        :exc:`RuntimeError` outside of the block.
        """
        before = len(self._members)
        try:
            return self._checked(task).schedule_many_in(self._collector(), iterables)
        except BaseException:  # whatever ends it, no item may be added
            self._drop(self._members[before:])
            del self._members[before:]
            raise

    def __len__(self) -> int:
        """Return the number of calls in the batch, without the callback."""
        return len(self._members)

    def __bool__(self) -> bool:
        return True

    def __enter__(self) -> Self:
        if self._is_used:
            raise RuntimeError(f"{self!r} was used already: make another one with backend.batch()")
        app = self._host.app_in_use()
        self._is_used, self._place = True, (app, self._host.producer_of(app))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _error: BaseException | None, _tb: TracebackType | None
    ) -> None:
        place, self._place = self._place, None
        if kind is not None or place is None:
            self._drop(self._members)
            return
        if self._callback is None:
            self._drop(self._members)
            raise OptionError(f"{self!r} has no callback, and was not sent: call batch.on_complete(task, ...)")
        try:
            session = self._find_session(*place)
        except BaseException:  # whatever ends it, no call waits for a batch that is not sent
            self._drop(self._members)
            raise
        if session is not None:
            transactions.wait_for_end(session, [self], send_all)
            self._is_waiting = True
        else:
            self._send_now()

    def __repr__(self) -> str:
        return f"<batch {self.id} of {len(self._members)} calls>"

    # -- for its calls ---------------------------------------------------------------------------------------

    def remove(self, member: _Member) -> None:
        """Take out a call that was cancelled before it was sent."""
        self._members.remove(member)

    def _checked(self, task: Task[P, Any] | BoundTask[P]) -> Task[P, Any] | BoundTask[P]:
        """Raise :exc:`TypeError` unless this is a task: a call of it would have scheduled it at once."""
        if not isinstance(task, Task | BoundTask):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(
                f"a batch takes a task, or task.options(...), and then its arguments; got {show_value(task)}: write "
                'batch.add(hello, "world")'
            )
        if not task.is_of(self._host):
            raise TypeError(f"{task!r} belongs to another Backend than the batch")
        return task

    def _collector(self) -> _Collector:
        if self._place is None:
            raise RuntimeError(f"{self!r} takes calls only in its block: with backend.batch() as batch: ...")
        return _Collector(self, self._host, *self._place, self._members)

    def _find_session(self, app: Flask, producer: Producer) -> Session | None:
        """Return the session for whose commit the batch waits: its own, that of a task's options, or by the setting."""
        if self._options.after_commit is not None:
            return find_session(app, producer, self._options)
        given: list[AfterCommit | None] = [each.target.options.after_commit for each in self._calls]
        sessions = {
            id(session): session
            for each in given
            if each is not None and each is not False and (session := transactions.session_of(each))
        }
        if len(sessions) > 1:
            raise OptionError("the calls of a batch have after_commit with different sessions: they are sent together")
        return next(iter(sessions.values()), None) or find_session(app, producer, self._options)

    @property
    def _calls(self) -> list[_Member]:
        return [*self._members, *([self._callback] if self._callback else [])]

    @staticmethod
    def _drop(members: Iterable[_Member]) -> None:
        for member in members:
            if member.is_waiting:
                member.drop(is_forgotten=False)

    # -- sending ---------------------------------------------------------------------------------------------

    def _send_now(self) -> None:
        try:
            sent = self._put()
        except BaseException:  # whatever ends it, no call waits any longer
            if self.target.producer.settings.broker is StandIn.SYNC:  # the exception of a call, which has run
                self.finish()
            self._drop(self._calls)
            raise
        if sent.failure is not None or len(sent.ids) < len(self._members):
            raise self._error(sent)

    def _put(self) -> Sent:
        """Send the batch, and record the outcome of each call. Raises an exception if the batch was not sent."""
        if self._callback is None:
            raise RuntimeError(f"{self!r} has no callback")
        target = self._callback.target
        members = [_outgoing(each) for each in self._members]
        sent = target.producer.send_batch(self.id, self._when, members, _outgoing(self._callback))
        self._callback.finish()
        scheduled: dict[str, list[Job]] = {}
        for index, member in enumerate(self._members):
            if index in sent.ids:
                scheduled.setdefault(str(member.target.endpoint), []).append(member.sent(sent.ids[index]))
            else:
                member.finish(JobState.UNSENT)
        for endpoint, jobs in scheduled.items():
            self._host.announce(target.app, endpoint, jobs)
        return sent

    def _error(self, sent: Sent) -> BulkError:
        outcome = BulkOutcome(failure=sent.failure)
        for index in range(len(self._members)):
            if index in sent.ids:
                outcome.accepted.add(index, sent.ids[index])
            elif index in sent.unknown:
                outcome.unknown.add(index)
            else:
                outcome.refuse(index, sent.refused.get(index) or BrokerError(f"it was not sent: {sent.failure}"))
        error = BulkError(DeferredBulkCall("a batch", outcome, dict(enumerate(self._members))))
        error.add_note(
            f"The batch {self.id} was sent in part: its callback is scheduled when the accepted calls are finished."
        )
        return error

    # -- as something that waits for a commit ----------------------------------------------------------------

    @property
    def target(self) -> Target:
        if self._callback is None:
            raise RuntimeError(f"{self!r} has no callback")
        return self._callback.target

    @property
    def is_waiting(self) -> bool:
        return self._is_waiting

    def drop(self, *, is_forgotten: bool) -> None:
        self._is_waiting = False
        self._drop(self._calls)
        if is_forgotten:
            logger.warning(FORGOTTEN, self)

    def send(self) -> None:
        """Send the batch, whose transaction is committed. Calls that are not sent are logged."""
        sent = self._put()
        self._is_waiting = False
        if sent.failure is None:
            return
        logger.error(SENT_IN_PART, self, len(sent.ids), sent.failure)
        for index, member in enumerate(self._members):
            if index not in sent.ids:
                member.fail(sent.refused.get(index) or sent.failure)
        if isinstance(sent.failure, BrokerConnectionError):
            raise sent.failure

    def fail(self, error: BaseException) -> None:
        """Log the commands that send the calls, and the callback: without the batch."""
        self._is_waiting = False
        logger.error(NOT_SENT, self, error)
        for call in self._calls:
            call.fail(error)

    def finish(self) -> None:
        self._is_waiting = False
        for call in self._calls:
            if call.is_waiting:
                call.finish()

    def __del__(self) -> None:
        if getattr(self, "_is_waiting", False):
            logger.log(logging.WARNING, LEFT_OPEN, self)


class _Collector:
    """What tasks schedule their calls with, so that they become members of a batch."""

    def __init__(self, batch: Batch, host: BatchHost, app: Flask, producer: Producer, members: list[_Member]) -> None:
        self.around = host.around
        self.sending = host.sending
        self.host = host
        self._batch = batch
        self._app = app
        self._producer = producer
        self._members = members

    def put(self, queue: str, body: bytes, options: Options, uid: str | None, endpoint: str) -> Job:
        return DeferredJob(self._add(self._target(queue, options, endpoint), body, uid))

    def put_many(
        self,
        queue: str,
        items: Iterable[T],
        encode: Callable[[T, str, dict[str, Any]], bytes],
        options: Options,
        endpoint: str,
    ) -> Jobs:
        prefix, target = new_uid(12), self._target(queue, options, endpoint)
        with self.sending(queue, endpoint, is_batch=True) as sending:
            call = make_calls(
                queue,
                items,
                lambda index, item: encode(item, bulk_uid(prefix, index), sending.headers),
                lambda index, body: self._add(target, body, bulk_uid(prefix, index)),
            )
            sending.sent = len(call.pending)
        return call.jobs()

    def _target(self, queue: str, options: Options, endpoint: str) -> Target:
        return Target(self._app, self._producer, queue, options, endpoint)

    def _add(self, target: Target, body: bytes, uid: str | None) -> _Member:
        member = _Member(self._batch, target, body, uid)
        self._members.append(member)
        return member


def _outgoing(call: PendingCall) -> Outgoing:
    target = call.target
    options = target.options.resolve(target.producer.settings.ttr_s)
    return Outgoing(target.queue, str(target.endpoint), call.body, options)
