"""The reserve loop: reserve, execute and settle jobs until a stop is requested."""

from __future__ import annotations

import dataclasses
import logging
import os
import signal
import time
from collections import deque

from flask import Flask

from flask_backend import signals, tracing
from flask_backend.broker.connection import Connection
from flask_backend.broker.pipeline import Pipeline
from flask_backend.config import Settings
from flask_backend.errors import BrokerConnectionError, BrokerError
from flask_backend.registry import Handlers
from flask_backend.system.exits import ExitCode, disown, leave_after
from flask_backend.system.loggers import get_logger
from flask_backend.system.patched import find_patch
from flask_backend.system.streams import flush
from flask_backend.tracebacks import log_failure

from . import wording
from .batches import BatchSweeper
from .event_loop import EventLoop, loop_in_use
from .execution import Runner
from .heartbeat import Heartbeat, WorkerLease
from .host import UNBOUNDED_NS, Host
from .limiting import Limiter
from .link import RECONNECT_MAX_S, RESERVE_S, Backoff, Link
from .options import WorkerOptions
from .outcomes import announce
from .processing import Processor
from .signal_guard import SignalGuard
from .stopping import StopSignals
from .time_limit import TimeLimit

logger = get_logger("flask_backend.worker")

# A worker due for recycling waits this long for its turn, then works on until its turn comes.
RECYCLE_PATIENCE_S = 5.0


class Worker:
    """One worker of one queue, in a process of its own."""

    def __init__(self, app: Flask, settings: Settings, handlers: Handlers, host: Host, options: WorkerOptions) -> None:
        if handlers.limit is not None:  # other jobs must not wait behind the one that waits for a token
            options = dataclasses.replace(options, prefetch=1)
        self._app = app
        self._queue = handlers.queue
        self._host = host
        self._options = options
        self._pid = os.getpid()
        self._stop = StopSignals(self._on_signal, self._leave, self._on_hangup)
        self._guard = SignalGuard()
        self._link = Link(settings, handlers, host, self._stop)
        self._runner = Runner(app, handlers, EventLoop(), settings.base_url)
        time_limit = TimeLimit(self._runner.event_loop)
        self._heartbeat = Heartbeat(
            host,
            interrupt=time_limit.interrupt,
            leave=self._leave,
            connect=self._link.open,
            take_over=self._link.take_over,
            is_stopping=self._is_stopping,
            leaves_when_stuck=options.lifeline is None,
        )
        self._processor = Processor(
            app,
            settings,
            handlers,
            host,
            options,
            self._heartbeat,
            self._runner,
            time_limit,
            self._leave_if_forked,
            Limiter(settings, handlers.limit, host, self._stop) if handlers.limit else None,
        )
        self._batch_sweeper = BatchSweeper()
        self._jobs_done = 0
        self._recycle_reported = False  # the host knows that recycling is due

    def run(self) -> int:
        """Work until drained; return the process's exit code."""
        self._stop.install()
        # Otherwise each process that a task forks would print the buffered output of earlier tasks again.
        os.register_at_fork(before=flush, after_in_child=disown)
        self._processor.install()
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
        self._host.accept_signals()
        self._guard.begin()
        if self._options.lifeline is not None:
            self._heartbeat.watch(self._options.lifeline, self._orphaned)
        self._heartbeat.start()
        loop_in_use.set(self._runner.event_loop)
        try:
            waited = self._run_hooks()
        except BaseException as error:  # a worker cannot work after any exception of a hook, SystemExit included
            self._leave_if_forked(error)
            log_failure(logger, logging.ERROR, wording.HOOK_FAILED, self._queue, error=error)
            self._runner.event_loop.close()
            return ExitCode.CONFIG
        self._leave_if_forked(None)
        if reason := find_patch():
            logger.error(wording.HOOK_PATCHED, self._queue, reason)
            self._runner.event_loop.close()
            return ExitCode.CONFIG
        self._guard.look_after_hooks()
        self._hear_missed_drain()
        if not waited:
            self._host.ready()
        announce(self._app, signals.worker_started, queue=self._queue)
        self._serve()
        self._link.close()
        self._host.leaving()
        announce(self._app, signals.worker_stopping, queue=self._queue)
        self._runner.event_loop.close(self._options.drain_timeout_s / 2)  # the rest is for threads and exit handlers
        tracing.flush(min(tracing.FLUSH_S, self._options.drain_timeout_s / 4))
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
                        logger.warning(wording.HOOK_WAITS, self._queue, error)
                        self._host.ready()
                        self._host.show_broker(is_away=True)
                    self._host.live(UNBOUNDED_NS)
                    self._stop.wait(backoff.next(RECONNECT_MAX_S, 0))
                    self._host.live()
        if backoff.is_away:
            self._host.show_broker(is_away=False)
        return backoff.is_away

    # -- the loop --------------------------------------------------------------------------------------------

    def _serve(self) -> None:
        while not self._stop.requested:
            try:
                self._process_jobs(self._link.connected())
            except BrokerError as error:
                self._host.live()
                self._link.wait_after(error)

    def _process_jobs(self, pipeline: Pipeline) -> None:
        """Process jobs until a stop is requested; then give back the reserved jobs that have not begun.

        One write deletes a job and reserves the next. After a failure the next reserve waits until that is settled.
        """
        done_before = self._jobs_done
        while not self._stop.requested:
            self._host.live(self._link.silent_ns)
            if self._wanted() == 0:
                self._ask_to_be_recycled(pipeline.connection)
                continue
            if not pipeline.is_reserving:
                if self._batch_sweeper.is_due:
                    self._host.live(UNBOUNDED_NS)  # each of its commands has a timeout
                    self._batch_sweeper.sweep(pipeline.connection)
                    self._host.live(self._link.silent_ns)
                pipeline.reserve(RESERVE_S, self._wanted())
            held = self._receive(pipeline)
            if self._jobs_done > done_before:
                self._link.jobs_settled = self._jobs_done  # all replies to them were sound
            while held and not self._stop.requested:
                self._process(held.popleft(), is_last=not held)
            pipeline = self._link.replacing(pipeline)
        pipeline.give_back()

    def _wanted(self) -> int:
        """Return how many jobs to reserve: 0 after ``max_tasks`` jobs, until recycling has been requested."""
        if self._options.max_tasks is None or self._recycle_reported:
            return self._options.prefetch
        return min(self._options.prefetch, self._options.max_tasks - self._jobs_done)

    def _ask_to_be_recycled(self, connection: Connection) -> None:
        connection.receive_all()
        self._recycle_reported = True
        self._host.recycle_due()
        self._stop.wait(RECYCLE_PATIENCE_S)

    def _receive(self, pipeline: Pipeline) -> deque[WorkerLease]:
        jobs = self._link.receive(pipeline)
        now = time.monotonic()
        held = deque[WorkerLease]()
        for job in jobs:
            held.append(WorkerLease(self._heartbeat, pipeline, job, now, held))
        return held

    def _process(self, lease: WorkerLease, *, is_last: bool) -> None:
        """Process one of the jobs that were reserved together."""
        if lease.is_lost:
            return  # its reservation ended behind a long task: another worker may have it
        self._jobs_done += 1
        try:
            self._processor.process(lease, self._count_next if is_last else _no_more)
        finally:
            self._guard.look_after(lease.label)
            self._hear_missed_drain()

    def _count_next(self) -> int:
        """Return how many jobs to reserve together with the deletion of the last one."""
        return 0 if self._stop.requested or self._batch_sweeper.is_due else self._wanted()

    # -- the ways out ----------------------------------------------------------------------------------------

    def _on_signal(self) -> None:
        """Drain. Only an unsupervised worker enforces the drain timeout itself, and ends at once on a second signal."""
        if self._options.lifeline is None:
            if self._stop.requested:
                self._leave()
            self._heartbeat.leave_by(time.monotonic() + self._options.drain_timeout_s)
        self._drain()

    def _on_hangup(self) -> None:
        """Drain, once, if the worker is unsupervised; otherwise its supervisor decides."""
        if self._options.lifeline is None and not self._stop.requested:
            self._on_signal()

    def _hear_missed_drain(self) -> None:
        """Drain if a hook or a task has consumed the signal for it."""
        if self._host.was_told_to_drain():
            self._drain()

    def _is_stopping(self) -> bool:
        return self._stop.requested or self._host.was_told_to_drain()

    def _drain(self) -> None:
        self._host.heard_drain()
        self._stop.request()

    def _orphaned(self) -> None:
        """Drain because the supervisor is gone. Runs in the heartbeat's thread."""
        logger.warning(wording.ORPHANED)
        self._heartbeat.leave_by(time.monotonic() + self._options.drain_timeout_s)
        self._drain()

    def _leave(self) -> None:
        """End now: the connection closes with the process, and Beanstalkd gives the job to another worker."""
        if os.getpgrp() == self._pid and self._options.lifeline is not None:
            os.killpg(self._pid, signal.SIGKILL)  # with all processes that the task has started
        os._exit(ExitCode.GAVE_BACK if self._processor.is_holding else ExitCode.OK)

    def _leave_if_forked(self, error: BaseException | None) -> None:
        """End a forked process that returns from a task or a hook: it must not become a second worker."""
        if os.getpid() != self._pid:
            leave_after(error)


def _no_more() -> int:
    return 0
