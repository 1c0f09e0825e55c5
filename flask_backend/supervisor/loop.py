"""The supervisor: wait, handle, reap, enforce, reconcile, notify."""

from __future__ import annotations

import math
import signal
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from flask_backend.deaths import Death, Exit, ExitKind
from flask_backend.system.exits import ExitCode
from flask_backend.system.loggers import get_logger
from flask_backend.system.stacks import dump_stacks
from flask_backend.system.streams import streams
from flask_backend.system.titles import show_master

from . import process
from .children import Child, Children
from .context import Body, ChildContext
from .deadlines import Deadlines
from .death import death_of
from .descriptors import Descriptors
from .enforcement import Enforcement
from .inbox import Inbox, Report, ReportKind
from .links import Lifeline, Links
from .loans import Loans
from .memory import MemoryPolicy
from .notify import Notifier
from .plan import MAX_CHILDREN, Plan, Pool, Slot
from .pools import PoolRecord
from .reload import Handover, Reload
from .scoreboard import Scoreboard
from .settling import Settle, Settling
from .states import SUPERVISOR_TRANSITIONS, ChildEvent, ChildState, SupervisorEvent, SupervisorState, next_state
from .terminal import Terminal

logger = get_logger("flask_backend.supervisor")

FORK_RETRY_S = 1.0  # after a fork that the system refused
LEAST_DRAIN_S = 1.0  # an idle child gets this long to notice a drain and exit, however short the timeout
# If this many children of a pool are still exiting, successors wait: each is a process with memory of its own.
MAX_LEAVING = 100


@dataclass(frozen=True, slots=True)
class Work:
    """The work of children: ``body`` is the whole life of a child, and returns its exit code.

    ``labels`` names for each pool the kinds of work of its children, for example its tasks. If a child died at a job,
    ``settle`` is called in a short-lived process of its own, with the socket that the child lent, the record of its
    death, and the number of deaths that the job has caused.
    """

    body: Body
    labels: Mapping[str, Sequence[str]]
    settle: Settle


@dataclass(frozen=True, slots=True)
class SupervisorOptions:
    """The limits of children. All times are in seconds."""

    drain_timeout_s: float  # the time that running jobs get at a shutdown
    boot_timeout_s: float = 60.0  # the time that a child has to become ready
    max_memory_bytes: int | None = None  # a child with more private memory is recycled
    max_memory_hard_bytes: int | None = None  # and one with more than this is killed
    descriptors: Descriptors = field(default_factory=Descriptors.count)  # those open, and the limit of children
    terminal: Terminal = field(default_factory=Terminal.find)


class Supervisor:
    """Keeps every pool at its size until stopped. Runs in the main thread of a single-threaded process."""

    def __init__(
        self,
        pools: list[Pool],
        work: Work,
        options: SupervisorOptions,
        notifier: Notifier,
        handover: Handover | None = None,
    ) -> None:
        """Plan the children. With a ``handover``, adopt those of an earlier image of this process."""
        self._body = work.body
        self._drain_timeout_s = options.drain_timeout_s
        self._notifier = notifier
        self._state = SupervisorState.STARTING
        self._drain_deadline = math.inf
        self._leave_at = -math.inf
        self._exit_code = ExitCode.OK
        descriptors, self._terminal = options.descriptors, options.terminal
        self._plan = Plan(pools, descriptors.most_children)
        self._pools: defaultdict[str, PoolRecord] = defaultdict(PoolRecord)
        self._not_before: dict[Slot, float] = {}  # slots whose next child must wait
        self._held_up: set[str] = set()  # pools whose next children must wait
        self._children = Children()
        # Twice the maximum: each slot may have an old and a new child.
        self._scoreboard = Scoreboard(work.labels, 2 * MAX_CHILDREN)
        self._loans = Loans()
        self._inbox = Inbox(self._terminal)
        self._inbox.register(self._loans.fileno(), self._loans.receive)
        self._links = Links(self._inbox, Lifeline(), self._loans, notifier, descriptors)
        self._settling = Settling(work.settle, self._links)
        memory = MemoryPolicy(options.max_memory_bytes, options.max_memory_hard_bytes)
        deadlines = Deadlines(options.boot_timeout_s, max(options.drain_timeout_s, LEAST_DRAIN_S))
        self._enforcement = Enforcement(self._children, deadlines, memory, self._kill)
        self._reload = Reload(self._children, self._scoreboard, self._links, options.terminal, options.boot_timeout_s)
        if handover:
            self._reload.adopt(handover)

    def run(self) -> ExitCode:
        """Supervise until a signal stops it, or until it gives up a pool."""
        self._inbox.install()
        process.unblock_signals()  # after a reload they are blocked
        self._reconcile()
        while self._state is not SupervisorState.STOPPED:
            for event in self._inbox.wait(self._timeout_s()):
                self._handle(event)
            self._reap()
            self._let_go()
            self._enforce()
            self._reconcile()
            self._notify()
            streams.report_losses()
        self._loans.close_all()
        return self._exit_code

    @property
    def leave_within_s(self) -> float:
        """How long this process may still take to exit once it is stopped."""
        return max(self._leave_at - time.monotonic(), LEAST_DRAIN_S)

    def wait_for_stop(self, timeout_s: float) -> None:
        """Wait at most ``timeout_s`` seconds for another stop signal. For use in any thread, after the stop."""
        self._inbox.wait_for_stop(timeout_s)

    # -- wait ------------------------------------------------------------------------------------------------

    def _timeout_s(self) -> float:
        """How long the loop may wait if no event arrives."""
        now = time.monotonic()
        due = [self._drain_deadline, self._enforcement.next_at(now)]
        if not self._is_draining:
            due += self._not_before.values()
        return min(due) - now

    # -- handle ----------------------------------------------------------------------------------------------

    def _handle(self, event: signal.Signals | Report) -> None:
        if isinstance(event, signal.Signals):
            self._handle_signal(event)
        elif child := self._children.get(event.pid):
            self._handle_report(child, event.kind)

    def _handle_signal(self, number: signal.Signals) -> None:
        match number:
            case signal.SIGTERM | signal.SIGINT if self._is_draining:
                self._kill_all(f"{number.name} again")
            case signal.SIGTERM | signal.SIGINT:
                self._drain_all(number.name)
            case signal.SIGQUIT:
                self._begin_draining(number.name)
                self._kill_all(number.name)
            case signal.SIGTTIN:
                self._resize(+1)
            case signal.SIGTTOU:
                self._resize(-1)
            case signal.SIGUSR1:
                dump_stacks()
                for child in self._children:
                    process.dump_stacks_of(child.pid)
            case signal.SIGHUP if not self._is_draining and not self._drain_if_terminal_is_gone():
                self._reload.start_check()
            case _:
                pass  # SIGCHLD: every turn reaps

    def _handle_report(self, child: Child, kind: ReportKind) -> None:
        if kind is ReportKind.RECYCLE_DUE:
            child.recycle_reason = "it has run its maximum number of tasks"
        elif kind is ReportKind.READY:
            child.apply(ChildEvent.REPORTED_READY)
            self._pools[child.slot.pool].note_ready(child.slot)

    def _resize(self, by: int) -> None:
        if not self._plan.resize(by):
            logger.warning("cannot add workers: the limit of file descriptors allows %d", self._plan.most)
        self._not_before = {slot: at for slot, at in self._not_before.items() if self._plan.wants(slot)}
        logger.info("now %s", self._plan)

    def _begin_draining(self, reason: str) -> None:
        if not self._is_draining:
            self._apply(SupervisorEvent.DRAIN)
            self._reload.call_off()
            self._notifier.send("STOPPING=1", f"STATUS=Stopping: {reason}")
            logger.info("%s: stopping", reason)

    def _drain_all(self, reason: str) -> None:
        self._begin_draining(reason)
        self._drain_deadline = self._leave_at = time.monotonic() + self._drain_timeout_s
        for child in self._children:
            if not child.was_told_to_end:
                self._drain(child)

    def _drain_if_terminal_is_gone(self) -> bool:
        if is_gone := self._terminal.is_gone():
            self._drain_all("the terminal is gone")
        return is_gone

    def _kill_all(self, reason: str) -> None:
        for child in self._children:
            if child.state is not ChildState.KILLED:
                if activity := child.row.activity:
                    job = f"job {activity.job_id} ({activity.label}) unfinished after {activity.running_s:.1f} s"
                    logger.warning("%s: worker %d gives back %s", reason, child.pid, job)
                elif child.has_left:
                    logger.warning("%s: killing worker %d, which has no job but has not exited", reason, child.pid)
                self._kill(child)
        self._drain_deadline = math.inf
        self._leave_at = time.monotonic()

    def _drain(self, child: Child) -> None:
        child.apply(ChildEvent.DRAIN)
        child.drained_at = child.signalled_at = time.monotonic()
        child.row.tell_to_drain()
        process.drain(child.pid)

    def _kill(self, child: Child) -> None:
        child.apply(ChildEvent.KILL)
        process.kill(child.pid)

    # -- reap ------------------------------------------------------------------------------------------------

    def _reap(self) -> None:
        for exit_ in process.reap(is_ours=self._is_ours):
            if child := self._children.get(exit_.pid):
                self._loans.receive()  # its last loan may not have been read yet
                self._handle_exit(child, exit_)
                self._loans.close(exit_.pid)
            elif self._reload.is_checked_by(exit_.pid):
                has_passed = self._reload.end_check(exit_)
                # The HUP that asked for the check may have arrived just before the terminal went away.
                if not self._drain_if_terminal_is_gone() and has_passed:
                    self._go_on_as_new_code()
            elif exit_.pid in self._settling and (pool := self._settling.end(exit_)):
                self._pools[pool].settled_after_death += 1
        if self._is_draining and not self._children and not self._settling:
            self._apply(SupervisorEvent.NO_CHILDREN)

    def _is_ours(self, pid: int) -> bool:
        return pid in self._children or pid in self._settling or self._reload.is_checked_by(pid)

    def _handle_exit(self, child: Child, exit_: Exit) -> None:
        """Forget a dead child, have its job settled and its slot filled again."""
        now = time.monotonic()
        death = death_of(child, exit_, now)
        self._children.remove(child.pid)
        if child.is_old:
            self._reload.retire(child.pid)
        else:
            self._scoreboard.give_back(child.slot.pool, child.row)
        was_killed = child.state is ChildState.KILLED
        was_given_back = child.gave_back(exit_.signal) or (self._is_draining and was_killed)
        if death.activity and child.gave_back(exit_.signal):
            logger.warning("%s: it was draining, and its job goes back", death, extra=death.as_dict())
        child.apply(ChildEvent.EXIT)
        if death.activity and was_given_back and self._is_draining:
            self._exit_code = self._exit_code or ExitCode.GAVE_BACK
        if death.has_left:
            if exit_.status != ExitCode.OK and not was_killed:
                logger.warning("%s; its jobs are settled", death, extra=death.as_dict())
        elif not child.is_old and not self._is_draining:
            self._fill_again(child.slot, death, now)
        elif death.kind is not ExitKind.PLANNED and (child.is_old or not was_given_back):
            # Children of the old code are not replaced: the new generation is up or starting.
            logger.error("%s%s", death, "; it ran the old code" if child.is_old else "", extra=death.as_dict())
        if death.activity and not was_given_back:  # last: the log shows the death before the fate of its job
            self._settling.start(death, death.activity)

    def _fill_again(self, slot: Slot, death: Death, now: float) -> None:
        """Decide when the slot of a dead child gets its next one: at once, unless ``_not_before`` has an entry."""
        if death.kind is ExitKind.PLANNED:
            return
        if not self._plan.wants(slot):
            logger.error("%s; it was one too many", death, extra=death.as_dict())
            return
        pool = self._pools[slot.pool]
        pool.end_recycling(slot)
        progress = self._scoreboard.settled(slot.pool) + pool.settled_after_death
        delay_s = pool.restarts.delay_s(death.kind, now, progress)
        self._not_before[slot] = now + delay_s
        logger.error("%s; replaced %s", death, f"in {delay_s:.1f} s" if delay_s else "at once", extra=death.as_dict())
        if self._children.is_served_by_old(slot.pool):
            return  # the old code serves until the new one can
        if hopeless := pool.check_give_up(slot, self._plan.size_of(slot.pool), death.exit.status, now, progress):
            logger.critical("%s: giving up", hopeless.reason)
            self._exit_code = hopeless.code
            self._drain_all(f"the workers of {slot.pool} cannot work")

    def _go_on_as_new_code(self) -> None:
        for child in self._children:
            if child.state is ChildState.STARTING:
                self._drain(child)  # its report would be sent to an inbox that no longer exists
        self._reload.execute()

    # -- let go --------------------------------------------------------------------------------------------

    def _let_go(self) -> None:
        """Record which children have left: close the sockets they have lent, and free their slots."""
        for child in self._children:
            if child.has_left and child.state not in (ChildState.LEAVING, ChildState.KILLED):
                child.apply(ChildEvent.LEFT)
                self._loans.receive()  # its last loan may not have been read yet
                self._loans.close(child.pid)

    # -- enforce ---------------------------------------------------------------------------------------------

    def _enforce(self) -> None:
        """Enforce the deadlines of a drain and of every process that the supervisor has started."""
        now = time.monotonic()
        if now >= self._drain_deadline:
            self._kill_all("drain timeout")
        self._settling.kill_overdue(now)
        self._reload.kill_overdue(now)
        self._enforcement.enforce(now)

    # -- reconcile -------------------------------------------------------------------------------------------

    def _reconcile(self) -> None:
        """Drain children that are unwanted or due for recycling; fill the slots that may have a child."""
        if self._is_draining:
            return
        ready = self._children.count_ready()
        for child in self._children:
            if not self._is_wanted(child, ready) and not child.was_told_to_end:
                self._drain(child)
        self._recycle()
        self._hold_up()
        now, taken = time.monotonic(), self._children.slots()
        for slot in self._plan.slots():
            if slot not in taken and self._not_before.get(slot, now) <= now and slot.pool not in self._held_up:
                self._spawn(slot)
        show_master(len(self._plan.pools), self._plan.total)

    def _hold_up(self) -> None:
        """Delay successors in a pool with too many children that are still exiting."""
        crowded = {pool for pool, count in self._children.count_leaving().items() if count >= MAX_LEAVING}
        for pool in crowded - self._held_up:
            logger.warning("%d workers of %s have not exited yet: their successors wait", MAX_LEAVING, pool)
        self._held_up = crowded

    def _recycle(self) -> None:
        """Drain the next child that is due. Each pool recycles one at a time, until its successor is ready."""
        for child in self._children:
            pool = self._pools[child.slot.pool]
            is_due = child.recycle_reason and child.state is ChildState.READY and not child.is_old
            if is_due and not pool.is_recycling(self._plan):
                pool.recycling = child.slot
                logger.info("worker %d of %s is recycled: %s", child.pid, child.slot.pool, child.recycle_reason)
                self._drain(child)

    def _is_wanted(self, child: Child, ready: Counter[str]) -> bool:
        """Whether a child is wanted. Old code is, until the new code has all its children ready."""
        if child.is_old:
            return ready[child.slot.pool] < self._plan.size_of(child.slot.pool)
        return self._plan.wants(child.slot)

    def _spawn(self, slot: Slot) -> None:
        self._not_before.pop(slot, None)
        row = self._scoreboard.take(slot.pool)

        def live(accept_signals: process.AcceptSignals) -> int:
            context = ChildContext(slot.pool, row, self._links, accept_signals)
            context.show("starting")
            return self._body(context)

        try:
            pid = process.spawn(f"a worker of {slot.pool}", live, self._links)
        except OSError as error:
            self._scoreboard.give_back(slot.pool, row)
            self._not_before[slot] = time.monotonic() + FORK_RETRY_S
            logger.error("cannot fork a worker of %s: %s; trying again in %g s", slot.pool, error, FORK_RETRY_S)
            return
        self._children.add(Child(slot, pid, row, time.monotonic()))

    # -- notify ----------------------------------------------------------------------------------------------

    def _notify(self) -> None:
        counts = self._children.count_ready()
        ready = [counts[pool.name] for pool in self._plan.pools]
        if self._state is SupervisorState.STARTING and all(ready):
            self._apply(SupervisorEvent.ALL_POOLS_READY)
            logger.info("ready: %s", self._plan)
            self._notifier.send("READY=1")
        if self._state is SupervisorState.RUNNING:
            status = f"STATUS={sum(ready)} of {self._plan.total} workers ready"
            if self._reload.failure:
                status += f"; reload failed, the old app goes on: {self._reload.failure}"
            self._notifier.send(status)

    @property
    def _is_draining(self) -> bool:
        return self._state in (SupervisorState.DRAINING, SupervisorState.STOPPED)

    def _apply(self, event: SupervisorEvent) -> None:
        self._state = next_state(SUPERVISOR_TRANSITIONS, self._state, event)
