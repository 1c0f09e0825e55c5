"""The reserve loop: reserve, execute and settle jobs until a stop is requested."""

from __future__ import annotations

import logging
import os
import random
import select
import signal
import time
from collections import deque
from dataclasses import dataclass

from flask import Flask

from flask_backend.broker.connection import Connection
from flask_backend.broker.pipeline import Pipeline
from flask_backend.broker.wire import ReservedJob
from flask_backend.config import Settings
from flask_backend.current import CurrentJob, job_being_run
from flask_backend.errors import BrokerConnectionError, BrokerError, JobNotFoundError, MessageDecodeError
from flask_backend.message import decode
from flask_backend.outcome import Ending
from flask_backend.registry import Handlers
from flask_backend.system.exits import ExitCode, disown, leave_after
from flask_backend.system.loggers import get_logger
from flask_backend.system.patched import find_patch
from flask_backend.system.streams import flush
from flask_backend.tracebacks import log_failure

from .event_loop import EventLoop, loop_in_use
from .execution import Call, Runner, read_call
from .heartbeat import RECLAIM_EVERY_S, Heartbeat, WorkerLease
from .host import UNBOUNDED_NS, Host
from .settlement import Attempt, bury_undecodable, settle_failure
from .signal_guard import SignalGuard
from .stopping import StopSignals
from .time_limit import TimeLimit

logger = get_logger("flask_backend.worker")

# Reserves are finite, so that a client whose host vanished does not swallow jobs for long, and a frozen server is
# noticed.
RESERVE_S = 20
# The delay before the next attempt to connect: it doubles, with jitter.
RECONNECT_MIN_S = 0.1
RECONNECT_MAX_S = 5.0
# After a restart on its binlog the broker has the jobs in flight ready again, at the head of their queue. Before it
# reserves, each worker gives the others this much time to take back their own jobs.
RECLAIM_PATIENCE_S = 3.0
# A worker due for recycling waits this long for its turn, then works on until its turn comes.
RECYCLE_PATIENCE_S = 5.0


@dataclass(frozen=True, slots=True)
class Limits:
    """How long a task may take, how many jobs a worker reserves at a time, and when it ends by itself.

    It ends after ``max_tasks`` jobs, ``kill_grace_s`` after a task's limit, and ``drain_timeout_s`` after the drain
    began. While its supervisor lives, a supervised worker leaves the last two to it: ``lifeline`` is a descriptor that
    becomes readable when the supervisor is gone.
    """

    drain_timeout_s: float
    time_limit_s: float | None = None  # for tasks without a limit of their own
    kill_grace_s: float = 5.0
    max_tasks: int | None = None
    prefetch: int = 1
    lifeline: int | None = None


class Worker:
    """One worker of one queue, in a process of its own."""

    def __init__(self, app: Flask, settings: Settings, handlers: Handlers, host: Host, limits: Limits) -> None:
        self._settings = settings
        self._handlers = handlers
        self._queue = handlers.queue
        self._host = host
        self._limits = limits
        self._pid = os.getpid()
        self._stop = StopSignals(self._on_signal, self._leave, self._on_hangup)
        self._guard = SignalGuard()
        self._event_loop = EventLoop()
        self._time_limit = TimeLimit(self._event_loop)
        self._heartbeat = Heartbeat(
            host,
            interrupt=self._time_limit.interrupt,
            leave=self._leave,
            connect=self._connect,
            take_over=self._take_over,
            leaves_when_stuck=limits.lifeline is None,
        )
        self._runner = Runner(app, self._handlers, self._event_loop, self._settings.base_url)
        # The timeout for sending a reserve to a broker that does not answer, and again for its reply.
        self._silent_ns = int(2 * self._settings.timeout_s * 1e9)
        self._pipeline: Pipeline | None = None  # of the connection in use
        self._poll: select.poll | None = None  # for that connection
        self._is_holding = False
        self._pending_deletes: list[ReservedJob] = []  # finished while their connection broke
        self._jobs_done = 0
        self._recycle_reported = False  # the host knows that recycling is due
        self._loggers: set[str] = set()  # the tasks that logged a line in their last run

    def run(self) -> int:
        """Work until drained; return the process's exit code."""
        self._stop.install()
        # Otherwise each process that a task forks would print the buffered output of earlier tasks again.
        os.register_at_fork(before=flush, after_in_child=disown)
        self._time_limit.install()
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
        self._host.accept_signals()
        self._guard.begin()
        if self._limits.lifeline is not None:
            self._heartbeat.watch(self._limits.lifeline, self._orphaned)
        self._heartbeat.start()
        loop_in_use.set(self._event_loop)
        try:
            waited = self._run_hooks()
        except BaseException as error:  # a worker cannot work after any exception of a hook, SystemExit included
            self._leave_if_forked(error)
            log_failure(logger, logging.ERROR, "a before_first_task hook of %s failed", self._queue, error=error)
            self._event_loop.close()
            return ExitCode.CONFIG
        self._leave_if_forked(None)
        if reason := find_patch():
            logger.error("a before_first_task hook of %s: %s", self._queue, reason)
            self._event_loop.close()
            return ExitCode.CONFIG
        self._guard.look_after_hooks()
        self._hear_missed_drain()
        if not waited:
            self._host.ready()
        self._serve()
        self._close()
        self._host.leaving()
        self._event_loop.close(self._limits.drain_timeout_s / 2)  # the rest is for threads and exit handlers
        return ExitCode.OK

    def _run_hooks(self) -> bool:
        """Run the hooks, and retry one that needs the broker during an outage; return whether there was an outage.

        A worker that waits for its broker counts as ready: otherwise an outage would end it at its boot deadline.
        """
        backoff = Backoff()
        for hook in self._runner.hooks:
            while not self._stop.requested:
                try:
                    self._runner.run_hook(hook)
                    break
                except BrokerConnectionError as error:
                    self._leave_if_forked(error)
                    if not backoff.is_away:
                        told = "%s: a before_first_task hook needs the broker: %s; trying again"
                        logger.warning(told, self._queue, error)
                        self._host.ready()
                    self._host.live(UNBOUNDED_NS)
                    self._stop.wait(backoff.next(RECONNECT_MAX_S, 0))
                    self._host.live()
        return backoff.is_away

    # -- the loop --------------------------------------------------------------------------------------------

    def _serve(self) -> None:
        backoff = Backoff()
        while not self._stop.requested:
            try:
                # The resolver and the network decide how long this takes: a worker that waits is not stuck.
                self._host.live(UNBOUNDED_NS)
                pipeline = self._connected()
                if backoff.is_away:
                    logger.info("%s: back at Beanstalkd at %s", self._queue, self._settings.address)
                    if pipeline.connection.has_old_jobs(self._queue, backoff.end()):
                        self._stop.wait(RECLAIM_PATIENCE_S)
                self._process_jobs(pipeline)
            except BrokerError as error:
                self._host.live()
                if self._pipeline is not None:
                    self._disconnect(self._pipeline)  # which gives back its job, if any
                if not backoff.is_away:  # one warning for each outage
                    logger.warning("%s: %s; trying again", self._queue, error)
                most_s = RECLAIM_EVERY_S if self._pending_deletes else RECONNECT_MAX_S
                self._stop.wait(backoff.next(most_s, self._jobs_done))

    def _connected(self) -> Pipeline:
        if self._pipeline is None or self._pipeline.connection.fileno() < 0:
            self._use(pipeline := Pipeline(self._connect()))
            return pipeline
        return self._pipeline

    def _connect(self) -> Connection:
        return Connection(self._settings.address, self._settings.timeout_s, watch=self._queue)

    def _use(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline
        self._poll = self._stop.poll_with(pipeline.connection)
        self._host.lend(pipeline.connection.fileno())
        self._delete_finished(pipeline.connection)

    def _take_over(self, lease: WorkerLease, connection: Connection) -> bool:
        """Switch to ``connection`` if it can reserve the running task's job again; return whether it could.

        Runs in a thread of the heartbeat, which keeps the task from using the connection at the same time.
        """
        if not (_has_own_id(lease.job) and connection.reserve_again(lease.job)):
            return False
        self._disconnect(lease.pipeline)
        lease.pipeline = Pipeline(connection)
        self._use(lease.pipeline)
        return True

    def _disconnect(self, pipeline: Pipeline) -> None:
        pipeline.connection.close()
        self._pending_deletes += pipeline.pop_pending_deletes()
        self._pipeline = None

    def _close(self) -> None:
        """Close the connection, after a last attempt to delete the jobs that finished while it broke."""
        if self._pending_deletes:
            try:
                self._connected()
            except BrokerError as error:
                for job in self._pending_deletes:
                    logger.warning("job %d has finished but cannot be deleted, and will run twice: %s", job.id, error)
        if self._pipeline is not None:
            self._pipeline.connection.close()

    def _process_jobs(self, pipeline: Pipeline) -> None:
        """Process jobs until a stop is requested; then give back the reserved jobs that have not begun.

        One write deletes a job and reserves the next. After a failure the next reserve waits until that is settled.
        """
        while not self._stop.requested:
            self._host.live(self._silent_ns)
            if self._wanted() == 0:
                self._ask_to_be_recycled(pipeline.connection)
                continue
            if not pipeline.is_reserving:
                pipeline.reserve(RESERVE_S, self._wanted())
            held = self._receive(pipeline)
            while held and not self._stop.requested:
                self._process(held.popleft(), is_last=not held)
            pipeline = self._pipeline or pipeline  # a new one, if the connection broke and its job was taken back
        pipeline.give_back()

    def _wanted(self) -> int:
        """Return how many jobs to reserve: 0 after ``max_tasks`` jobs, until recycling has been requested."""
        if self._limits.max_tasks is None or self._recycle_reported:
            return self._limits.prefetch
        return min(self._limits.prefetch, self._limits.max_tasks - self._jobs_done)

    def _ask_to_be_recycled(self, connection: Connection) -> None:
        connection.receive_all()
        self._recycle_reported = True
        self._host.recycle_due()
        self._stop.wait(RECYCLE_PATIENCE_S)

    def _receive(self, pipeline: Pipeline) -> deque[WorkerLease]:
        """Wait for the replies in flight; return the jobs that they contain.

        It waits for the socket and the signals together, since a signal does not end a blocking read.
        """
        soon = False
        connection = pipeline.connection
        while connection.is_awaiting:
            is_owed = bool(pipeline.pending_deletes)  # this reply comes at once; the one to the reserve may follow
            soon |= is_owed
            patience_s = self._settings.timeout_s + (0 if is_owed else RESERVE_S)
            if self._stop.wait(patience_s, self._poll, soon=soon):
                connection.receive()
                self._warn_expired(pipeline)
            elif self._stop.requested:
                break
            else:
                raise BrokerConnectionError(f"Beanstalkd at {self._settings.address} does not answer")
        now = time.monotonic()
        held = deque[WorkerLease]()
        for job in pipeline.take_jobs():
            held.append(WorkerLease(self._heartbeat, pipeline, job, now, held))
        return held

    def _warn_expired(self, pipeline: Pipeline) -> None:
        for job in pipeline.pop_expired():
            label = read_call(self._handlers, job.body).label
            logger.warning("job %d (%s) outlived its reservation and may run twice", job.id, label)

    def _process(self, lease: WorkerLease, *, is_last: bool) -> None:
        """Run one of the jobs that were reserved together, and settle it."""
        if lease.is_lost:
            return  # its reservation ended behind a long task: another worker may have it
        self._is_holding = True
        self._jobs_done += 1
        self._host.begin(lease.job.id)
        try:
            self._end(self._run_job(lease, is_last=is_last))
        except BrokerError:  # the job goes back to the broker; any other exception is a death at this job
            if self._is_holding:
                self._end(None)
            raise
        finally:
            self._guard.look_after(lease.label)
            self._hear_missed_drain()

    def _end(self, ending: Ending | None) -> None:
        self._is_holding = False
        self._host.end(ending)

    def _run_job(self, lease: WorkerLease, *, is_last: bool) -> Ending | None:
        try:
            call = read_call(self._handlers, lease.job.body)
        except MessageDecodeError as error:
            return bury_undecodable(lease.connection, self._queue, lease.job, error)
        retry = call.handler.retry or self._settings.retry
        current = CurrentJob(lease.job.id, self._queue, call.label, call.headers, retry, lease)
        self._prepare(lease, call)
        token = job_being_run.set(current)
        self._host.run(lease.label, lease.kill_at)
        self._heartbeat.hold(lease)
        failure = self._time_limit.run(self._runner.run, call, lease.limit_at)
        self._leave_if_forked(failure)
        self._heartbeat.let_go()
        try:
            if failure is None:
                return self._settle_success(lease, is_last=is_last)
            ran_s = time.monotonic() - lease.started
            return settle_failure(lease.connection, Attempt(self._queue, lease.job, call, retry, ran_s), failure)
        finally:
            failure = None  # its traceback refers to this frame: a cycle would keep all objects of the task alive
            job_being_run.reset(token)
            if current.has_logged is not (call.label in self._loggers):
                self._loggers ^= {call.label}

    def _prepare(self, lease: WorkerLease, call: Call) -> None:
        lease.label = call.label
        lease.started = time.monotonic()
        time_limit_s = call.handler.time_limit_s or self._limits.time_limit_s
        if time_limit_s is not None:
            lease.limit_at = lease.started + time_limit_s
            lease.kill_at = lease.limit_at + self._limits.kill_grace_s
        if call.label in self._loggers:
            lease.prefetched_stats = lease.connection.prefetch_stats(lease.job.id)  # for its log lines

    # -- settling --------------------------------------------------------------------------------------------

    def _settle_success(self, lease: WorkerLease, *, is_last: bool) -> Ending:
        """Send the job's deletion and the next reserves; their replies are read when the next jobs are needed."""
        count = self._wanted() if is_last and not self._stop.requested else 0
        try:
            lease.pipeline.delete_and_reserve(lease.job, RESERVE_S, count)
        except BrokerError:
            self._end(Ending.DONE)  # its deletion is retried on the next connection
            raise
        return Ending.DONE

    def _delete_finished(self, connection: Connection) -> None:
        """Delete the jobs whose tasks finished while their connection broke.

        Job ids may restart at 1 with the server, so only a body with an id of its own identifies a job.
        """
        while self._pending_deletes:
            job = self._pending_deletes[0]
            problem = "its message has no id of its own" if not _has_own_id(job) else None
            try:
                if problem is None and connection.peek([job.id]).get(job.id) == job.body:
                    problem = "another worker holds it"
                    connection.delete(job.id)
                    problem = None
            except JobNotFoundError:
                pass  # deleted, or gone with the server
            del self._pending_deletes[0]
            if problem:
                logger.warning("job %d finished while the connection was lost, and may run twice: %s", job.id, problem)

    # -- the ways out ----------------------------------------------------------------------------------------

    def _on_signal(self) -> None:
        """Drain. Only an unsupervised worker enforces the drain timeout itself, and ends at once on a second signal."""
        if self._limits.lifeline is None:
            if self._stop.requested:
                self._leave()
            self._heartbeat.leave_by(time.monotonic() + self._limits.drain_timeout_s)
        self._drain()

    def _on_hangup(self) -> None:
        """Drain, once, if the worker is unsupervised; otherwise its supervisor decides."""
        if self._limits.lifeline is None and not self._stop.requested:
            self._on_signal()

    def _hear_missed_drain(self) -> None:
        """Drain if a hook or a task has consumed the signal for it."""
        if self._host.was_told_to_drain():
            self._drain()

    def _drain(self) -> None:
        self._host.heard_drain()
        self._stop.request()

    def _orphaned(self) -> None:
        """Drain because the supervisor is gone. Runs in the heartbeat's thread."""
        logger.warning("the supervisor is gone: draining")
        self._heartbeat.leave_by(time.monotonic() + self._limits.drain_timeout_s)
        self._drain()

    def _leave(self) -> None:
        """End now: the connection closes with the process, and Beanstalkd gives the job to another worker."""
        if os.getpgrp() == self._pid and self._limits.lifeline is not None:
            os.killpg(self._pid, signal.SIGKILL)  # with all processes that the task has started
        os._exit(ExitCode.GAVE_BACK if self._is_holding else ExitCode.OK)

    def _leave_if_forked(self, error: BaseException | None) -> None:
        """End a forked process that returns from a task or a hook: it must not become a second worker."""
        if os.getpid() != self._pid:
            leave_after(error)


def _has_own_id(job: ReservedJob) -> bool:
    try:
        return bool(decode(job.body).headers.get("id"))
    except MessageDecodeError:
        return False


class Backoff:
    """Delays that double, with jitter, during outages of the broker.

    They go on doubling if the next outage begins within ``RECONNECT_MAX_S`` and no job was done in between: a server
    that accepts and breaks each connection causes as few attempts and log lines as an unreachable one.
    """

    def __init__(self) -> None:
        self.is_away = False
        self._tries = 0
        self._jobs_done = 0
        self._began = 0.0
        self._ended = 0.0

    def end(self) -> float:
        """Record that the broker is back; return how long the outage lasted, in seconds."""
        self.is_away = False
        self._ended = time.monotonic()
        return self._ended - self._began

    def next(self, most_s: float, jobs_done: int) -> float:
        """Return the seconds to wait before the next attempt, at most ``most_s``."""
        now = time.monotonic()
        if not self.is_away:
            self.is_away, self._began = True, now
            if jobs_done != self._jobs_done or now - self._ended > RECONNECT_MAX_S:
                self._tries, self._jobs_done = 0, jobs_done
        delay_s = min(most_s, RECONNECT_MIN_S * 2.0 ** min(self._tries, 16))
        self._tries += 1
        return delay_s * random.uniform(0.5, 1.0)
