"""The reserve loop: reserve, execute, settle, until told to stop."""

from __future__ import annotations

import logging
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType

from flask import Flask

from .broker import Connection, ReservedJob
from .current import CurrentJob, job_being_run
from .ending import Ending
from .errors import (
    BrokerConnectionError,
    BrokerError,
    JobNotFoundError,
    MessageDecodeError,
    TaskTimeout,
)
from .execution import Call, read_call, run_call, run_hooks
from .exits import ExitCode
from .extension import Backend
from .host import Host
from .keeper import Grip, Keeper, Lease
from .message import decode
from .settlement import Attempt, bury_undecodable, settle_failure
from .stopping import StopSignals

logger = logging.getLogger("flask_backend.worker")

# A reserve is finite so that a waiter whose host vanished swallows no jobs for long, and a frozen server is noticed.
RESERVE_S = 20
# How long to wait before the next try to reach the broker: doubling, with jitter.
RECONNECT_MIN_S = 0.1
RECONNECT_MAX_S = 5.0
# A worker that is due for recycling waits this long for its turn, then works on until the turn comes.
RECYCLE_PATIENCE_S = 5.0
# Raises the time limit in the thread that runs the task. Not ALRM, which tasks use for alarms of their own.
INTERRUPT = signal.SIGUSR2


@dataclass(frozen=True, slots=True)
class Limits:
    """How long a task may take, and when a worker ends by itself.

    That is after ``max_tasks`` jobs, ``kill_grace_s`` after a task's limit, and ``drain_timeout_s`` after it was told
    to drain. A supervised worker leaves the last two to its supervisor, as long as that lives: ``lifeline`` is a
    descriptor that becomes readable when it is gone.
    """

    drain_timeout_s: float
    time_limit_s: float | None = None  # of tasks that have none of their own
    kill_grace_s: float = 5.0
    max_tasks: int | None = None
    lifeline: int | None = None


class Worker:
    """One worker of one queue, in a process of its own."""

    def __init__(self, app: Flask, backend: Backend, queue: str, host: Host, limits: Limits) -> None:
        self._app = app
        self._settings = backend.settings_of(app)
        self._handlers = backend.queues[queue]
        self._queue = queue
        self._host = host
        self._limits = limits
        self._pid = os.getpid()
        self._stop = StopSignals(self._on_signal, self._leave)
        self._keeper = Keeper(
            host, interrupt=self._interrupt, leave=self._leave, leaves_when_stuck=limits.lifeline is None
        )
        self._interruptible_from: float | None = None  # while a task runs that may be interrupted: from when on
        self._connection: Connection | None = None
        self._is_holding = False
        self._undeleted: ReservedJob | None = None
        self._jobs_done = 0

    def run(self) -> int:
        """Work until drained; return the process's exit code."""
        self._stop.install()
        signal.signal(INTERRUPT, self._on_interrupt)
        self._host.accept_signals()
        if self._limits.lifeline is not None:
            self._keeper.watch(self._limits.lifeline, self._orphaned)
        self._keeper.start()
        try:
            run_hooks(self._app, self._handlers)
        except BaseException:  # whatever a hook raises, SystemExit too, means that this worker cannot work
            logger.exception("a before_first_task hook of %s failed", self._queue)
            return ExitCode.CONFIG
        self._host.ready()
        self._serve()
        self._close()
        return ExitCode.OK

    # -- the loop --------------------------------------------------------------------------------------------

    def _serve(self) -> None:
        backoff = Backoff()
        while not self._stop.requested:
            self._host.live()
            try:
                connection = self._connected()
                if backoff.tries:
                    logger.info("%s: back at Beanstalkd at %s", self._queue, self._settings.address)
                    backoff = Backoff()
                job = self._reserve(connection)
                if job is not None:
                    self._work(connection, job)
            except BrokerError as error:
                if self._connection is not None:
                    self._connection.close()  # which gives back the job, if it holds one
                delay_s = backoff.next()
                if backoff.tries == 1:  # said once for each outage
                    logger.warning("%s: %s; trying again", self._queue, error)
                self._stop.wait(delay_s)

    def _connected(self) -> Connection:
        if self._connection is None or self._connection.fileno() < 0:
            self._connection = Connection(self._settings, watch=self._queue)
            self._host.lend(self._connection.fileno())
            self._delete_late(self._connection)
        return self._connection

    def _close(self) -> None:
        """Close the connection, after a last try to delete the job that finished when it broke."""
        if self._undeleted is not None:
            try:
                self._connected()
            except BrokerError as error:
                logger.warning(
                    "job %d is finished but cannot be deleted, and will run twice: %s", self._undeleted.id, error
                )
        if self._connection is not None:
            self._connection.close()

    def _reserve(self, connection: Connection) -> ReservedJob | None:
        """Wait for a job; None if none came, or if a stop came first.

        The wait is for the socket and the signals together, since a signal does not end a blocking read. A job that
        arrives as the connection is closed was not looked at, and goes back to its queue untouched.
        """
        connection.send_reserve(RESERVE_S)
        answered = self._stop.wait(RESERVE_S + self._settings.timeout_s, connection)
        if self._stop.requested:
            connection.close()
            return None
        if not answered:
            raise BrokerConnectionError(f"Beanstalkd at {self._settings.address} does not answer")
        return connection.read_reserved()

    def _work(self, connection: Connection, job: ReservedJob) -> None:
        self._is_holding = True
        self._host.begin(job.id)
        ending: Ending | None = None
        try:
            ending = self._execute(connection, job)
        finally:
            self._is_holding = False
            self._host.end(ending)
        self._jobs_done += 1
        if self._jobs_done == self._limits.max_tasks:
            self._host.recycle_due()
            self._stop.wait(RECYCLE_PATIENCE_S)

    def _execute(self, connection: Connection, job: ReservedJob) -> Ending | None:
        try:
            call = read_call(self._handlers, job.body)
        except MessageDecodeError as error:
            return bury_undecodable(connection, self._queue, job, error)
        retry = call.retry or self._settings.retry
        time_limit_s = call.time_limit_s or self._limits.time_limit_s
        lease = Lease(connection, job, call.label, time.monotonic())
        if time_limit_s is not None:
            lease.limit_at = lease.started + time_limit_s
            lease.kill_at = lease.limit_at + self._limits.kill_grace_s
        current = CurrentJob(
            id=job.id,
            queue=self._queue,
            endpoint=call.label,
            headers=call.headers,
            retry=retry,
            hold=Grip(self._keeper, lease),
        )
        token = job_being_run.set(current)
        self._host.run(call.label, lease.kill_at)
        self._keeper.hold(lease)
        try:
            failure = self._run(call, lease.limit_at)
        except TaskTimeout as error:  # it came while another error was on its way out
            failure = error
        self._leave_if_forked()
        self._keeper.let_go()
        try:
            if failure is None:
                return self._settle_success(connection, job, call.label)
            ran_s = time.monotonic() - lease.started
            return settle_failure(connection, Attempt(self._queue, job, call, retry, ran_s), failure)
        finally:
            failure = None  # its traceback refers to this frame: a cycle would keep all that the task held
            job_being_run.reset(token)

    def _run(self, call: Call, limit_at: float | None) -> BaseException | None:
        """Run the task; return what it raised."""
        is_done = False
        try:
            self._interruptible_from = limit_at
            run_call(self._app, call)
            is_done = True
            self._interruptible_from = None
        except BaseException as error:  # anything may come out of a task, SystemExit too; it ends in a settled job
            self._interruptible_from = None
            return None if is_done else error  # a time limit that was reached just after the end is none
        return None

    def _interrupt(self) -> None:
        """Have the time limit raised inside the task. Runs in the keeper's thread."""
        signal.pthread_kill(threading.main_thread().ident or 0, INTERRUPT)

    def _on_interrupt(self, _number: int, frame: FrameType | None) -> None:
        if (logs := _caller_of_logging(frame)) is not None:
            _call_back_in(logs, self._raise_timeout)
        else:
            self._raise_timeout()

    def _raise_timeout(self) -> None:
        # The task that was meant may have ended meanwhile.
        if self._interruptible_from is not None and time.monotonic() >= self._interruptible_from:
            self._interruptible_from = None
            raise TaskTimeout("the task has reached its time limit")

    # -- settling --------------------------------------------------------------------------------------------

    def _settle_success(self, connection: Connection, job: ReservedJob, label: str) -> Ending | None:
        try:
            connection.delete(job.id)
        except BrokerConnectionError:
            self._undeleted = job
            raise
        except JobNotFoundError:
            logger.warning("job %d (%s) took longer than it was held for, and may run twice", job.id, label)
            return None
        return Ending.DONE

    def _delete_late(self, connection: Connection) -> None:
        """Delete the job whose task had finished when the connection broke, if it can be known for sure.

        Ids may start again at 1 when the server does, so only a body with an id of its own identifies a job.
        """
        job, self._undeleted = self._undeleted, None
        if job is None:
            return
        try:
            if decode(job.body).headers.get("id") and connection.peek(job.id) == job.body:
                connection.delete(job.id)
                return
        except BrokerConnectionError:
            self._undeleted = job
            raise
        except (MessageDecodeError, JobNotFoundError):
            pass
        logger.warning("job %d finished as the connection broke, and may run twice", job.id)

    # -- the ways out ----------------------------------------------------------------------------------------

    def _on_signal(self) -> None:
        """Drain. Only a worker that nobody supervises watches the time itself, and takes a second signal as leave."""
        if self._limits.lifeline is None:
            if self._stop.requested:
                self._leave()
            self._keeper.leave_by(time.monotonic() + self._limits.drain_timeout_s)
        self._stop.request()

    def _orphaned(self) -> None:
        """Drain, since the supervisor is gone. Runs in the keeper's thread."""
        logger.warning("the supervisor is gone: draining")
        self._keeper.leave_by(time.monotonic() + self._limits.drain_timeout_s)
        self._stop.request()

    def _leave(self) -> None:
        """End now: the connection closes with the process, and Beanstalkd gives the job to another worker."""
        if os.getpgrp() == self._pid and self._limits.lifeline is not None:
            os.killpg(self._pid, signal.SIGKILL)  # with whatever the task has started
        os._exit(ExitCode.GAVE_BACK if self._is_holding else ExitCode.OK)

    def _leave_if_forked(self) -> None:
        if os.getpid() != self._pid:
            os._exit(ExitCode.OK)  # a task forked and its child came back: it must not become a second worker


def _caller_of_logging(frame: FrameType | None) -> FrameType | None:
    """Return what logs a line at this moment, if a line is logged: handlers swallow whatever is raised in them."""
    caller: FrameType | None = None
    while frame is not None:
        if frame.f_globals.get("__name__") == "logging":
            caller = frame.f_back
        frame = frame.f_back
    return caller


def _call_back_in(frame: FrameType, callback: Callable[[], None]) -> None:
    """Call ``callback`` in ``frame``, as soon as what it has called returns to it: what is raised is raised there."""
    previous = sys.gettrace()

    def trace(where: FrameType, _event: str, _argument: object) -> None:
        if where is frame:
            sys.settrace(previous)
            callback()

    frame.f_trace = trace
    sys.settrace(trace)


class Backoff:
    """Delays that double, with jitter, for one outage of the broker."""

    def __init__(self) -> None:
        self.tries = 0

    def next(self) -> float:
        """Return the seconds to wait before the next try."""
        delay_s = min(RECONNECT_MAX_S, RECONNECT_MIN_S * 2.0 ** min(self.tries, 16))
        self.tries += 1
        return delay_s * random.uniform(0.5, 1.0)
