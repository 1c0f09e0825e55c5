"""Which children there should be. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

# Far more than one host can use; bounds the shared memory.
MAX_CHILDREN = 2000


@dataclass(frozen=True, slots=True)
class Pool:
    """So many children that do the same."""

    name: str
    size: int


@dataclass(frozen=True, slots=True, order=True)
class Slot:
    """A place in the plan, which outlives the children that fill it one after another."""

    pool: str
    index: int


class Plan:
    """The wanted sizes of all pools."""

    def __init__(self, pools: list[Pool], most: int = MAX_CHILDREN) -> None:
        """Plan the pools, which may grow until there are ``most`` children, or MAX_CHILDREN if that is less."""
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
        """Return how many children a pool is to have; none if there is no such pool any more."""
        return self._sizes.get(pool, 0)

    def slots(self) -> Iterator[Slot]:
        """All wanted slots, one of each pool in turn, so that no pool waits for another's children at the start."""
        for index in range(max(self._sizes.values(), default=0)):
            for name, size in self._sizes.items():
                if index < size:
                    yield Slot(name, index)

    def wants(self, slot: Slot) -> bool:
        return slot.index < self._sizes[slot.pool]

    def resize(self, by: int) -> bool:
        """Add ``by`` to the size of each pool, none of which gets smaller than one.

        Returns False, and changes nothing, where there would be too many children.
        """
        sizes = {name: max(1, size + by) for name, size in self._sizes.items()}
        if by > 0 and sum(sizes.values()) > self.most:
            return False
        self._sizes = sizes
        return True
