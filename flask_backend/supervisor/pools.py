"""The plan of all pools, and what the supervisor remembers about each, apart from its living children."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

from flask_backend.deaths import ExitKind
from flask_backend.system.exits import ExitCode

from . import wording
from .plan import Plan, Slot
from .restart import Breaker, RestartPolicy

# If this many children of a pool are still exiting, successors wait: each is a process with memory of its own.
MAX_LEAVING = 100


@dataclass(frozen=True, slots=True)
class GiveUp:
    """Why the supervisor gives up a pool, and the exit code for it."""

    reason: str
    code: ExitCode


@dataclass(frozen=True, slots=True)
class PoolPast:
    """What the next image of the supervisor must know of a pool. Times are of the monotonic clock, which goes on.

    ``exits`` are the times of the abnormal exits that the breaker counts; ``restarts`` counts those of the backoff by
    kind, and ``restarted`` is the time of the last.
    """

    exits: list[float]
    restarts: dict[str, int]
    restarted: float


@dataclass(slots=True)
class PoolRecord:
    """One pool's past."""

    restarts: RestartPolicy = field(default_factory=RestartPolicy)
    breaker: Breaker = field(default_factory=Breaker)
    was_ever_ready: bool = False
    failed_first: set[Slot] = field(default_factory=set[Slot])  # slots that failed before any was ever ready
    recycling: Slot | None = None  # the slot whose child is being replaced as planned

    def is_recycling(self, plan: Plan) -> bool:
        """Whether a successor is awaited. Only a wanted slot gets one."""
        return self.recycling is not None and plan.wants(self.recycling)

    def note_ready(self, slot: Slot) -> None:
        """Record that the child of a slot can work, which ends the recycling of the slot."""
        self.was_ever_ready = True
        self.end_recycling(slot)

    def end_recycling(self, slot: Slot) -> None:
        if self.recycling == slot:
            self.recycling = None

    def hand_over(self, progress: int) -> PoolPast:
        """Return what the next image must know, given the number of jobs settled so far."""
        counts, last = self.restarts.since(progress)
        return PoolPast(self.breaker.since(progress), {kind.name: count for kind, count in counts.items()}, last)

    def resume(self, past: PoolPast) -> None:
        """Go on from the past that an earlier image has handed over."""
        self.breaker.resume(past.exits)
        self.restarts.resume({ExitKind[name]: count for name, count in past.restarts.items()}, past.restarted)

    def check_give_up(
        self, slot: Slot, wanted: Collection[Slot], status: int | None, now: float, progress: int
    ) -> GiveUp | None:
        """Record an abnormal exit; return the reason to give up the pool, of which these slots are wanted, if any."""
        size = len(wanted)
        if self.breaker.trips(now, progress, size):
            reason = wording.died_too_often(slot.pool, self.breaker.limit_of(size), self.breaker.window_s)
            return GiveUp(reason, ExitCode.GAVE_UP)
        if not self.was_ever_ready and status == ExitCode.CONFIG:
            self.failed_first.add(slot)
            if self.failed_first.issuperset(wanted):
                return GiveUp(wording.cannot_start(slot.pool), ExitCode.CONFIG)
        return None


class Pools:
    """All pools: their plan, their past, and which slots must wait for their next child."""

    def __init__(self, plan: Plan, give_up_after: int | None = None, give_up_within_s: float = 60.0) -> None:
        """Take the plan, and the numbers of each pool's :class:`Breaker`."""
        self.plan = plan
        self._records: defaultdict[str, PoolRecord] = defaultdict(
            lambda: PoolRecord(breaker=Breaker(give_up_after, give_up_within_s))
        )
        self._not_before: dict[Slot, float] = {}  # slots whose next child must wait
        self._held_up: set[str] = set()  # pools whose next children must wait

    def __getitem__(self, pool: str) -> PoolRecord:
        return self._records[pool]

    def hand_over(self, progress: Callable[[str], int]) -> dict[str, PoolPast]:
        """Return what the next image must know; ``progress`` returns the number of jobs that a pool has settled."""
        return {pool: self._records[pool].hand_over(progress(pool)) for pool in self.plan.sizes}

    def resume(self, pasts: Mapping[str, PoolPast]) -> None:
        """Go on from the pasts that an earlier image has handed over. Pools that no longer exist are forgotten."""
        for pool in self.plan.sizes:
            if past := pasts.get(pool):
                self._records[pool].resume(past)

    def remove(self, slot: Slot) -> None:
        """Make a pool one child smaller: this slot gets no further one."""
        self.plan.remove(slot)
        self._not_before.pop(slot, None)

    def delay(self, slot: Slot, until: float) -> None:
        """Let the next child of a slot wait."""
        self._not_before[slot] = until

    def hold_up(self, leaving: Mapping[str, int]) -> set[str]:
        """Delay successors in the pools with too many leaving children; return the pools where this is new."""
        crowded = {pool for pool, count in leaving.items() if count >= MAX_LEAVING}
        new, self._held_up = crowded - self._held_up, crowded
        return new

    def claim(self, taken: Collection[Slot], now: float) -> list[Slot]:
        """Return the wanted slots, apart from those taken, that need not wait: the caller starts their children."""
        due = [slot for slot in self.plan.slots() if slot not in taken and self._is_due(slot, now)]
        for slot in due:
            self._not_before.pop(slot, None)
        return due

    def next_at(self) -> float:
        """Return when the next slot need no longer wait."""
        return min((at for slot, at in self._not_before.items() if slot.pool not in self._held_up), default=math.inf)

    def _is_due(self, slot: Slot, now: float) -> bool:
        return self._not_before.get(slot, now) <= now and slot.pool not in self._held_up
