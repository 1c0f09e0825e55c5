"""The outcome of each item of a bulk call, in memory that does not grow with the number of items. Pure."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field

from .errors import BackendError

# The number of reasons that are kept; of further refusals only the index is kept.
MAX_REASONS = 100
_SHOWN_RANGES = 10


class IdRuns:
    """The ids that the server gave to items, by the items' index.

    Stored as runs in which both grow by one, since the server counts ids: 24 bytes for each interruption by another
    producer.
    """

    def __init__(self) -> None:
        self._indexes, self._ids, self._lengths = array("Q"), array("Q"), array("Q")
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[int]:
        """Yield the indexes."""
        for run in self.ranges():
            yield from run

    def add(self, index: int, job_id: int, length: int = 1) -> None:
        """Record the id of an item that comes after all others, or the ids of a run that begins with it."""
        self._count += length
        if self._lengths:
            before = self._lengths[-1]
            if index == self._indexes[-1] + before and job_id == self._ids[-1] + before:
                self._lengths[-1] += length
                return
        self._indexes.append(index)
        self._ids.append(job_id)
        self._lengths.append(length)

    def find(self, index: int) -> int | None:
        run = bisect_right(self._indexes, index) - 1
        if run < 0 or index - self._indexes[run] >= self._lengths[run]:
            return None
        return self._ids[run] + index - self._indexes[run]

    def ranges(self) -> list[range]:
        """Return the indexes as ranges, with adjacent ones merged."""
        merged = Ranges()
        for index, length in zip(self._indexes, self._lengths, strict=True):
            merged.add(index, length)
        return list(merged)


class Ranges:
    """Increasing numbers, stored as ranges."""

    def __init__(self) -> None:
        self._ranges: list[range] = []

    def __iter__(self) -> Iterator[range]:
        return iter(self._ranges)

    def __len__(self) -> int:
        return sum(map(len, self._ranges))

    def add(self, start: int, length: int = 1) -> None:
        if self._ranges and self._ranges[-1].stop == start:
            self._ranges[-1] = range(self._ranges[-1].start, start + length)
        else:
            self._ranges.append(range(start, start + length))


@dataclass(slots=True)
class BulkOutcome:
    """The outcome of each item, by its index.

    ``unknown`` items were sent, but the connection broke before the server's answer. ``unsent_from`` is the index of
    the first item that was not sent, if any.
    """

    accepted: IdRuns = field(default_factory=IdRuns)
    refused: Ranges = field(default_factory=Ranges)
    reasons: dict[int, BackendError] = field(default_factory=dict[int, BackendError])
    unknown: Ranges = field(default_factory=Ranges)
    unsent_from: int | None = None
    failure: BackendError | None = None  # the error that ended the call early

    def refuse(self, index: int, error: BackendError) -> None:
        self.refused.add(index)
        if len(self.reasons) < MAX_REASONS:
            self.reasons[index] = error

    @property
    def is_complete(self) -> bool:
        return not self.refused and self.failure is None

    def __str__(self) -> str:
        parts = [f"accepted: {_shown(self.accepted.ranges())}"]
        if self.refused:
            first = next(iter(self.reasons.items()))
            parts.append(f"refused: {_shown(self.refused)}, at index {first[0]} because {first[1]}")
        if self.unknown:
            why = f" ({self.failure})" if self.failure is not None else ""
            parts.append(f"unknown, because the connection broke{why}: {_shown(self.unknown)}")
        elif self.failure is not None and not self.refused:
            parts.append(str(self.failure))
        if self.unsent_from is not None:
            parts.append(f"not sent: from index {self.unsent_from} on")
        return "; ".join(parts)


def _shown(ranges: Ranges | list[range]) -> str:
    texts = [f"index {run.start}" if len(run) == 1 else f"{run.start} to {run.stop - 1}" for run in ranges]
    if not texts:
        return "none"
    more = f" and {len(texts) - _SHOWN_RANGES} more ranges" if len(texts) > _SHOWN_RANGES else ""
    return ", ".join(texts[:_SHOWN_RANGES]) + more
