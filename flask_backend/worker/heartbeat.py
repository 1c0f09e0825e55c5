"""The second thread of a worker: everything that must go on while a task occupies the first.

It touches the held jobs, so that a task may take longer than its time to run (TTR). It shows the task in the process
title, notices that the supervisor is gone, and ends the process at the deadline of a drain. It sleeps while the worker
is idle, and looks at a task only after it has run for a while, so that short tasks stay cheap.
"""

from __future__ import annotations

import os
import select
import signal
import threading
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Protocol

from flask_backend.broker.connection import Connection
from flask_backend.broker.pipeline import Pipeline
from flask_backend.broker.stats import JobCounters
from flask_backend.broker.wire import Replies, ReservedJob
from flask_backend.errors import BrokerConnectionError, BrokerError, JobNotFoundError
from flask_backend.system.loggers import get_logger
from flask_backend.system.stacks import dump_stacks

from . import wording
from .host import Host
from .signal_guard import STOPPING, sigmask

logger = get_logger("flask_backend.worker")

# How often the heartbeat looks at a running task, and from which age on. The sum is below one second, the shortest TTR
# that the server accepts.
TICK_S = 0.5
SHORT_TASK_S = 0.25
# Stay awake this long after a task: waking for every short task would cost more.
STAY_AWAKE_S = 5.0
# Touches within one TTR: with this many, a job survives two late ones.
TOUCHES_PER_TTR = 3
# How often a worker that runs or has finished a job tries to get it back after the connection broke.
RECLAIM_EVERY_S = 0.25
# How long a task waits for a touch in flight: longer than the timeout for the broker's reply.
LOCK_PATIENCE_S = 10.0
# All signals except the ones that stop a worker: their handlers do not raise.
_MAY_RAISE = signal.valid_signals().difference(STOPPING)


class KeptToken(Protocol):
    """The part of a limit's token that the heartbeat uses."""

    def touch_if_due(self, now: float, lease: WorkerLease) -> None: ...
    def give_back(self) -> None: ...


@dataclass(eq=False)
class WorkerLease:
    """A job that the worker holds, the connection that reserved it, and the commands that its task may use.

    ``waiting`` are the leases of the jobs that were reserved together with it and run after it. Times are on the
    monotonic clock.
    """

    heartbeat: Heartbeat
    pipeline: Pipeline
    job: ReservedJob
    reserved_at: float
    waiting: Sequence[WorkerLease]
    # Defaults on the class, since a lease is made for every job, and only long tasks use most of these fields.
    label: str = field(init=False, default="")
    started: float = field(init=False, default=0.0)
    limit_at: float | None = field(init=False, default=None)  # when to interrupt the task
    kill_at: float | None = field(init=False, default=None)  # when to kill its process if that did not help
    is_interrupted: bool = field(init=False, default=False)
    touch_every_s: float | None = field(init=False, default=None)
    touch_at: float = field(init=False, default=0.0)
    is_cut: bool = field(init=False, default=False)  # its connection broke; a thread tries to get it back
    is_lost: bool = field(init=False, default=False)
    shown_progress: str = field(init=False, default="")  # for the process title
    prefetched_stats: Replies | None = field(init=False, default=None)  # for the job's counters
    waits_for: str = field(init=False, default="")  # for the process title, before its task starts
    token: KeptToken | None = field(init=False, default=None)  # to be kept as well while its task runs

    @property
    def connection(self) -> Connection:
        return self.pipeline.connection

    def counters(self) -> JobCounters:
        with self.heartbeat.exchange(self) as connection:
            return connection.counters(self.job.id)

    def counters_within(self, wait_s: float) -> JobCounters | None:
        with self.heartbeat.exchange(self, wait_s) as connection:
            return connection.counters_within(self.job.id, wait_s, self.prefetched_stats)

    def touch(self) -> None:
        with self.heartbeat.exchange(self) as connection:
            connection.touch(self.job.id)

    def keeping(self) -> AbstractContextManager[Connection]:
        return self.heartbeat.exchange(self)

    def progress(self, done: int, total: int) -> None:
        self.shown_progress = f" {done}/{total}"
        self.heartbeat.show_progress(done, total)

    def is_leaving(self) -> bool:
        return self.is_lost or self.heartbeat.is_stopping()


class WakeGate:
    """Decides how long the thread sleeps, and wakes it.

    It wakes up within a tick for a while after each job, since waking it for every short task would cost more.
    """

    def __init__(self) -> None:
        self.is_asleep = False  # until :meth:`wake`
        self.holds = self._holds_seen = 0  # how often a job was held
        self._awake_until = float("-inf")
        self._wake_r, self._wake_w = os.pipe()
        os.set_blocking(self._wake_w, False)
        os.set_blocking(self._wake_r, False)

    def fileno(self) -> int:
        return self._wake_r

    def wake(self) -> None:
        with suppress(BlockingIOError):  # full of wake-ups already
            os.write(self._wake_w, b"\0")

    def clear(self) -> None:
        os.read(self._wake_r, 4096)

    def stays_awake(self, now: float, *, holds: bool) -> bool:
        """Whether to look again within a tick: a job is held, or was held lately."""
        if holds or self.holds != self._holds_seen:
            self._holds_seen = self.holds
            self._awake_until = now + STAY_AWAKE_S
        return now < self._awake_until


class Heartbeat:
    """The heartbeat thread: start it after the fork, then call :meth:`hold` and :meth:`let_go` for each job."""

    def __init__(  # noqa: PLR0913  # one parameter for each action on behalf of its owner
        self,
        host: Host,
        *,
        interrupt: Callable[[], None],
        leave: Callable[[], None],
        connect: Callable[[], Connection],
        take_over: Callable[[WorkerLease, Connection], bool],
        is_stopping: Callable[[], bool],
        leaves_when_stuck: bool,
    ) -> None:
        """Set the actions for deadlines and for a broken connection.

        ``interrupt`` breaks off the running task. ``leave`` ends the process at once; with ``leaves_when_stuck`` the
        heartbeat calls it if the interrupt did not help. ``connect`` opens a new connection, and ``take_over`` moves
        the job to it, if that is possible. ``is_stopping`` tells whether the worker is to stop.
        """
        self._host = host
        self.show_progress = host.progress
        self._pid = os.getpid()
        self._interrupt = interrupt
        self._leave = leave
        self._connect = connect
        self._take_over = take_over
        self.is_stopping = is_stopping
        self._leaves_when_stuck = leaves_when_stuck
        self._lease: WorkerLease | None = None
        # Taken for each exchange on the connection while a job is held: a touch never mixes with the worker's commands.
        self._lock = threading.Lock()
        self._gate = WakeGate()
        self._leave_at: float | None = None
        self._watched: dict[int, Callable[[], None]] = {}

    def watch(self, fd: int, on_end: Callable[[], None]) -> None:
        """Call ``on_end``, once, when ``fd`` becomes readable. Call this before :meth:`start`."""
        self._watched[fd] = on_end

    def start(self) -> None:
        threading.Thread(target=self._run, name="flask-backend-heartbeat", daemon=True).start()

    def hold(self, lease: WorkerLease) -> None:
        self._lease = lease
        self._gate.holds += 1
        if self._gate.is_asleep or (lease.limit_at is not None and lease.limit_at - lease.started < TICK_S):
            self._gate.wake()

    def let_go(self) -> None:
        """Stop touching the job. After this returns, no touch is in flight and no other follows."""
        with self._lock:
            self._lease = None

    @contextmanager
    def exchange(self, lease: WorkerLease, wait_s: float = LOCK_PATIENCE_S) -> Generator[Connection]:
        """Yield the connection for a command of the running task, while no touch is in flight.

        Raises :exc:`JobNotFoundError` if the worker no longer holds the job, and :exc:`BrokerConnectionError` in a
        process that the task has forked.
        """
        if os.getpid() != self._pid:
            raise BrokerConnectionError("the job is held by the process that this one was forked from")
        # Block the signals whose handlers raise (our time limit, a task's alarm) while the lock is held.
        mask = sigmask(signal.SIG_BLOCK, _MAY_RAISE)
        try:
            if not self._lock.acquire(timeout=wait_s):
                raise BrokerConnectionError("the connection to Beanstalkd is in use")
            try:
                if self._lease is not lease or lease.is_lost:
                    raise JobNotFoundError(f"this worker no longer holds job {lease.job.id}")
                yield lease.connection
            finally:
                self._lock.release()
        finally:
            sigmask(signal.SIG_SETMASK, mask)

    def leave_by(self, deadline: float) -> None:
        """End the process at ``deadline`` on the monotonic clock, unless it ends by itself before."""
        self._leave_at = deadline
        self._gate.wake()

    def _run(self) -> None:
        poll = select.poll()
        for fd in (self._gate.fileno(), *self._watched):
            poll.register(fd, select.POLLIN)
        shown = False
        while True:
            for fd, _ in poll.poll(self._timeout_ms(shown=shown)):
                if fd == self._gate.fileno():
                    self._gate.clear()
                else:
                    poll.unregister(fd)
                    self._watched[fd]()
            self._gate.is_asleep = False
            if self._leave_at is not None and time.monotonic() >= self._leave_at:
                self._leave()
            shown = self._tick(shown=shown)

    def _timeout_ms(self, *, shown: bool) -> float | None:
        """Return how long to sleep: a tick while a task runs, until the deadline of a drain, or until woken."""
        # Set the flag before reading the lease. The worker does it in reverse order, so one of the two sees the other.
        self._gate.is_asleep = True
        lease = self._lease
        now = time.monotonic()
        timeouts: list[float] = []
        if self._gate.stays_awake(now, holds=lease is not None) or shown:
            self._gate.is_asleep = False  # it looks again within a tick, which is soon enough
            timeouts.append(TICK_S)
        if lease is not None and lease.limit_at is not None and not lease.is_interrupted:
            timeouts.append(max(0.0, lease.limit_at - now))
        if self._leave_at is not None:
            timeouts.append(max(0.0, self._leave_at - now))
        return min(timeouts) * 1000 + 1 if timeouts else None

    def _tick(self, *, shown: bool) -> bool:
        """Look at the running task; return whether the process title shows one."""
        lease = self._lease
        now = time.monotonic()
        if lease is not None and now - lease.reserved_at >= SHORT_TASK_S:
            for waiting in list(lease.waiting):
                self._touch_if_due(waiting, lease, now)
        if lease is not None and lease.limit_at is not None and now >= lease.limit_at:
            self._end(lease, now)
            return shown
        if lease is None or now - lease.started < SHORT_TASK_S:
            if shown:
                self._host.show("")
            return False
        self._host.show(f"{lease.waits_for or lease.label} {now - lease.started:.0f}s{lease.shown_progress}")
        # Asked last: the worker lets go of a job before it closes the connection.
        if not lease.is_cut and not lease.is_lost and lease.connection.is_cut and self._lease is lease:
            self._begin_reclaim(lease)
        self._touch_if_due(lease, lease, now)
        if lease.token is not None:
            with self._lock:
                if self._lease is lease:
                    lease.token.touch_if_due(now, lease)
        return True

    def _begin_reclaim(self, lease: WorkerLease) -> None:
        lease.is_cut = True
        for waiting in list(lease.waiting):
            waiting.is_lost = True
        logger.warning(wording.CONNECTION_LOST, lease.job.id, lease.label)
        # In a thread of its own: connecting may take long, and the deadlines must not wait.
        threading.Thread(target=self._reclaim, args=[lease], name="flask-backend-reclaim", daemon=True).start()

    def _reclaim(self, lease: WorkerLease) -> None:
        """Reserve the running task's job again as soon as the broker answers."""
        while self._lease is lease and lease.is_cut:
            with suppress(BrokerError):  # the next try may succeed
                self._try_to_reclaim(lease, self._connect())
            if lease.is_cut:
                time.sleep(RECLAIM_EVERY_S)

    def _try_to_reclaim(self, lease: WorkerLease, connection: Connection) -> None:
        try:
            with self._lock:
                if self._lease is not lease:
                    return
                lease.is_lost = not self._take_over(lease, connection)
                lease.is_cut = False
                lease.touch_at = 0.0
                lease.prefetched_stats = None
        finally:
            if lease.connection is not connection:
                connection.close()
        if lease.is_lost:
            self._warn_lost(lease, "the job is gone, or another worker holds it")
        else:
            logger.info(wording.HELD_AGAIN, lease.job.id, lease.label)

    def _end(self, lease: WorkerLease, now: float) -> None:
        """Interrupt a task at its limit, and end the process if it does not stop in time.

        The last touch leaves it the whole TTR. With a short TTR the process is killed sooner: while it lives, no other
        worker may have the job.
        """
        if self._leaves_when_stuck and lease.kill_at is not None and now >= lease.kill_at:
            logger.error(wording.STUCK, lease.job.id, lease.label)
            dump_stacks()
            self._leave()
        elif not lease.is_interrupted:
            lease.is_interrupted = True
            self._touch(lease, lease, now)
            ttr_s = (lease.touch_every_s or 0.0) * TOUCHES_PER_TTR
            if lease.kill_at is not None and not lease.is_lost and now + ttr_s / 3 < lease.kill_at:
                lease.kill_at = now + ttr_s / 3
                self._host.run(lease.label, lease.kill_at)
            self._interrupt()

    def _touch_if_due(self, lease: WorkerLease, running: WorkerLease, now: float) -> None:
        if now >= lease.touch_at and not lease.is_cut and not lease.is_lost:
            self._touch(lease, running, now)

    def _touch(self, lease: WorkerLease, running: WorkerLease, now: float) -> None:
        """Touch a job, the running one or one that waits behind it, while ``running`` still runs."""
        with self._lock:
            if self._lease is not running:
                return
            try:
                if lease.touch_every_s is None:
                    # Producers choose the TTR, and the RESERVED reply does not contain it.
                    lease.touch_every_s = lease.connection.counters(lease.job.id).ttr_s / TOUCHES_PER_TTR
                lease.connection.touch(lease.job.id)
            except BrokerConnectionError as error:
                if lease is not running:  # a thread gets the running one back
                    lease.is_lost = True
                    self._warn_lost(lease, str(error))
            except BrokerError:
                lease.is_lost = True
                self._warn_lost(lease, "its TTR expired")
        lease.touch_at = now + (lease.touch_every_s or 0.0)

    def _warn_lost(self, lease: WorkerLease, reason: str) -> None:
        goes_on = wording.RUNS_ON if lease is self._lease else ""
        logger.warning(wording.LOST, lease.job.id, lease.label or "prefetched", goes_on, reason)
