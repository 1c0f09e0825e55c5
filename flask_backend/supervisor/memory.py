"""Which child has too much private memory. Pure: the readings come in as arguments.

A child does not share its private memory with its parent. The RSS of a forked child, and above all its peak RSS, start
at the parent's. Reading private memory walks the page tables, 1 ms for each 200 MB. A cheaper reading, 0.01 ms, bounds
it: a page becomes private with a fault, when it is mapped or, if it was shared, when it is first written.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from flask_backend.system.procfs import PAGE_BYTES

from . import wording

# Faults also count pages that were freed and mapped again, so faults alone cause a reading at most this often.
READ_AGAIN_S = 5.0


@dataclass(frozen=True, slots=True)
class Usage:
    """The readings of a child that are cheap. ``faults`` is None on a system without it."""

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
    """Decides cheaply whether a child exceeds a memory limit."""

    soft_bytes: int | None  # a child with more is recycled
    hard_bytes: int | None  # a child with more than this is killed
    shared_bytes: int | None = None  # the soft limit of all children together, see for_children()

    def for_children(self, count: int) -> MemoryPolicy:
        """Return the policy for ``count`` children: each has an equal part of the memory that they share, if any."""
        return self if self.shared_bytes is None else replace(self, soft_bytes=max(1, self.shared_bytes // count))

    @property
    def ceiling_bytes(self) -> int | None:
        """The lower ceiling, if any."""
        return min((ceiling for ceiling in (self.soft_bytes, self.hard_bytes) if ceiling), default=None)

    def needs_reading(self, usage: Usage, last: Reading | None, now: float) -> bool:
        """Whether a child may be over a ceiling, judging by its usage and its last reading."""
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
    return wording.is_too_large(reading.private_bytes, ceiling, which)
