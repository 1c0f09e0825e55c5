"""The wanted children. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import count, zip_longest

# Far more than one host can use; bounds the shared memory.
MAX_CHILDREN = 2000


@dataclass(frozen=True, slots=True)
class Bounds:
    """How many children a pool has, at least and at most. If both are the same, the number is fixed."""

    minimum: int
    maximum: int

    @classmethod
    def fixed(cls, size: int) -> Bounds:
        return cls(size, size)

    def __str__(self) -> str:
        return str(self.minimum) if self.is_fixed else f"{self.minimum}..{self.maximum}"

    @property
    def is_fixed(self) -> bool:
        return self.minimum == self.maximum

    def moved(self, by: int) -> Bounds:
        """Return both bounds moved ``by`` children; each is at least 1."""
        return Bounds(max(1, self.minimum + by), max(1, self.maximum + by))


@dataclass(frozen=True, slots=True)
class Pool:
    """Children that do the same work, and how many of them there may be."""

    name: str
    bounds: Bounds


@dataclass(frozen=True, slots=True, order=True)
class Slot:
    """A place in the plan. It outlives the children that fill it one after another."""

    pool: str
    index: int


@dataclass(frozen=True, slots=True)
class PlannedSize:
    """The size of a pool that one image of the supervisor hands over to the next, see :meth:`Plan.resume`."""

    configured: Bounds
    moved_by: int
    size: int


class _Share:
    """One pool's share of the plan. ``indexes`` are those of its slots, in the order in which they were added."""

    def __init__(self, configured: Bounds) -> None:
        self.configured = configured
        self.moved_by = 0
        self.indexes = dict.fromkeys(range(configured.minimum))

    @property
    def bounds(self) -> Bounds:
        return self.configured.moved(self.moved_by)

    def add(self) -> None:
        self.indexes[next(index for index in count() if index not in self.indexes)] = None


class Plan:
    """The wanted slots of all pools. Each pool begins with its minimum."""

    def __init__(self, pools: list[Pool], most: int = MAX_CHILDREN) -> None:
        """Plan the pools. Later their bounds move only as far as ``most`` or MAX_CHILDREN children in all allow."""
        self._shares = {pool.name: _Share(pool.bounds) for pool in pools}
        self.most = min(most, MAX_CHILDREN)

    def __str__(self) -> str:
        return ", ".join(
            f"{name}={len(share.indexes)}" + ("" if share.bounds.is_fixed else f" ({share.bounds})")
            for name, share in self._shares.items()
        )

    @property
    def sizes(self) -> dict[str, int]:
        """The wanted number of children of each pool."""
        return {name: len(share.indexes) for name, share in self._shares.items()}

    def shown(self) -> Iterator[tuple[str, int, int, int]]:
        """Yield each pool with its size, its minimum and its maximum."""
        for name, share in self._shares.items():
            bounds = share.bounds
            yield name, len(share.indexes), bounds.minimum, bounds.maximum

    @property
    def total(self) -> int:
        return sum(len(share.indexes) for share in self._shares.values())

    @property
    def maximum(self) -> int:
        """How many children there may be in all pools."""
        return self._maximum(0)

    def size_of(self, pool: str) -> int:
        """Return the wanted size of a pool; 0 if the pool no longer exists."""
        return len(share.indexes) if (share := self._shares.get(pool)) else 0

    def bounds_of(self, pool: str) -> Bounds:
        return self._shares[pool].bounds

    def slots(self) -> Iterator[Slot]:
        """All wanted slots, one of each pool in turn, so that at the start no pool waits for another."""
        of_each = ([Slot(name, index) for index in share.indexes] for name, share in self._shares.items())
        for row in zip_longest(*of_each):
            yield from filter(None, row)

    def slots_of(self, pool: str) -> list[Slot]:
        return [Slot(pool, index) for index in self._shares[pool].indexes]

    def wants(self, slot: Slot) -> bool:
        return slot.index in self._shares[slot.pool].indexes

    def add(self, pool: str) -> None:
        """Want one more child in a pool: the first slot that is free."""
        self._shares[pool].add()

    def remove(self, slot: Slot) -> None:
        del self._shares[slot.pool].indexes[slot.index]

    def move(self, by: int) -> bool:
        """Move the bounds of each pool, up or down; each keeps at least one child. The sizes stay as they are.

        Returns False, without a change, if there could be too many children.
        """
        if by > 0 and self._maximum(by) > self.most:
            return False
        for share in self._shares.values():
            share.moved_by = max(share.moved_by + by, 1 - share.configured.maximum)
        return True

    def hand_over(self) -> dict[str, PlannedSize]:
        """Return what :meth:`resume` needs."""
        return {
            name: PlannedSize(share.configured, share.moved_by, len(share.indexes))
            for name, share in self._shares.items()
        }

    def resume(self, sizes: Mapping[str, PlannedSize]) -> None:
        """Go on with the sizes of an earlier image, as far as the bounds allow.

        Bounds that were moved stay so, unless others are configured now, or there could be too many children.
        """
        for name, share in self._shares.items():
            earlier = sizes.get(name)
            if earlier is None:
                continue
            if earlier.configured == share.configured:
                share.moved_by = earlier.moved_by
                if self.maximum > self.most:
                    share.moved_by = 0
            bounds = share.bounds
            share.indexes = dict.fromkeys(range(min(max(earlier.size, bounds.minimum), bounds.maximum)))

    def _maximum(self, by: int) -> int:
        """Return how many children there could be in all if the bounds moved ``by``."""
        return sum(share.bounds.moved(by).maximum for share in self._shares.values())
