"""A priority queue that also removes items from any position."""

from __future__ import annotations

import heapq
from collections.abc import Hashable
from typing import Generic, TypeVar

T = TypeVar("T", bound=Hashable)

Key = tuple[float, int]  # the order of the items, and the tie-breaker


class Ordered(Generic[T]):
    """Items ordered by key. Removal is O(1): stale heap entries are skipped later."""

    def __init__(self) -> None:
        self._entries: dict[T, tuple[Key, int, T]] = {}
        self._heap: list[tuple[Key, int, T]] = []
        self._serial = 0  # breaks ties between equal keys without comparing items

    def __len__(self) -> int:
        return len(self._entries)

    def set(self, item: T, key: Key) -> None:
        """Add an item, or move it."""
        self._serial += 1
        entry = self._entries[item] = (key, self._serial, item)
        heapq.heappush(self._heap, entry)
        if len(self._heap) > 2 * len(self._entries) + 64:  # mostly stale entries
            self._heap = list(self._entries.values())
            heapq.heapify(self._heap)

    def discard(self, item: T) -> None:
        self._entries.pop(item, None)

    def first(self) -> tuple[Key, T] | None:
        """Return the first item with its key, if any."""
        heap, entries = self._heap, self._entries
        while heap:
            key, _, item = entry = heap[0]
            if entries.get(item) is entry:
                return key, item
            heapq.heappop(heap)
        return None

    def smallest(self, count: int) -> list[T]:
        """Return the first ``count`` items, in order."""
        return [item for _, _, item in heapq.nsmallest(count, self._entries.values())]
