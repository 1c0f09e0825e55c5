"""The supervisor: wait, handle, reap, enforce, reconcile, notify."""

from __future__ import annotations

import logging
import math
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass

from flask_backend.exits import ExitCode
from flask_backend.titles import show_master

from . import process
from .children import Child, Children
from .inbox import Inbox, Report, ReportKind
from .memory import MemoryPolicy
from .notify import Notifier
from .plan import MAX_CHILDREN, Plan, Pool, Slot
from .restart import ExitKind, RestartPolicy
from .scoreboard import Scoreboard
from .states import (
    SUPERVISOR_TRANSITIONS,
    ChildEvent,
    ChildState,
    SupervisorEvent,
    SupervisorState,
    next_state,
)

logger = logging.getLogger("flask_backend.supervisor")

MEMORY_CHECK_S = 1.0
FORK_RETRY_S = 1.0  # after a fork that the system refused


@dataclass(frozen=True, slots=True)
class Options:
    """How children are treated."""

    drain_timeout_s: float  # the time that running jobs have when all are to stop
    max_memory_bytes: int | None = None  # a child with more private memory is recycled


class Supervisor:
    """Keeps the children of all pools alive until told to stop; runs in the main thread of the only thread."""

    def __init__(self, pools: list[Pool], body: process.Body, options: Options, notifier: Notifier) -> None:
        self._body = body
        self._options = options
        self._plan = Plan(pools)
        self._children = Children()
        self._policies = {pool.name: RestartPolicy() for pool in pools}
        self._memory = MemoryPolicy(options.max_memory_bytes) if options.max_memory_bytes else None
        self._memory_check_at = 0.0
        self._not_before: dict[Slot, float] = {}  # slots whose next child has to wait
        self._recycling: dict[str, Slot] = {}  # the one slot of each pool whose child is being replaced as planned
        self._failed_first: set[Slot] = set()  # slots whose children never started, in pools of which none ever did
        self._ever_ready: set[str] = set()
        self._state = SupervisorState.STARTING
        self._drain_deadline = math.inf
        self._exit_code = ExitCode.OK
        self._inbox = Inbox()
        self._lifeline = process.Lifeline()
        self._scoreboard = Scoreboard(2 * MAX_CHILDREN)  # the old and the new of each slot
        self._notifier = notifier

    def run(self) -> ExitCode:
        """Supervise until stopped by a signal, or until a pool turns out to be unable to start."""
        self._inbox.install()
        self._reconcile()
        while self._state is not SupervisorState.STOPPED:
            for event in self._inbox.wait(self._timeout_s()):
                self._handle(event)
            self._reap()
            self._enforce_deadline()
            self._check_memory()
            self._recycle()
            self._reconcile()
            self._notify()
        return self._exit_code

    # -- wait ------------------------------------------------------------------------------------------------

    def _timeout_s(self) -> float | None:
        """How long until there is something to do without an event; None for never."""
        due = [self._drain_deadline] if self._is_draining else [*self._not_before.values()]
        if self._memory and not self._is_draining:
            due.append(self._memory_check_at)
        nearest = min(due, default=math.inf)
        return None if nearest == math.inf else nearest - time.monotonic()

    # -- handle ----------------------------------------------------------------------------------------------

    def _handle(self, event: signal.Signals | Report) -> None:
        match event:
            case Report(kind, pid):
                if child := self._children.get(pid):
                    self._handle_report(child, kind)
            case signal.SIGTERM | signal.SIGINT:
                if self._is_draining:
                    self._kill_all(f"{event.name} again")
                else:
                    self._drain_all(event.name)
            case signal.SIGQUIT:
                self._begin_draining(event.name)
                self._kill_all(event.name)
            case signal.SIGTTIN:
                self._resize(+1)
            case signal.SIGTTOU:
                self._resize(-1)
            case signal.SIGUSR1:
                process.dump_stacks(child.pid for child in self._children)
            case signal.SIGHUP:
                logger.warning("HUP: no reload in this version, go on with the app as it is")
            case _:
                pass  # SIGCHLD: every turn reaps

    def _handle_report(self, child: Child, kind: ReportKind) -> None:
        if kind is ReportKind.RECYCLE_DUE:
            child.recycle_reason = "it has done its number of tasks"
            return
        child.apply(ChildEvent.REPORTED_READY)
        self._ever_ready.add(child.slot.pool)
        self._end_recycling(child.slot)

    def _resize(self, by: int) -> None:
        self._plan.resize(by)
        self._not_before = {slot: at for slot, at in self._not_before.items() if self._plan.wants(slot)}
        logger.info("now %s", self._plan)

    def _begin_draining(self, reason: str) -> None:
        if not self._is_draining:
            self._apply(SupervisorEvent.DRAIN)
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
                if job := child.row.busy_job:
                    logger.warning("%s: worker %d gives back job %d unfinished", reason, child.pid, job)
                child.apply(ChildEvent.KILL)
                process.kill(child.pid)
        self._drain_deadline = math.inf

    def _drain(self, child: Child) -> None:
        child.apply(ChildEvent.DRAIN)
        process.drain(child.pid)

    # -- reap ------------------------------------------------------------------------------------------------

    def _reap(self) -> None:
        for exit_ in process.reap(is_ours=lambda pid: self._children.get(pid) is not None):
            if child := self._children.get(exit_.pid):
                self._handle_exit(child, exit_)
        if self._is_draining and not self._children:
            self._apply(SupervisorEvent.NO_CHILDREN)

    def _handle_exit(self, child: Child, exit_: process.Exit) -> None:
        """Take a dead child off the books, and decide when its slot is filled again."""
        now = time.monotonic()
        kind = _kind_of(child, exit_)
        job = child.row.busy_job
        delay_s = self._policies[child.slot.pool].delay_s(kind, now)
        self._children.remove(child.pid)
        self._scoreboard.give_back(child.row)
        if self._memory:
            self._memory.forget(child.pid)
        child.apply(ChildEvent.EXIT)
        if self._is_draining:
            if job:
                self._exit_code = self._exit_code or ExitCode.GAVE_BACK
            return
        if kind is ExitKind.PLANNED and self._plan.wants(child.slot):
            return  # a recycling goes on until the successor is ready
        self._end_recycling(child.slot)
        if kind is ExitKind.PLANNED:
            return
        self._not_before[child.slot] = now + delay_s
        logger.error(
            "worker %d of %s %s %s after %.1f s; replaced %s",
            child.pid,
            child.slot.pool,
            exit_,
            f"at job {job}" if job else "while idle" if child.was_ready else "before it was ready",
            now - child.started,
            f"in {delay_s:.1f} s" if delay_s else "at once",
        )
        if kind is ExitKind.CANNOT_WORK and exit_.status == ExitCode.CONFIG:
            self._give_up_if_none_can_start(child.slot)

    def _give_up_if_none_can_start(self, slot: Slot) -> None:
        if slot.pool in self._ever_ready:
            return
        self._failed_first.add(slot)
        if all(other in self._failed_first for other in self._plan.slots() if other.pool == slot.pool):
            logger.critical("no worker of %s can start, for the reason above: giving up", slot.pool)
            self._exit_code = ExitCode.CONFIG
            self._drain_all(f"{slot.pool} cannot start")

    # -- enforce ---------------------------------------------------------------------------------------------

    def _enforce_deadline(self) -> None:
        if time.monotonic() >= self._drain_deadline:
            self._kill_all("drain timeout")

    def _check_memory(self) -> None:
        now = time.monotonic()
        if self._memory is None or self._is_draining or now < self._memory_check_at:
            return
        self._memory_check_at = now + MEMORY_CHECK_S
        for child in self._children:
            if child.state is ChildState.READY and child.recycle_reason is None:
                private = self._memory.private_if_over(child.pid, now, process.rss_bytes, process.private_bytes)
                if private is not None:
                    child.recycle_reason = (
                        f"its private memory is {private >> 20} MiB, over {self._memory.ceiling_bytes >> 20} MiB"
                    )

    def _recycle(self) -> None:
        """Drain the next child that is due, one in each pool at a time: until its successor is ready."""
        if self._is_draining:
            return
        for child in self._children:
            if child.recycle_reason and child.state is ChildState.READY and child.slot.pool not in self._recycling:
                self._recycling[child.slot.pool] = child.slot
                logger.info("worker %d of %s is recycled: %s", child.pid, child.slot.pool, child.recycle_reason)
                self._drain(child)

    def _end_recycling(self, slot: Slot) -> None:
        if self._recycling.get(slot.pool) == slot:
            del self._recycling[slot.pool]

    # -- reconcile -------------------------------------------------------------------------------------------

    def _reconcile(self) -> None:
        """Fill the slots that have no child and may have one; drain the children that nobody wants any more."""
        if self._is_draining:
            return
        for child in self._children:
            if not self._plan.wants(child.slot) and not child.was_told_to_end:
                self._drain(child)
        for slot in self._vacant_slots():
            self._spawn(slot)
        show_master(len(self._plan.pools), self._plan.total)

    def _vacant_slots(self) -> Iterator[Slot]:
        now = time.monotonic()
        taken = self._children.slots()
        for slot in self._plan.slots():
            if slot not in taken and self._not_before.get(slot, 0.0) <= now:
                self._not_before.pop(slot, None)
                yield slot

    def _spawn(self, slot: Slot) -> None:
        row = self._scoreboard.take()
        try:
            pid = process.spawn(self._body, slot.pool, row, self._inbox, self._lifeline)
        except OSError as error:
            self._scoreboard.give_back(row)
            self._not_before[slot] = time.monotonic() + FORK_RETRY_S
            logger.error("cannot fork a worker of %s: %s; trying again in %g s", slot.pool, error, FORK_RETRY_S)
            return
        self._children.add(Child(slot, pid, row, time.monotonic()))

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
            self._notifier.send(f"STATUS={ready} of {self._plan.total} workers ready")

    @property
    def _is_draining(self) -> bool:
        return self._state in (SupervisorState.DRAINING, SupervisorState.STOPPED)

    def _apply(self, event: SupervisorEvent) -> None:
        self._state = next_state(SUPERVISOR_TRANSITIONS, self._state, event)


def _kind_of(child: Child, exit_: process.Exit) -> ExitKind:
    if child.was_told_to_end or exit_.status == ExitCode.OK:
        return ExitKind.PLANNED
    if child.row.busy_job:
        return ExitKind.DIED_BUSY
    return ExitKind.DIED_IDLE if child.was_ready and exit_.signal is not None else ExitKind.CANNOT_WORK
