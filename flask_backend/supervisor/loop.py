"""The supervisor: wait, handle, reap, enforce, reconcile, notify."""

from __future__ import annotations

import logging
import math
import os
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from flask_backend.exits import ExitCode
from flask_backend.titles import show_master

from . import process
from .children import Child, Children
from .deadlines import Deadlines
from .death import Death
from .inbox import Inbox, Report, ReportKind
from .loans import Loans
from .memory import MemoryPolicy
from .notify import Notifier
from .plan import MAX_CHILDREN, Plan, Pool, Slot
from .pools import PoolRecord
from .reload import Handover, OldChild, execute_again, start_check
from .restart import ExitKind
from .scoreboard import Place, Row, Scoreboard
from .settling import Settle, Settling
from .states import (
    SUPERVISOR_TRANSITIONS,
    ChildEvent,
    ChildState,
    SupervisorEvent,
    SupervisorState,
    next_state,
)

logger = logging.getLogger("flask_backend.supervisor")

# How often the supervisor looks at its children without being called: for deadlines and memory.
LOOK_S = 1.0
# How often it reads the memory of one child where there is no ceiling: it takes milliseconds.
SAMPLE_S = 5.0
FORK_RETRY_S = 1.0  # after a fork that the system refused
# Between the signal that makes a stuck child write its stacks and its end.
DUMP_S = 0.2


@dataclass(frozen=True, slots=True)
class Work:
    """What children do: ``body`` is a child's whole life, and returns its exit code.

    ``labels`` tells for each pool what its children may do, for example the names of its tasks. ``settle`` is called,
    in a short-lived process of its own, for a child that died at a job: with the socket that it has lent, the job's
    id, how often the job has done so, and the story of the death.
    """

    body: process.Body
    labels: Mapping[str, Sequence[str]]
    settle: Settle


@dataclass(frozen=True, slots=True)
class Checker:
    """The process that tries new code before a reload."""

    pid: int
    deadline: float


@dataclass(frozen=True, slots=True)
class Options:
    """How children are treated. All times are in seconds."""

    drain_timeout_s: float  # the time that running jobs have when all are to stop
    boot_timeout_s: float = 60.0  # the time that a child has until it is ready
    max_memory_bytes: int | None = None  # a child with more private memory is recycled
    max_memory_hard_bytes: int | None = None  # and one with more than this is killed


class Supervisor:
    """Keeps the children of all pools alive until told to stop; runs in the main thread of the only thread."""

    def __init__(
        self, pools: list[Pool], work: Work, options: Options, notifier: Notifier, handover: Handover | None = None
    ) -> None:
        """Plan the children; with a ``handover``, beside those of an earlier image of this process."""
        self._work = work
        self._options = options
        self._plan = Plan(pools)
        self._pools = {pool.name: PoolRecord() for pool in pools}
        self._children = Children()
        ceilings = [ceiling for ceiling in (options.max_memory_bytes, options.max_memory_hard_bytes) if ceiling]
        self._memory = MemoryPolicy(min(ceilings)) if ceilings else None
        self._not_before: dict[Slot, float] = {}  # slots whose next child has to wait
        self._state = SupervisorState.STARTING
        self._drain_deadline = math.inf
        self._last_look = time.monotonic()
        self._last_sample = float("-inf")
        self._deadlines = Deadlines(options.boot_timeout_s)
        self._exit_code = ExitCode.OK
        self._loans = Loans()
        self._inbox = Inbox(self._loans)
        self._links = process.Links(self._inbox, process.Lifeline(), self._loans)
        self._settling = Settling(work.settle, self._links)
        self._checker: Checker | None = None  # the process that tries new code before a reload
        self._old_files: set[int] = set()  # the scoreboards of old children
        self._reload_failure = ""  # why the last reload did not come about
        # Twice: the old and the new child of each slot.
        self._scoreboard = Scoreboard(work.labels, 2 * MAX_CHILDREN)
        self._notifier = notifier
        if handover:
            self._adopt(handover)

    def run(self) -> ExitCode:
        """Supervise until stopped by a signal, or until a pool turns out to be unable to start."""
        self._inbox.install()
        process.unblock_signals()  # after a reload they are blocked
        self._reconcile()
        while self._state is not SupervisorState.STOPPED:
            for event in self._inbox.wait(self._timeout_s()):
                self._handle(event)
            self._reap()
            self._enforce_deadlines()
            self._look_at_children()
            self._recycle()
            self._reconcile()
            self._notify()
        self._loans.close_all()
        return self._exit_code

    # -- wait ------------------------------------------------------------------------------------------------

    def _timeout_s(self) -> float:
        """How long until there is something to do without an event."""
        now = time.monotonic()
        due = [self._drain_deadline, self._last_look + LOOK_S]
        for child in self._children:
            if child.dumped_at is not None:
                due.append(child.dumped_at + DUMP_S)
            elif (kill_at := child.row.kill_at) is not None and child.state is not ChildState.KILLED:
                due.append(max(kill_at, now + DUMP_S))  # later than it, if the child is given time after a suspend
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
                process.dump_stacks()
                for child in self._children:
                    process.dump_stacks_of(child.pid)
            case signal.SIGHUP if not self._is_draining:
                self._start_reload()
            case _:
                pass  # SIGCHLD: every turn reaps

    def _handle_report(self, child: Child, kind: ReportKind) -> None:
        if kind is ReportKind.RECYCLE_DUE:
            child.recycle_reason = "it has done its number of tasks"
            return
        child.apply(ChildEvent.REPORTED_READY)
        pool = self._pools[child.slot.pool]
        pool.was_ever_ready = True
        pool.end_recycling(child.slot)

    def _resize(self, by: int) -> None:
        self._plan.resize(by)
        self._not_before = {slot: at for slot, at in self._not_before.items() if self._plan.wants(slot)}
        logger.info("now %s", self._plan)

    def _begin_draining(self, reason: str) -> None:
        if not self._is_draining:
            self._apply(SupervisorEvent.DRAIN)
            if self._checker:
                process.kill(self._checker.pid)
            self._notifier.send("STOPPING=1", f"STATUS=Stopping: {reason}")
            logger.info("%s: stopping", reason)

    def _drain_all(self, reason: str) -> None:
        self._begin_draining(reason)
        self._drain_deadline = time.monotonic() + self._options.drain_timeout_s
        for child in self._children:
            if not child.was_told_to_end:
                self._drain(child)

    def _kill_all(self, reason: str) -> None:
        for child in self._children:
            if child.state is not ChildState.KILLED:
                if activity := child.row.activity:
                    logger.warning(
                        "%s: worker %d gives back job %d (%s) unfinished after %.1f s",
                        reason,
                        child.pid,
                        activity.job_id,
                        activity.label,
                        activity.running_s,
                    )
                self._kill(child)
        self._drain_deadline = math.inf

    def _drain(self, child: Child) -> None:
        child.apply(ChildEvent.DRAIN)
        process.drain(child.pid)

    def _kill(self, child: Child) -> None:
        child.apply(ChildEvent.KILL)
        child.dumped_at = None
        process.kill(child.pid)

    # -- reap ------------------------------------------------------------------------------------------------

    def _reap(self) -> None:
        for exit_ in process.reap(is_ours=self._is_ours):
            if child := self._children.get(exit_.pid):
                self._loans.receive()  # what it has lent may be there, but not be read yet
                self._handle_exit(child, exit_)
                self._loans.close(exit_.pid)
            elif self._checker and exit_.pid == self._checker.pid:
                self._finish_reload(exit_)
            elif exit_.pid in self._settling and (pool := self._settling.end(exit_)):
                self._pools[pool].settled_after_death += 1
        if self._is_draining and not self._children and not self._settling:
            self._apply(SupervisorEvent.NO_CHILDREN)

    def _is_ours(self, pid: int) -> bool:
        return (
            self._children.get(pid) is not None
            or pid in self._settling
            or (self._checker is not None and pid == self._checker.pid)
        )

    def _handle_exit(self, child: Child, exit_: process.Exit) -> None:
        """Take a dead child off the books, have its job settled, and its slot filled again."""
        now = time.monotonic()
        private_bytes = self._memory.forget(child.pid) if self._memory else child.private_bytes
        death = Death.of(child, exit_, now, private_bytes)
        self._children.remove(child.pid)
        if child.is_old:
            self._scoreboard.bid_farewell(child.pid)
        else:
            self._scoreboard.give_back(child.slot.pool, child.row)
        was_given_back = self._is_draining and child.state is ChildState.KILLED
        child.apply(ChildEvent.EXIT)
        if death.activity and was_given_back:
            self._exit_code = self._exit_code or ExitCode.GAVE_BACK
        elif death.activity:
            self._settling.start(death, death.activity, child.row)
        if child.is_old:
            self._handle_old_exit(death)
        elif not self._is_draining:
            self._fill_again(child.slot, death, now)
        elif death.kind is not ExitKind.PLANNED and not was_given_back:
            logger.error("%s", death, extra=death.as_dict())

    def _fill_again(self, slot: Slot, death: Death, now: float) -> None:
        """Decide when a slot whose child died gets its next one; a slot without an entry gets it at once."""
        pool = self._pools[slot.pool]
        if death.kind is ExitKind.PLANNED:
            if not self._plan.wants(slot):  # else a recycling goes on until the successor is ready
                pool.end_recycling(slot)
            return
        pool.end_recycling(slot)
        delay_s = pool.restarts.delay_s(death.kind, now, self._progress(death.pool))
        self._not_before[slot] = now + delay_s
        logger.error("%s; replaced %s", death, f"in {delay_s:.1f} s" if delay_s else "at once", extra=death.as_dict())
        self._give_up_if_hopeless(slot, pool, death)

    def _handle_old_exit(self, death: Death) -> None:
        """Nothing replaces a child of before a reload: its successors are there, or on their way."""
        if death.kind is not ExitKind.PLANNED:
            logger.error("%s; it had the old code", death, extra=death.as_dict())
        self._forget_the_past()

    def _give_up_if_hopeless(self, slot: Slot, pool: PoolRecord, death: Death) -> None:
        if self._children.has_old(slot.pool):
            return  # the old code goes on serving until the new one can
        if pool.breaker.trips(time.monotonic(), self._progress(slot.pool)):
            logger.critical(
                "the workers of %s have died %d times within %g s and done nothing in between: giving up",
                slot.pool,
                pool.breaker.limit,
                pool.breaker.window_s,
            )
            self._give_up(slot.pool, ExitCode.GAVE_UP)
        elif not pool.was_ever_ready and death.exit.status == ExitCode.CONFIG:
            pool.failed_first.add(slot)
            if all(other in pool.failed_first for other in self._plan.slots() if other.pool == slot.pool):
                logger.critical("no worker of %s can start, for the reason above: giving up", slot.pool)
                self._give_up(slot.pool, ExitCode.CONFIG)

    def _progress(self, pool: str) -> int:
        """Count the jobs that a pool has brought to an end: by its workers, or after their death."""
        return self._scoreboard.settled(pool) + self._pools[pool].settled_after_death

    def _give_up(self, pool: str, code: ExitCode) -> None:
        self._exit_code = code
        self._drain_all(f"the workers of {pool} cannot work")

    # -- enforce ---------------------------------------------------------------------------------------------

    def _enforce_deadlines(self) -> None:
        """End what is over: the time of a drain, and that of children that are stuck."""
        now = time.monotonic()
        if now >= self._drain_deadline:
            self._kill_all("drain timeout")
        self._settling.kill_overdue(now)
        if self._checker and now >= self._checker.deadline:
            process.kill(self._checker.pid)
        self._deadlines.note_turn(now - self._last_look - LOOK_S, now)
        for child in self._children:
            if reason := self._deadlines.reason_to_kill(child, now):
                self._end_stuck(child, reason, now)
            else:
                child.dumped_at = None

    def _end_stuck(self, child: Child, reason: str, now: float) -> None:
        """Have the child write its stacks, which it does even if its interpreter is stuck; a moment later, kill it."""
        if child.dumped_at is None:
            child.dumped_at = now
            logger.error("worker %d of %s %s: its stacks follow, then it is killed", child.pid, child.slot.pool, reason)
            process.dump_stacks_of(child.pid)
        elif now - child.dumped_at >= DUMP_S:
            self._kill(child)

    def _look_at_children(self) -> None:
        """Read the children's memory, now and then."""
        now = time.monotonic()
        if now - self._last_look < LOOK_S:
            return
        self._last_look = now
        if self._memory is None:
            self._sample_memory(now)
            return
        for child in self._children:
            if child.state is not ChildState.KILLED:
                private = self._memory.private_if_over(child.pid, now, process.rss_bytes, process.private_bytes)
                if private is not None:
                    self._judge_memory(child, private)

    def _sample_memory(self, now: float) -> None:
        """Read the memory of the child that was read longest ago, for the story of its death if it should die."""
        if now - self._last_sample >= SAMPLE_S and (children := list(self._children)):
            self._last_sample = now
            child = min(children, key=lambda child: child.sampled_at)
            child.sampled_at = now
            child.private_bytes = process.private_bytes(child.pid)

    def _judge_memory(self, child: Child, private: int) -> None:
        soft, hard = self._options.max_memory_bytes, self._options.max_memory_hard_bytes
        if hard and private > hard:
            logger.error(
                "worker %d of %s is killed: its private memory is %d MiB, over the hard ceiling of %d MiB",
                child.pid,
                child.slot.pool,
                private >> 20,
                hard >> 20,
            )
            self._kill(child)
        elif soft and private > soft and child.recycle_reason is None:
            child.recycle_reason = f"its private memory is {private >> 20} MiB, over {soft >> 20} MiB"

    def _recycle(self) -> None:
        """Drain the next child that is due, one in each pool at a time: until its successor is ready."""
        if self._is_draining:
            return
        for child in self._children:
            pool = self._pools[child.slot.pool]
            is_due = child.recycle_reason and not child.is_old
            if is_due and child.state is ChildState.READY and pool.recycling is None:
                pool.recycling = child.slot
                logger.info("worker %d of %s is recycled: %s", child.pid, child.slot.pool, child.recycle_reason)
                self._drain(child)

    # -- reconcile -------------------------------------------------------------------------------------------

    def _reconcile(self) -> None:
        """Fill the slots that have no child and may have one; drain the children that nobody wants any more."""
        if self._is_draining:
            return
        for child in self._children:
            if not self._is_wanted(child) and not child.was_told_to_end:
                self._drain(child)
        for slot in self._vacant_slots():
            self._spawn(slot)
        show_master(len(self._plan.pools), self._plan.total)

    def _is_wanted(self, child: Child) -> bool:
        """Old code is wanted until there are as many ready children of the new one as there are to be."""
        if child.is_old:
            return self._children.count_ready(child.slot.pool) < self._plan.size_of(child.slot.pool)
        return self._plan.wants(child.slot)

    def _vacant_slots(self) -> Iterator[Slot]:
        now = time.monotonic()
        taken = self._children.slots()
        for slot in self._plan.slots():
            if slot not in taken and self._not_before.get(slot, 0.0) <= now:
                self._not_before.pop(slot, None)
                yield slot

    def _spawn(self, slot: Slot) -> None:
        row = self._scoreboard.take(slot.pool)
        try:
            pid = process.spawn(self._work.body, slot.pool, row, self._links)
        except OSError as error:
            self._scoreboard.give_back(slot.pool, row)
            self._not_before[slot] = time.monotonic() + FORK_RETRY_S
            logger.error("cannot fork a worker of %s: %s; trying again in %g s", slot.pool, error, FORK_RETRY_S)
            return
        self._children.add(Child(slot, pid, row, time.monotonic()))

    # -- reload ----------------------------------------------------------------------------------------------

    def _start_reload(self) -> None:
        """Try the new code in a process of its own."""
        if self._checker:
            logger.info("HUP: a reload is under way")
            return
        logger.info("HUP: checking the app")
        pid = start_check()
        self._checker = Checker(pid, time.monotonic() + self._options.boot_timeout_s)

    def _finish_reload(self, exit_: process.Exit) -> None:
        """Go on as new code if the check was passed, else as the old one."""
        self._checker = None
        if self._is_draining:
            return
        if exit_.status != ExitCode.OK:
            logger.critical("reload failed: the check of the new app %s; the old one goes on", exit_)
            self._reload_failure = f"the check of the new app {exit_}"
            return
        for child in self._children:
            if child.state is ChildState.STARTING:
                self._drain(child)
        self._notifier.send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")
        self._loans.receive()
        try:
            execute_again(self._handover())
        except OSError as error:
            logger.critical("reload failed: %s; the old app goes on", error)
            self._reload_failure = str(error)
            self._notifier.send("READY=1")

    def _handover(self) -> Handover:
        children = [
            OldChild(
                pool=child.slot.pool,
                pid=child.pid,
                is_draining=child.was_told_to_end,
                loan=self._loans.get(child.pid),
                row_fd=child.row.place.fd,
                row_offset=child.row.place.offset,
                row_labels=list(child.row.place.labels),
            )
            for child in self._children
        ]
        past = self._scoreboard.past(alive=[child.row for child in self._children])
        return Handover(children, self._links.lifeline.write_ends, self._notifier.path, past)

    def _adopt(self, handover: Handover) -> None:
        """Go on with the children of the image before; those of queues that are no more are drained."""
        self._links.lifeline.keep(handover.lifelines)
        self._scoreboard.begin_with(handover.past)
        for old in handover.children:
            row = Row.find(Place(old.row_fd, old.row_offset, old.row_labels))
            child = Child(Slot(old.pool, 0), old.pid, row, time.monotonic(), is_old=True, was_ready=True)
            child.state = ChildState.DRAINING if old.is_draining else ChildState.READY
            self._pools.setdefault(old.pool, PoolRecord())
            self._children.add(child)
            self._scoreboard.welcome(old.pid, old.pool, row)
            if old.loan is not None:
                self._loans.keep(old.pid, old.loan)
            self._old_files.add(old.row_fd)
        self._forget_the_past()

    def _forget_the_past(self) -> None:
        """Close what only old children need, when there are none any more."""
        if not self._children.has_old():
            self._links.lifeline.let_go_of_old_ones()
            while self._old_files:
                os.close(self._old_files.pop())

    # -- notify ----------------------------------------------------------------------------------------------

    def _notify(self) -> None:
        ready = self._children.count_ready()
        if self._state is SupervisorState.STARTING and all(
            self._children.count_ready(pool.name) for pool in self._plan.pools
        ):
            self._apply(SupervisorEvent.ALL_POOLS_READY)
            logger.info("ready: %s", self._plan)
            self._notifier.send("READY=1")
        if self._state is SupervisorState.RUNNING:
            status = f"STATUS={ready} of {self._plan.total} workers ready"
            if self._reload_failure:
                status += f"; reload failed, the old app goes on: {self._reload_failure}"
            self._notifier.send(status)

    @property
    def _is_draining(self) -> bool:
        return self._state in (SupervisorState.DRAINING, SupervisorState.STOPPED)

    def _apply(self, event: SupervisorEvent) -> None:
        if event is SupervisorEvent.NO_CHILDREN:
            # Nothing is left to stop, and the interpreter's end puts the default handlers back: a signal that still
            # comes would replace the exit code.
            process.block_signals()
        self._state = next_state(SUPERVISOR_TRANSITIONS, self._state, event)
