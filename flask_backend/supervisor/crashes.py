"""How often a job has crashed its worker. Pure.

The counters of the broker do not distinguish a release after a crash from one after a failure, so each supervisor
keeps its own count.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

# A job not seen for this long is cured, or its number belongs to another job.
FORGOTTEN_AFTER_S = 3600.0
MAX_REMEMBERED = 10_000


@dataclass(slots=True)
class CrashRecord:
    """How often a job has crashed its worker, and when it did so last, on the monotonic clock."""

    pool: str
    job_id: int
    count: int
    last: float


class CrashCounts:
    def __init__(self) -> None:
        self._records: dict[tuple[str, int], CrashRecord] = {}  # in the order last seen

    @property
    def records(self) -> list[CrashRecord]:
        """All records, in the order last seen, for :meth:`resume` after a reload."""
        return list(self._records.values())

    def resume(self, records: Iterable[CrashRecord]) -> None:
        """Go on from the records of an earlier image of this process."""
        self._records.update({(record.pool, record.job_id): record for record in records})

    def note(self, pool: str, job_id: int, now: float) -> int:
        """Record one more crash; return how many the job has caused so far."""
        record = self._records.pop((pool, job_id), None)
        if record is None or now - record.last > FORGOTTEN_AFTER_S:
            record = CrashRecord(pool, job_id, 0, now)
        record.count += 1
        record.last = now
        self._records[pool, job_id] = record
        while len(self._records) > MAX_REMEMBERED:
            del self._records[next(iter(self._records))]
        return record.count

    def forget(self, pool: str, job_id: int) -> None:
        self._records.pop((pool, job_id), None)
