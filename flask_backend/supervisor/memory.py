"""Which child has too much private memory. Pure: the readings come in as arguments.

Private memory is what a child does not share with its parent: a forked child's RSS, and its peak above all, start at
the parent's. Reading it walks the page tables, 1 ms for each 200 MB. What is asked first, in 0.01 ms, bounds it: a page
becomes private with a fault, when it is mapped or, if it was shared, when it is first written.
"""

from __future__ import annotations

from dataclasses import dataclass

from flask_backend.system.procfs import PAGE_BYTES

# Faults also tell of pages that were given back and taken anew: not more often than this because of them alone.
READ_AGAIN_S = 5.0


@dataclass(frozen=True, slots=True)
class Usage:
    """What is cheap to ask of a child. ``faults`` is None where the system does not tell it."""

    rss_bytes: int
    faults: int | None


@dataclass(frozen=True, slots=True)
class Reading:
    """One child's private memory, and its usage at that time."""

    at: float
    private_bytes: int
    usage: Usage


@dataclass(frozen=True, slots=True)
class MemoryPolicy:
    """Compares children with the ceilings that there are, as cheaply as can be."""

    soft_bytes: int | None  # a child with more is recycled
    hard_bytes: int | None  # and one with more than this is killed

    @property
    def ceiling_bytes(self) -> int | None:
        """The lower ceiling, if there is any."""
        return min((ceiling for ceiling in (self.soft_bytes, self.hard_bytes) if ceiling), default=None)

    def needs_reading(self, usage: Usage, last: Reading | None, now: float) -> bool:
        """Say whether a child may be over a ceiling, by its usage and by what was last read of it."""
        ceiling = self.ceiling_bytes
        if ceiling is None or usage.rss_bytes <= ceiling:
            return False
        if last is None:
            return True
        at_most = last.private_bytes + max(0, usage.rss_bytes - last.usage.rss_bytes)
        if at_most > ceiling:
            return True
        if now - last.at < READ_AGAIN_S:
            return False
        if usage.faults is None or last.usage.faults is None:
            return True
        return at_most + (usage.faults - last.usage.faults) * PAGE_BYTES > ceiling

    def reason_to_kill(self, reading: Reading) -> str | None:
        return _over(self.hard_bytes, reading, "the hard ceiling of ")

    def reason_to_recycle(self, reading: Reading) -> str | None:
        return _over(self.soft_bytes, reading)


def _over(ceiling: int | None, reading: Reading, which: str = "") -> str | None:
    if not ceiling or reading.private_bytes <= ceiling:
        return None
    return f"its private memory is {reading.private_bytes >> 20} MiB, over {which}{ceiling >> 20} MiB"
