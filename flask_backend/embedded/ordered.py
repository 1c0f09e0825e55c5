"""A queue whose items leave in order, or from anywhere in between."""

from __future__ import annotations

import heapq
from collections.abc import Hashable
from typing import Generic, TypeVar

T = TypeVar("T", bound=Hashable)

Key = tuple[float, int]  # what orders the items, and what decides between equals


class Ordered(Generic[T]):
    """Items by their keys. To take one out costs nothing: what it leaves in the heap is passed over later."""

    def __init__(self) -> None:
        self._entries: dict[T, tuple[Key, int, T]] = {}
        self._heap: list[tuple[Key, int, T]] = []
        self._serial = 0  # so that entries of the same key are told apart without a look at their items

    def __len__(self) -> int:
        return len(self._entries)

    def set(self, item: T, key: Key) -> None:
        """Add an item, or move it."""
        self._serial += 1
        entry = self._entries[item] = (key, self._serial, item)
        heapq.heappush(self._heap, entry)
        if len(self._heap) > 2 * len(self._entries) + 64:  # mostly entries of what is gone
            self._heap = list(self._entries.values())
            heapq.heapify(self._heap)

    def discard(self, item: T) -> None:
        self._entries.pop(item, None)

    def first(self) -> tuple[Key, T] | None:
        """Return the item that comes first, with its key; None if there is none."""
        heap, entries = self._heap, self._entries
        while heap:
            key, _, item = entry = heap[0]
            if entries.get(item) is entry:
                return key, item
            heapq.heappop(heap)
        return None

    def smallest(self, count: int) -> list[T]:
        """Return at most so many items, in order."""
        return [item for _, _, item in heapq.nsmallest(count, self._entries.values())]
