"""The second thread of a worker: all that must go on while the first is inside a task.

It touches the jobs that are held, so that a task may take longer than its time to run; it shows the task in the
process title; it notices that the supervisor is gone; and it ends the process at the deadline of a drain. It sleeps
while the worker is idle, and looks at a task only once that has run for a while, so that short tasks cost nothing.
"""

from __future__ import annotations

import os
import select
import signal
import threading
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from flask_backend.broker.connection import Connection
from flask_backend.broker.pipeline import Pipeline
from flask_backend.broker.stats import JobCounters
from flask_backend.broker.wire import Replies, ReservedJob
from flask_backend.errors import BrokerConnectionError, BrokerError, JobNotFoundError
from flask_backend.system.loggers import get_logger
from flask_backend.system.stacks import dump_stacks

from .host import Host
from .signal_guard import STOPPING

logger = get_logger("flask_backend.worker")

# How often a running task is looked at, and the age from which it is: together shorter than a TTR of one second, which
# is the server's least.
TICK_S = 0.5
SHORT_TASK_S = 0.25
# It goes on looking for so long when there is no task: to wake it for each of many small ones would cost more.
STAY_AWAKE_S = 5.0
# Touched this many times within its TTR, a job survives two touches that come late.
TOUCHES_PER_TTR = 3
# How often a worker that runs or has finished a job tries to get it back, when the connection has broken.
RECLAIM_EVERY_S = 0.25
# How long a task waits for a touch that is on its way: more than the broker has to answer.
LOCK_PATIENCE_S = 10.0
# All but those that stop a worker, which raise nothing.
_MAY_RAISE = signal.valid_signals().difference(STOPPING)


@dataclass(eq=False)
class WorkerLease:
    """A job that the worker holds, on the connection that reserved it; and what its task can do with it meanwhile.

    ``waiting`` are the leases of jobs that were reserved together with it and come after it. Times are those of the
    monotonic clock.
    """

    heartbeat: Heartbeat
    pipeline: Pipeline
    job: ReservedJob
    reserved_at: float
    waiting: Sequence[WorkerLease]
    # The class has these values until they change: one is made for every job, and most of this is for long tasks only.
    label: str = field(init=False, default="")
    started: float = field(init=False, default=0.0)
    limit_at: float | None = field(init=False, default=None)  # when the task is to be interrupted
    kill_at: float | None = field(init=False, default=None)  # when its process may be killed, if that did not help
    is_interrupted: bool = field(init=False, default=False)
    touch_every_s: float | None = field(init=False, default=None)
    touch_at: float = field(init=False, default=0.0)
    is_cut: bool = field(init=False, default=False)  # its connection broke, and a thread tries to get it back
    is_lost: bool = field(init=False, default=False)
    prefetched_stats: Replies | None = field(init=False, default=None)  # for the job's counters

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


class Heartbeat:
    """Start it after the fork; then tell it of each job with :meth:`hold` and :meth:`let_go`."""

    def __init__(  # noqa: PLR0913  # one parameter for each thing that it does in its owner's name
        self,
        host: Host,
        *,
        interrupt: Callable[[], None],
        leave: Callable[[], None],
        connect: Callable[[], Connection],
        take_over: Callable[[WorkerLease, Connection], bool],
        leaves_when_stuck: bool,
    ) -> None:
        """Take what to do at a deadline, and when the connection breaks.

        ``interrupt`` breaks off the running task; ``leave`` ends the process at once, whatever it is doing, and
        ``leaves_when_stuck`` tells whether that is for us to do if the interrupt did not help. ``connect`` opens a new
        connection, and ``take_over`` has the job held by it, if that is possible.
        """
        self._host = host
        self._pid = os.getpid()
        self._interrupt = interrupt
        self._leave = leave
        self._connect = connect
        self._take_over = take_over
        self._leaves_when_stuck = leaves_when_stuck
        self._lease: WorkerLease | None = None
        # Held for each exchange on the connection while a job is held: a touch never meets the worker's own commands.
        self._lock = threading.Lock()
        self._is_asleep = False  # until it is woken
        self._holds = self._holds_seen = 0  # how often a job was held
        self._awake_until = float("-inf")
        self._leave_at: float | None = None
        self._watched: dict[int, Callable[[], None]] = {}
        self._wake_r, self._wake_w = os.pipe()
        os.set_blocking(self._wake_w, False)
        os.set_blocking(self._wake_r, False)

    def watch(self, fd: int, on_end: Callable[[], None]) -> None:
        """Call ``on_end``, once, when ``fd`` becomes readable. To be said before :meth:`start`."""
        self._watched[fd] = on_end

    def start(self) -> None:
        threading.Thread(target=self._run, name="flask-backend-heartbeat", daemon=True).start()

    def hold(self, lease: WorkerLease) -> None:
        self._lease = lease
        self._holds += 1
        if self._is_asleep or (lease.limit_at is not None and lease.limit_at - lease.started < TICK_S):
            self._wake()

    def let_go(self) -> None:
        """Stop caring for the job; when this returns no touch is on the way and none will come."""
        with self._lock:
            self._lease = None

    @contextmanager
    def exchange(self, lease: WorkerLease, wait_s: float = LOCK_PATIENCE_S) -> Generator[Connection]:
        """Have the connection for a command of the task that runs, while no touch is on the way.

        Raises :exc:`JobNotFoundError` if the task's job is no longer held, and :exc:`BrokerConnectionError` in a
        process that the task has forked.
        """
        if os.getpid() != self._pid:
            raise BrokerConnectionError("the job is held by the process that this one was forked from")
        # What a signal raises, our own time limit or a task's alarm, must not come between the lock and its release.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, _MAY_RAISE)
        try:
            if not self._lock.acquire(timeout=wait_s):
                raise BrokerConnectionError("the connection to Beanstalkd is in use")
            try:
                if self._lease is not lease or lease.is_lost:
                    raise JobNotFoundError(f"job {lease.job.id} is no longer held by this worker")
                yield lease.connection
            finally:
                self._lock.release()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    def leave_by(self, deadline: float) -> None:
        """End the process at ``deadline`` of the monotonic clock, unless it has ended by itself."""
        self._leave_at = deadline
        self._wake()

    def _wake(self) -> None:
        with suppress(BlockingIOError):  # full of wake-ups already
            os.write(self._wake_w, b"\0")

    def _run(self) -> None:
        poll = select.poll()
        for fd in (self._wake_r, *self._watched):
            poll.register(fd, select.POLLIN)
        shown = False
        while True:
            for fd, _ in poll.poll(self._timeout_ms(shown=shown)):
                if fd == self._wake_r:
                    os.read(fd, 4096)
                else:
                    poll.unregister(fd)
                    self._watched[fd]()
            self._is_asleep = False
            if self._leave_at is not None and time.monotonic() >= self._leave_at:
                self._leave()
            shown = self._tick(shown=shown)

    def _timeout_ms(self, *, shown: bool) -> float | None:
        """How long to sleep: a tick while a task runs, until the deadline of a drain, or until woken."""
        # First say so, then look: the worker does it the other way round, and one of us sees the other.
        self._is_asleep = True
        lease = self._lease
        now = time.monotonic()
        if lease is not None or self._holds != self._holds_seen:
            self._holds_seen = self._holds
            self._awake_until = now + STAY_AWAKE_S
        timeouts: list[float] = []
        if now < self._awake_until or shown:
            self._is_asleep = False  # it looks again within a tick, soon enough for whatever comes next
            timeouts.append(TICK_S)
        if lease is not None and lease.limit_at is not None and not lease.is_interrupted:
            timeouts.append(max(0.0, lease.limit_at - now))
        if self._leave_at is not None:
            timeouts.append(max(0.0, self._leave_at - now))
        return min(timeouts) * 1000 + 1 if timeouts else None

    def _tick(self, *, shown: bool) -> bool:
        """Look at the running task; return whether the process title tells of one."""
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
        self._host.show(f"{lease.label} {now - lease.started:.0f}s")
        if not lease.is_cut and not lease.is_lost and lease.connection.is_cut:
            self._begin_reclaim(lease)
        self._touch_if_due(lease, lease, now)
        return True

    def _begin_reclaim(self, lease: WorkerLease) -> None:
        lease.is_cut = True
        for waiting in list(lease.waiting):
            waiting.is_lost = True
        logger.warning(
            "lost the connection to Beanstalkd while job %d (%s) runs: trying to get the job back",
            lease.job.id,
            lease.label,
        )
        # In a thread of its own, for to connect may take long, and deadlines do not wait.
        threading.Thread(target=self._reclaim, args=[lease], name="flask-backend-reclaim", daemon=True).start()

    def _reclaim(self, lease: WorkerLease) -> None:
        """Get the running task's job back, as soon as the broker can be reached."""
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
            self._warn_lost(lease, "it is gone, or another worker has it by now")
        else:
            logger.info("job %d (%s) is held again", lease.job.id, lease.label)

    def _end(self, lease: WorkerLease, now: float) -> None:
        """Interrupt a task at its limit, and give it no more time than it takes to die of that.

        The last touch leaves the whole TTR for it; where that is short, the process is killed sooner: while it lives,
        no other worker may have the job.
        """
        if self._leaves_when_stuck and lease.kill_at is not None and now >= lease.kill_at:
            logger.error("job %d (%s) did not end at its time limit: leaving", lease.job.id, lease.label)
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
        """Touch a job, the running one or one that waits behind it, if that one is still running."""
        with self._lock:
            if self._lease is not running:
                return
            try:
                if lease.touch_every_s is None:
                    # Producers choose the TTR, and RESERVED does not tell it.
                    lease.touch_every_s = lease.connection.counters(lease.job.id).ttr_s / TOUCHES_PER_TTR
                lease.connection.touch(lease.job.id)
            except BrokerConnectionError as error:
                if lease is not running:  # the running one is got back
                    lease.is_lost = True
                    self._warn_lost(lease, str(error))
            except BrokerError:
                lease.is_lost = True
                self._warn_lost(lease, "its time to run was over")
        lease.touch_at = now + (lease.touch_every_s or 0.0)

    def _warn_lost(self, lease: WorkerLease, reason: str) -> None:
        logger.warning(
            "job %d (%s) is no longer held by this worker%s: %s",
            lease.job.id,
            lease.label or "it has waited behind another",
            " but runs on, and may run twice" if lease is self._lease else "",
            reason,
        )
