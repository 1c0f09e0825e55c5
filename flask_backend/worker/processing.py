"""One job of a worker: decode it, run its task, settle it, and inform the host and the signals."""

from __future__ import annotations

import time
from collections.abc import Callable

from flask import Flask

from flask_backend import signals
from flask_backend.broker.batches import HEADER
from flask_backend.config import Settings
from flask_backend.current import CurrentJob, job_being_run
from flask_backend.errors import BrokerError, MessageDecodeError
from flask_backend.message import is_expired
from flask_backend.outcome import Ending
from flask_backend.registry import Handlers
from flask_backend.retry import DiscardJob, Retry
from flask_backend.system.loggers import get_logger
from flask_backend.tracing import Processing, tracers, watched

from . import wording
from .batches import finish
from .checkpoints import Sweeper, drop_cursor, has_cursor, is_left, save_newest, without_group
from .execution import Call, Runner, read_call
from .heartbeat import Heartbeat, WorkerLease
from .host import Host
from .limiting import Limiter, Token
from .link import RESERVE_S
from .options import WorkerOptions
from .outcomes import Attempt, Outcome, announce, announce_expiry, announce_failure
from .settlement import StoryWriter, bury_undecodable, log_expiry, settle_failure
from .time_limit import TimeLimit
from .waits import Waits

logger = get_logger("flask_backend.worker")

# In the first 100 ms of a batch, the deletion of a job waits for that of the next one, since a write takes most of the
# CPU of a short job. The system sends it after 200 ms at the latest, well within the shortest TTR of one second.
SHORT_BATCH_S = 0.1


class Processor:
    """Processes the jobs of one queue, one at a time. ``is_holding`` is true while it has one.

    ``leave_if_forked`` ends a process that a task has forked; it takes the exception that the task raised there.
    """

    def __init__(  # noqa: PLR0913  # the parts of its worker
        self,
        app: Flask,
        settings: Settings,
        handlers: Handlers,
        host: Host,
        options: WorkerOptions,
        heartbeat: Heartbeat,
        runner: Runner,
        time_limit: TimeLimit,
        leave_if_forked: Callable[[BaseException | None], None],
        limiter: Limiter | None,
    ) -> None:
        self._app = app
        self._queue = handlers.queue
        self._retry = settings.retry
        self._broker = settings.broker
        self._handlers = handlers
        self._host = host
        self._options = options
        self._heartbeat = heartbeat
        self._runner = runner
        self._time_limit = time_limit
        self._leave_if_forked = leave_if_forked
        self._limiter = limiter
        self._waits = Waits(host.count_wait)
        self._loggers: set[str] = set()  # the tasks that logged a line in their last run
        self._sweeper = Sweeper()
        self._stories = StoryWriter(settings.mask)
        self.is_holding = False

    def install(self) -> None:
        """Install the handler of the signal that interrupts a task."""
        self._time_limit.install()

    def process(self, lease: WorkerLease, count_next: Callable[[], int]) -> None:
        """Run a job and settle it; with its deletion reserve ``count_next()`` jobs. Raises :exc:`BrokerError`."""
        self.is_holding = True
        self._host.begin(lease.job.id)
        try:
            try:
                call = read_call(self._handlers, lease.job.body)
            except MessageDecodeError as error:
                self._bury(lease, error)
            else:
                if "expires" not in call.headers or not self._discard_if_expired(lease, call, count_next):
                    if self._limiter is None:
                        self._run_and_settle(lease, call, count_next)
                    else:
                        self._run_limited(self._limiter, lease, call, count_next)
        except BrokerError:  # the job goes back to the broker; any other exception is a death at this job
            if self.is_holding:
                self._end(None)
            raise

    def _end(self, ending: Ending | None) -> None:
        self.is_holding = False
        self._host.end(ending)

    def _bury(self, lease: WorkerLease, error: MessageDecodeError) -> None:
        job = CurrentJob(lease.job.id, self._queue, "", {}, self._retry, lease)
        with watched(Processing(job, self._broker, len(lease.job.body))):
            outcome = bury_undecodable(lease.connection, job, error, self._stories)
            self._end(outcome.ending)
            announce_failure(self._app, job, outcome, error, None)

    def _discard_if_expired(self, lease: WorkerLease, call: Call, count_next: Callable[[], int]) -> bool:
        """Delete a job that must no longer be started; return whether it is one."""
        if not is_expired(call.headers, time.time()):
            return False
        job = CurrentJob(lease.job.id, self._queue, call.label, call.headers, call.handler.retry or self._retry, lease)
        if has_cursor(job, lease.connection):
            return False
        self._host.run(call.label, None)
        log_expiry(job, time.time())
        if signals.task_discarded.receivers:
            job.learn(lease.connection.counters(job.id))  # it cannot be asked for when the job is deleted
        try:
            if HEADER in job.headers:
                self._finish_in_batch(lease, job)
            self._delete(lease, count_next)
        finally:  # after a BrokerError its deletion is retried on the next connection
            self._end(Ending.EXPIRED)
            announce_expiry(self._app, job)
        return True

    def _run_limited(self, limiter: Limiter, lease: WorkerLease, call: Call, count_next: Callable[[], int]) -> None:
        """Wait for a token of the limit, then run the job, unless it has expired or the worker is to stop."""
        token: Token | None = None
        try:
            token = self._take_token(limiter, lease, call)
            if token is None:
                self._end(None)
                if not lease.is_lost:  # the job goes back as the connection closes at the end, uncounted
                    logger.info(wording.WAIT_ENDED, lease.job.id, lease.label, limiter.waits_for)
                return
            self._host.begin(lease.job.id)
            self._host.show_limit(is_waiting=False)
            if "expires" in call.headers and self._discard_if_expired(lease, call, count_next):
                return
            token.spend()
            lease.token = token
            self._run_and_settle(lease, call, count_next)
        finally:
            self._host.show_limit(is_waiting=False)
            if token is not None:
                token.give_back()

    def _take_token(self, limiter: Limiter, lease: WorkerLease, call: Call) -> Token | None:
        lease.label, lease.waits_for = call.label, limiter.waits_for
        lease.started = time.monotonic()
        self._host.run(call.label, None)
        self._heartbeat.hold(lease)
        try:
            return limiter.take(lease, self._heartbeat.is_stopping)
        finally:
            self._heartbeat.let_go()
            lease.waits_for = ""

    def _run_and_settle(self, lease: WorkerLease, call: Call, count_next: Callable[[], int]) -> None:
        retry = call.handler.retry or self._retry
        job = CurrentJob(lease.job.id, self._queue, call.label, call.headers, retry, lease)
        token = job_being_run.set(job)
        try:
            if tracers:
                with watched(Processing(job, self._broker, len(lease.job.body), call.args, call.kwargs)) as processing:
                    self._attempt(lease, call, job, retry, count_next, processing)
            else:
                self._attempt(lease, call, job, retry, count_next, None)
        finally:
            job_being_run.reset(token)
            if job.has_logged is not (job.endpoint in self._loggers):
                self._loggers ^= {job.endpoint}

    def _attempt(  # noqa: PLR0913  # what is known of the job
        self,
        lease: WorkerLease,
        call: Call,
        job: CurrentJob,
        retry: Retry,
        count_next: Callable[[], int],
        processing: Processing | None,
    ) -> None:
        needs_attempt = processing is not None and processing.needs_attempt
        error = self._run(lease, call, job, needs_attempt=needs_attempt)
        try:
            if error is None:
                self._settle_success(lease, job, count_next)
            elif is_left(job, error):
                self._leave(job, time.monotonic() - lease.started)
            else:
                attempt = Attempt(job, call, retry, time.monotonic() - lease.started)
                self._settle_failure(lease, attempt, error)
        finally:
            del error  # as in _run

    def _run(self, lease: WorkerLease, call: Call, job: CurrentJob, *, needs_attempt: bool) -> BaseException | None:
        """Run the task; return the exception that it raised, if any. If need be, ask for the number of the attempt."""
        lease.label = job.endpoint
        lease.started = time.monotonic()
        self._waits.note(lease.connection, lease.job.id, lease.label, call.headers, lease.started)
        if needs_attempt or lease.label in self._loggers:
            _prefetch_attempt(lease, job)  # for its log lines and tracers
        if signals.task_started.receivers:
            self._announce_start(lease, job)
        time_limit_s = call.handler.time_limit_s or self._options.time_limit_s
        if time_limit_s is not None:
            lease.limit_at = lease.started + time_limit_s
            lease.kill_at = lease.limit_at + self._options.kill_grace_s
        self._host.run(lease.label, lease.kill_at)
        self._heartbeat.hold(lease)
        error = self._time_limit.run(self._runner.run, call, lease.limit_at)
        if error is not None:
            error = without_group(error)
        try:
            self._leave_if_forked(error)
            if needs_attempt or signals.task_succeeded.receivers:
                job.attempt_for_logs()  # it cannot be asked for when the job is deleted
            if error is not None:
                save_newest(job)
            self._heartbeat.let_go()
            if lease.token is not None:
                lease.token.give_back()
            return error
        finally:
            del error  # its traceback refers to this frame: a cycle would keep the objects of the task

    def _announce_start(self, lease: WorkerLease, job: CurrentJob) -> None:
        self._host.run(lease.label, None)
        self._heartbeat.hold(lease)
        announce(self._app, signals.task_started, job=job)
        self._heartbeat.let_go()
        lease.started = time.monotonic()

    def _settle_success(self, lease: WorkerLease, job: CurrentJob, count_next: Callable[[], int]) -> None:
        ran_s = time.monotonic() - lease.started if signals.task_succeeded.receivers else 0.0
        try:
            if HEADER in job.headers:
                self._finish_in_batch(lease, job)
            if job.checkpoints and job.checkpoints.is_kept:
                lease.pipeline.delete_and_reserve(lease.job)
                lease.connection.receive_all()
                drop_cursor(job, lease.connection)
                self._sweeper.sweep(lease.connection)
            else:
                self._delete(lease, count_next)
        except BrokerError:
            self._end(Ending.DONE)  # its deletion is retried on the next connection
            announce(self._app, signals.task_succeeded, job=job, ran_s=ran_s)
            raise
        self._end(Ending.DONE)
        announce(self._app, signals.task_succeeded, job=job, ran_s=ran_s)

    def _finish_in_batch(self, lease: WorkerLease, job: CurrentJob) -> None:
        try:
            finish(lease.connection, job)
        except BrokerError:
            lease.pipeline.delete_later(lease.job)
            raise

    def _leave(self, job: CurrentJob, ran_s: float) -> None:
        """Leave the job to the next worker: it goes back, uncounted, as the connection closes at the end."""
        self._end(None)
        logger.info(wording.LEFT, job.id, job.endpoint)
        announce(self._app, signals.task_interrupted, job=job, ran_s=ran_s)

    def _delete(self, lease: WorkerLease, count_next: Callable[[], int]) -> None:
        """Send the job's deletion and the next reserves; their replies are read when the next jobs are needed."""
        is_early = bool(lease.waiting) and time.monotonic() - lease.reserved_at < SHORT_BATCH_S
        lease.pipeline.delete_and_reserve(lease.job, RESERVE_S, count_next(), with_next=is_early)

    def _settle_failure(self, lease: WorkerLease, attempt: Attempt, error: BaseException) -> None:
        outcome = Outcome()
        try:
            outcome = settle_failure(lease.connection, attempt, error, self._stories)
            self._end(outcome.ending)
            if isinstance(outcome.action, DiscardJob):
                drop_cursor(attempt.job, lease.connection)
        finally:  # the task has failed, even if the broker is gone
            announce_failure(self._app, attempt.job, outcome, error, attempt.ran_s)


def _prefetch_attempt(lease: WorkerLease, job: CurrentJob) -> None:
    """Ask for the attempt that the log lines of a job will show; take the answer if it is there already."""
    asked = lease.prefetched_stats = lease.connection.prefetch_stats(lease.job.id)
    if lease.connection.receive() and asked:  # nearly always if the broker shares the core, and without the lock here
        counters = lease.connection.counters_within(lease.job.id, 0.0, asked)
        if counters is not None:
            job.learn(counters)
