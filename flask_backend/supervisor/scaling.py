"""Changes the sizes of the pools: `demand` decides when, this module which child goes."""

from __future__ import annotations

from collections import defaultdict

from flask_backend.system.loggers import get_logger

from . import wording
from .children import Child, Children
from .demand import Demand, ScalingPolicy, Step
from .observer import Observer
from .plan import Slot
from .pools import Pools
from .states import ChildState

logger = get_logger("flask_backend.supervisor")


# How long a pool stays as it is after a further child could not start; doubled while that goes on.
HOLD_MIN_S, HOLD_MAX_S = 30.0, 600.0


class Scaling:
    def __init__(self, pools: Pools, children: Children, observer: Observer) -> None:
        self._pools = pools
        self._plan = pools.plan
        self._children = children
        self._observer = observer
        self._policies: defaultdict[str, ScalingPolicy] = defaultdict(ScalingPolicy)
        self._holds_s: dict[str, float] = {}  # the last wait of each pool whose further child could not start

    def scale(self, now: float) -> None:
        """Act on what the observer has seen since the last turn: a pool changes by one child at a time."""
        self._observer.keep(now)
        crew = None
        for pool, at, demand in self._observer.answers():
            crew = crew or self._crew()
            if step := self._next_step(pool, at, demand, crew):
                self._take(pool, demand, step)
        self._observer.note_silence(now)

    def stop(self) -> None:
        """Look at the queues no longer, until the next call of :meth:`scale`."""
        self._observer.stop()

    def move(self, by: int) -> bool:
        """Move the bounds of all pools, and their sizes with them as far as they must; see :meth:`Plan.move`."""
        has_moved = self._plan.move(by)
        for pool, size in self._plan.sizes.items():
            bounds = self._plan.bounds_of(pool)
            for _ in range(bounds.minimum - size):
                self._plan.add(pool)
            for _ in range(size - bounds.maximum):
                self._remove_one(pool)
        return has_moved

    def drop(self, slot: Slot, now: float) -> bool:
        """Do without a child that could not start, if its pool has more than the minimum; return whether it has.

        The others can work, perhaps because they were first: a database may not allow more connections. Such deaths are
        not counted by the breaker, which would stop them too.
        """
        pool = slot.pool
        if self._plan.size_of(pool) <= self._plan.bounds_of(pool).minimum:
            return False
        self._pools.remove(slot)
        self._holds_s[pool] = hold_s = min(HOLD_MAX_S, 2 * self._holds_s.get(pool, HOLD_MIN_S / 2))
        self._policies[pool] = ScalingPolicy(grow_from=now + hold_s)
        return True

    def note_ready(self, pool: str) -> None:
        """Record that a child of a pool could start."""
        self._holds_s.pop(pool, None)

    def _crew(self) -> dict[Slot, Child]:
        """Return the children of the newest code that have not left."""
        return {child.slot: child for child in self._children if not child.is_old and not child.has_left}

    def _next_step(self, pool: str, at: float, demand: Demand, crew: dict[Slot, Child]) -> Step | None:
        children = [crew.get(slot) for slot in self._plan.slots_of(pool)]
        idle = sum(child is not None and _is_idle(child) for child in children)
        is_complete = all(child is not None and _can_work(child) for child in children)
        return self._policies[pool].step(at, demand, idle, is_complete=is_complete)

    def _take(self, pool: str, demand: Demand, step: Step) -> None:
        """Take a step, if the bounds allow it."""
        size, bounds = self._plan.size_of(pool) + step.by, self._plan.bounds_of(pool)
        if not bounds.minimum <= size <= bounds.maximum:
            return
        if step.by > 0:
            self._plan.add(pool)
            logger.info(wording.GROWS, pool, size, bounds, demand.ready, step.after_s)
        else:
            self._remove_one(pool)
            logger.info(wording.SHRINKS, pool, size, bounds, step.after_s)
        del self._policies[pool]  # whether a further step is needed is seen only after this one

    def _remove_one(self, pool: str) -> None:
        """Make a pool one child smaller, where that costs least: its child finishes its job, but gets no successor."""
        crew = self._crew()
        slots = self._plan.slots_of(pool)
        self._pools.remove(min(slots, key=lambda slot: (_cost(crew.get(slot)), -slot.index)))


def _is_idle(child: Child) -> bool:
    return child.state is ChildState.READY and child.row.activity is None and not child.row.is_limited


def _can_work(child: Child) -> bool:
    """Whether a child works, or finishes its last job before it is replaced."""
    return child.state is ChildState.DRAINING or (child.state is ChildState.READY and not child.row.is_away)


def _cost(child: Child | None) -> int:
    """Return how much is lost without this child, in the order of a shrink."""
    if child is None or child.was_told_to_end:
        return 0
    if child.state is ChildState.STARTING:
        return 1
    return 2 if child.row.activity is None else 3
