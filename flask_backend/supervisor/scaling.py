"""Changes the sizes of the pools."""

from __future__ import annotations

from .children import Child, Children
from .pools import Pools
from .states import ChildState


class Scaling:
    def __init__(self, pools: Pools, children: Children) -> None:
        self._pools = pools
        self._plan = pools.plan
        self._children = children

    def move(self, by: int) -> bool:
        """Move the bounds of all pools, and their sizes with them as far as need be; see :meth:`Plan.move`."""
        has_moved = self._plan.move(by)
        for pool, size in self._plan.sizes.items():
            bounds = self._plan.bounds_of(pool)
            for _ in range(bounds.minimum - size):
                self._plan.add(pool)
            for _ in range(size - bounds.maximum):
                self._remove_one(pool)
        return has_moved

    def _remove_one(self, pool: str) -> None:
        """Make a pool one child smaller, where that costs least: its child finishes its job, but gets no successor."""
        children = {child.slot: child for child in self._children if not child.is_old and not child.has_left}
        slots = self._plan.slots_of(pool)
        self._pools.remove(min(slots, key=lambda slot: (_cost(children.get(slot)), -slot.index)))


def _cost(child: Child | None) -> int:
    """Return how much is lost without this child, in the order of a shrink."""
    if child is None or child.was_told_to_end:
        return 0
    if child.state is ChildState.STARTING:
        return 1
    return 2 if child.row.activity is None else 3
