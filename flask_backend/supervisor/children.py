"""The table of living children. It only keeps records."""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from .memory import Reading
from .plan import Slot
from .scoreboard import Row
from .states import CHILD_TRANSITIONS, ChildEvent, ChildState, next_state


@dataclass(slots=True, eq=False)
class Child:
    """A child as its parent sees it."""

    slot: Slot
    pid: int
    row: Row
    started: float
    state: ChildState = ChildState.STARTING
    was_ready: bool = False
    is_old: bool = False  # runs the code from before a reload
    recycle_reason: str | None = None
    is_too_large: bool = False  # the reason why it is recycled or killed
    reading: Reading | None = None  # the last reading of its memory
    dumped_at: float | None = None  # when it was asked to write its stacks, before it is killed
    drained_at: float = 0.0  # when it was first asked to drain, ...
    signalled_at: float = 0.0  # ... and when last
    overstays_from: float | None = None  # since when it should drain but is idle or takes new jobs
    gives_back: bool = False  # is killed for overstaying: its jobs return to the queue

    def apply(self, event: ChildEvent) -> None:
        self.state = next_state(CHILD_TRANSITIONS, self.state, event)
        self.row.show_state(self.state)
        self.was_ready |= event is ChildEvent.REPORTED_READY

    @property
    def was_told_to_end(self) -> bool:
        return self.state in (ChildState.DRAINING, ChildState.LEAVING, ChildState.KILLED)

    @property
    def is_killed(self) -> bool:
        return self.state is ChildState.KILLED

    @property
    def has_left(self) -> bool:
        """Whether it has settled its last job: its slot is free, and its exit counts as planned, however it ends."""
        return self.row.left_at is not None

    def note(self, reading: Reading) -> None:
        """Record a reading of its memory."""
        self.reading = reading
        self.row.show_memory(reading.private_bytes)

    def gave_back(self, number: int | None) -> bool:
        """Whether the child was draining when this signal ended it, and so gave back its job, if any.

        The signal that asks it to drain kills it if the app's code has restored the default action.
        """
        return self.gives_back or (self.state is ChildState.DRAINING and number == signal.SIGTERM)

    @property
    def private_bytes(self) -> int | None:
        return self.reading.private_bytes if self.reading else None


class Children:
    def __init__(self) -> None:
        self._by_pid: dict[int, Child] = {}

    def __iter__(self) -> Iterator[Child]:
        return iter(list(self._by_pid.values()))

    def __len__(self) -> int:
        return len(self._by_pid)

    def __contains__(self, pid: object) -> bool:
        return pid in self._by_pid

    def add(self, child: Child) -> None:
        self._by_pid[child.pid] = child

    def get(self, pid: int) -> Child | None:
        return self._by_pid.get(pid)

    def remove(self, pid: int) -> None:
        del self._by_pid[pid]

    def slots(self) -> set[Slot]:
        """Return the slots that have a child of the newest code which has not left."""
        return {child.slot for child in self._by_pid.values() if not child.is_old and not child.has_left}

    def count_new(self) -> int:
        """Count the children of the newest code."""
        return sum(not child.is_old for child in self._by_pid.values())

    def count_ready(self) -> Counter[str]:
        """Count the ready children of the newest code in each pool."""
        ready = (child for child in self._by_pid.values() if child.state is ChildState.READY and not child.is_old)
        return Counter(child.slot.pool for child in ready)

    def count_leaving(self) -> Counter[str]:
        """Count the children in each pool that have left but not exited yet."""
        return Counter(child.slot.pool for child in self._by_pid.values() if child.has_left)

    def has_old(self) -> bool:
        return any(child.is_old for child in self._by_pid.values())

    def is_served_by_old(self, pool: str) -> bool:
        return any(child.is_old and child.slot.pool == pool and not child.has_left for child in self._by_pid.values())
