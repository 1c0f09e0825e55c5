"""Running jobs in the caller's thread: ``sync://`` does it at once, a test does it with ``drain()``."""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from contextvars import Context, copy_context
from dataclasses import dataclass
from typing import TypeVar

from flask import Flask

from flask_backend import signals
from flask_backend.broker.batches import HEADER, Outgoing, Sent, When
from flask_backend.broker.stats import JobCounters
from flask_backend.broker.wire import ReservedJob
from flask_backend.bulk import BulkOutcome
from flask_backend.config import Settings
from flask_backend.current import CurrentJob, job_being_run
from flask_backend.errors import MessageDecodeError
from flask_backend.functions import may_be_async
from flask_backend.message import add_header, expires_at, is_expired, scheduled_at
from flask_backend.options import Options
from flask_backend.registry import Handlers
from flask_backend.retry import DiscardJob, Retry
from flask_backend.tracing import Processing, watched
from flask_backend.worker.batches import finish
from flask_backend.worker.checkpoints import drop_cursor, has_cursor, is_left, save_newest, without_group
from flask_backend.worker.event_loop import apart_from_running_loop, loop_in_use, using_loop
from flask_backend.worker.execution import Call, Runner, read_call
from flask_backend.worker.outcomes import Attempt, Outcome, announce, announce_expiry, announce_failure
from flask_backend.worker.settlement import StoryWriter, bury_undecodable, log_expiry, settle_failure

from .memory import MemoryBroker, MemoryProducer

T = TypeVar("T")

_ROUNDED_S = 0.001  # the times in headers are rounded to milliseconds


@dataclass(frozen=True, slots=True)
class InProcessLease:
    """The commands of a running task on its own job."""

    broker: MemoryBroker
    job_id: int
    keeps_cursors: bool = True  # not if each call runs at once

    def counters(self) -> JobCounters:
        return self.broker.counters(self.job_id)

    def counters_within(self, wait_s: float) -> JobCounters:  # noqa: ARG002  # the counters are available at once
        return self.counters()

    def touch(self) -> None:
        self.broker.touch(self.job_id)

    def keeping(self) -> AbstractContextManager[MemoryBroker] | None:
        return nullcontext(self.broker) if self.keeps_cursors else None

    def progress(self, done: int, total: int) -> None:
        pass

    def is_leaving(self) -> bool:
        return self.keeps_cursors and self.broker.interrupts_now()


@dataclass(frozen=True, slots=True)
class InProcessWorker:
    """Runs the jobs of one queue as its worker does, but without time limits.

    As in a worker, a task does not see the caller's context: no request, no app context, no ``g``. If the caller runs
    in an event loop, asynchronous functions run in a separate thread.
    """

    app: Flask
    handlers: Handlers
    broker: MemoryBroker
    settings: Settings
    keeps_cursors: bool = True

    def begin(self) -> None:
        """Run the queue's hooks, once."""
        if self.handlers.queue not in self.broker.begun:
            Context().run(self._run, self.handlers.hooks, Runner.run_hooks)
            self.broker.begun.add(self.handlers.queue)

    def process(self, job: ReservedJob) -> BaseException | None:
        """Run a job and settle it, as a worker does; return the exception that it raised, if any."""
        return Context().run(self._process, job)

    def discard_if_expired(self, job: ReservedJob) -> bool:
        """Delete a job that must no longer be started; return whether it is one."""
        try:
            call = read_call(self.handlers, job.body)
        except MessageDecodeError:
            return False
        at = scheduled_at(call.headers) or self.broker.puts[job.id].at
        if not is_expired(call.headers, at + self.broker.moved_since_put(job.id) + _ROUNDED_S):
            return False
        current = self._current(job, call)
        if has_cursor(current, self.broker):
            return False
        log_expiry(current, time.time())
        current.learn(self.broker.counters(job.id))
        finish(self.broker, current)
        self.broker.delete(job.id)
        with using_loop(self.broker.event_loop):
            announce_expiry(self.app, current)
        return True

    def run(self, job: ReservedJob) -> None:
        """Run a job without settling it; raise its exception."""
        Context().run(self._run_unsettled, job)

    def _process(self, job: ReservedJob) -> BaseException | None:
        loop_in_use.set(self.broker.event_loop)  # for async receivers of signals
        try:
            call = read_call(self.handlers, job.body)
        except MessageDecodeError as undecodable:
            current = self._current(job, None)
            with watched(self._processing(job, current, None)):
                outcome = bury_undecodable(self.broker, current, undecodable, StoryWriter(self.settings.mask))
                announce_failure(self.app, current, outcome, undecodable, None)
            return undecodable
        current = self._current(job, call)
        with watched(self._processing(job, current, call)):
            return self._attempt_and_settle(current, call)

    def _attempt_and_settle(self, current: CurrentJob, call: Call) -> BaseException | None:
        connection = self.broker
        attempt, error = self._attempt(current, call)
        if error is not None and is_left(current, error):
            connection.give_back()
            announce(self.app, signals.task_interrupted, job=current, ran_s=attempt.ran_s)
            return error
        if error is not None:
            save_newest(current)
            outcome = settle_failure(connection, attempt, error, StoryWriter(self.settings.mask))
            if isinstance(outcome.action, DiscardJob):
                drop_cursor(current, connection)
            announce_failure(self.app, current, outcome, error, attempt.ran_s)
            return error
        current.learn(connection.counters(current.id))
        finish(connection, current)
        connection.delete(current.id)
        drop_cursor(current, connection)
        announce(self.app, signals.task_succeeded, job=current, ran_s=attempt.ran_s)
        return None

    def _run_unsettled(self, job: ReservedJob) -> None:
        loop_in_use.set(self.broker.event_loop)
        call = read_call(self.handlers, job.body)
        current = self._current(job, call)
        with watched(self._processing(job, current, call)):
            attempt, error = self._attempt(current, call)
            if error is None:
                announce(self.app, signals.task_succeeded, job=current, ran_s=attempt.ran_s)
            else:
                announce_failure(self.app, current, Outcome(), error, attempt.ran_s)
        if error is not None:
            raise error

    def _processing(self, job: ReservedJob, current: CurrentJob, call: Call | None) -> Processing:
        args, kwargs = (call.args, call.kwargs) if call else (None, None)
        return Processing(current, self.settings.broker, len(job.body), args, kwargs)

    def _attempt(self, current: CurrentJob, call: Call) -> tuple[Attempt, BaseException | None]:
        """Run the call of a job; return the exception that it raised, if any."""
        retry = self._retry_of(call)
        started = time.monotonic()
        try:
            self._call(current, call)
        except BaseException as error:  # a task may raise anything, as in a worker
            return Attempt(current, call, retry, time.monotonic() - started), without_group(error)
        return Attempt(current, call, retry, time.monotonic() - started), None

    def _call(self, current: CurrentJob, call: Call) -> None:
        announce(self.app, signals.task_started, job=current)

        def run(runner: Runner) -> None:
            job_being_run.set(current)
            runner.run(call)

        self._run([call.handler.function], run)

    def _current(self, job: ReservedJob, call: Call | None) -> CurrentJob:
        headers = dict(call.headers) if call else {}
        moved_s = self.broker.moved_since_put(job.id)
        for name, at in (("at", scheduled_at(headers)), ("expires", expires_at(headers))):
            if at is not None:  # shift it by the time that the test has moved since then
                headers[name] = at - moved_s
        return CurrentJob(
            id=job.id,
            queue=self.handlers.queue,
            endpoint=call.label if call else "",
            headers=headers,
            retry=self._retry_of(call),
            lease=InProcessLease(self.broker, job.id, self.keeps_cursors),
        )

    def _retry_of(self, call: Call | None) -> Retry:
        return (call.retry if call else None) or self.settings.retry

    def _run(self, functions: Iterable[Callable[..., object]], run: Callable[[Runner], None]) -> None:
        def run_as_worker() -> None:
            loop_in_use.set(self.broker.event_loop)
            run(Runner(self.app, self.handlers, self.broker.event_loop, self.settings.base_url))

        if any(map(may_be_async, functions)):
            apart_from_running_loop(copy_context().run, run_as_worker)
        else:
            copy_context().run(run_as_worker)


class SyncProducer(MemoryProducer):
    """Runs each job as soon as it is put, regardless of its delay. An exception of the task is raised in the caller.

    The message goes through JSON, as on the wire. Messages to other systems stay in memory and do not run.
    """

    def __init__(self, settings: Settings, find_handlers: Callable[[str], Handlers | None], app: Flask) -> None:
        super().__init__(settings)
        self._find_handlers = find_handlers
        self._app = weakref.ref(app)  # the backend keeps its producers as long as their apps live

    def put(self, queue: str, body: bytes, options: Options) -> int:
        job_id = super().put(queue, body, options)
        self._run(queue, [job_id])
        return job_id

    def put_many(
        self, queue: str, items: Iterable[T], encode: Callable[[int, T], bytes], options: Options
    ) -> BulkOutcome:
        outcome = super().put_many(queue, items, encode, options)
        accepted = outcome.accepted
        self._run(queue, [job_id for index in accepted if (job_id := accepted.find(index)) is not None])
        return outcome

    def send_batch(
        self,
        batch: str,
        when: When,  # noqa: ARG002  # nothing is buried here
        members: Sequence[Outgoing],
        callback: Outgoing,
    ) -> Sent:
        """Run the calls, and then the callback, unless one of them raises."""
        sent = Sent()
        header = {"id": batch}
        for index, call in enumerate([*members, callback]):
            job_id = self.broker.put(call.queue, add_header(call.body, HEADER, header), call.options)
            if index < len(members):
                sent.ids[index] = job_id
            self._run(call.queue, [job_id])
        return sent

    def _run(self, queue: str, job_ids: list[int]) -> None:
        app, handlers, broker = self._app(), self._find_handlers(queue), self.broker
        if app is None or handlers is None:
            return
        worker = InProcessWorker(app, handlers, broker, self.settings, keeps_cursors=False)
        for job_id in job_ids:
            job = broker.reserve_job(job_id)
            if job is None or worker.discard_if_expired(job):  # an earlier call may have cancelled it
                continue
            try:
                worker.begin()
                worker.run(job)
            finally:
                broker.delete(job_id)
