"""Enforces the limits of children: Deadlines and MemoryPolicy decide, this module acts."""

from __future__ import annotations

from flask_backend.system.loggers import get_logger

from . import wording
from .children import Child
from .deadlines import Deadlines
from .memory import MemoryPolicy, Reading
from .process import Processes
from .states import ChildState
from .workers import Workers

logger = get_logger("flask_backend.supervisor")

# How often the supervisor looks at its children when it receives no event.
LOOK_S = 1.0
# How often it reads the memory of one child if memory is not limited: a reading takes a millisecond or a few.
SAMPLE_S = 5.0
# The time between the signal that makes a stuck child write its stacks and the kill.
DUMP_S = 0.2


class Enforcement:
    """Kills children that are stuck or over the hard memory limit; marks those over the soft one for recycling."""

    def __init__(
        self, workers: Workers, deadlines: Deadlines, memory: MemoryPolicy, processes: Processes, now: float
    ) -> None:
        self._children = workers.children
        self._deadlines = deadlines
        self._memory = memory
        self._kill = workers.kill
        self._processes = processes
        self._last_look = now
        self._last_sample = float("-inf")

    def share_memory(self, children: int) -> None:
        """Let ``children`` share the memory, if their limit is a part of it."""
        self._memory = self._memory.for_children(children)

    def next_at(self, now: float) -> float:
        """Return when something must be enforced even if no event arrives."""
        due = [self._last_look + LOOK_S]
        for child in self._children:
            if child.state is ChildState.KILLED:
                continue
            if (left_at := child.row.left_at) is not None:
                due.append(max(left_at + self._deadlines.drain_timeout_s, now + DUMP_S))
            elif child.dumped_at is not None:
                due.append(child.dumped_at + DUMP_S)
            elif (kill_at := child.row.kill_at) is not None:
                due.append(max(kill_at, now + DUMP_S))  # later, if the child gets extra time after a suspend
        return min(due)

    def enforce(self, now: float) -> None:
        self._deadlines.note_turn(now - self._last_look - LOOK_S, now)
        for child in self._children:
            if child.state is ChildState.KILLED:
                continue
            self._deadlines.note_drain(child, now)
            if self._deadlines.is_to_be_told_again(child, now):
                self._tell_again(child, now)
            reason = self._deadlines.reason_to_kill(child, now)
            if reason is None:
                reason = self._deadlines.reason_to_end(child, now)
                child.gives_back = reason is not None
            if reason and child.has_left:
                logger.warning(wording.KILLED_AFTER_LAST_JOB, child.pid, child.slot.pool, reason)
                self._kill(child)
            elif reason:
                self._end_stuck(child, reason, now)
            else:
                child.dumped_at = None
        if now - self._last_look >= LOOK_S:
            self._last_look = now
            if self._memory.ceiling_bytes is None:
                self._sample_memory(now)
            else:
                self._check_memory(now)

    def _tell_again(self, child: Child, now: float) -> None:
        """Ask a child to drain again: a signal handler of the app may have taken the first signal."""
        if child.signalled_at == child.drained_at:
            logger.warning(
                wording.TOLD_AGAIN,
                child.pid,
                child.slot.pool,
            )
        child.signalled_at = now
        self._processes.drain(child.pid)

    def _end_stuck(self, child: Child, reason: str, now: float) -> None:
        """Make the child write its stacks, which works even if its interpreter is stuck, and kill it a moment later."""
        if child.dumped_at is None:
            child.dumped_at = now
            logger.error(wording.KILLED_WITH_STACKS, child.pid, child.slot.pool, reason)
            self._processes.dump_stacks_of_stuck(child.pid)
        elif now - child.dumped_at >= DUMP_S:
            self._kill(child)

    def _sample_memory(self, now: float) -> None:
        """Read the memory of the child whose reading is oldest, to report it if that child dies."""
        if now - self._last_sample >= SAMPLE_S and (children := list(self._children)):
            self._last_sample = now
            child = min(children, key=lambda child: child.reading.at if child.reading else float("-inf"))
            child.note(Reading(now, self._processes.private_bytes(child.pid), self._processes.usage(child.pid)))

    def _check_memory(self, now: float) -> None:
        for child in self._children:
            if child.state is ChildState.KILLED:
                continue
            usage = self._processes.usage(child.pid)
            if self._memory.needs_reading(usage, child.reading, now):
                reading = Reading(now, self._processes.private_bytes(child.pid), usage)
                child.note(reading)
                if reason := self._memory.reason_to_kill(reading):
                    child.is_too_large = True
                    logger.error(wording.KILLED_FOR_MEMORY, child.pid, child.slot.pool, reason)
                    self._kill(child)
                elif child.recycle_reason is None:
                    child.recycle_reason = self._memory.reason_to_recycle(reading)
                    child.is_too_large = child.recycle_reason is not None
