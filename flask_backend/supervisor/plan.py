"""The wanted children. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

# Far more than one host can use; bounds the shared memory.
MAX_CHILDREN = 2000


@dataclass(frozen=True, slots=True)
class Pool:
    """A number of children that do the same work."""

    name: str
    size: int


@dataclass(frozen=True, slots=True, order=True)
class Slot:
    """A place in the plan. It outlives the children that fill it one after another."""

    pool: str
    index: int


class Plan:
    """The wanted sizes of all pools."""

    def __init__(self, pools: list[Pool], most: int = MAX_CHILDREN) -> None:
        """Plan the pools, which may grow to ``most`` children in all, or to MAX_CHILDREN if that is less."""
        self._sizes = {pool.name: pool.size for pool in pools}
        self.most = min(most, MAX_CHILDREN)
        if self.total > MAX_CHILDREN:
            raise ValueError(f"{self.total} workers are too many: at most {MAX_CHILDREN}")

    def __str__(self) -> str:
        return ", ".join(f"{name}={size}" for name, size in self._sizes.items())

    @property
    def pools(self) -> list[Pool]:
        return [Pool(name, size) for name, size in self._sizes.items()]

    @property
    def total(self) -> int:
        return sum(self._sizes.values())

    def size_of(self, pool: str) -> int:
        """Return the wanted size of a pool; 0 if the pool no longer exists."""
        return self._sizes.get(pool, 0)

    def slots(self) -> Iterator[Slot]:
        """All wanted slots, one of each pool in turn, so that at the start no pool waits for another."""
        for index in range(max(self._sizes.values(), default=0)):
            for name, size in self._sizes.items():
                if index < size:
                    yield Slot(name, index)

    def wants(self, slot: Slot) -> bool:
        return slot.index < self._sizes[slot.pool]

    def resize(self, by: int) -> bool:
        """Add ``by`` to the size of each pool; every pool keeps at least one child.

        Returns False, without a change, if there would be too many children.
        """
        sizes = {name: max(1, size + by) for name, size in self._sizes.items()}
        if by > 0 and sum(sizes.values()) > self.most:
            return False
        self._sizes = sizes
        return True
