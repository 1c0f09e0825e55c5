"""How often a job has crashed its worker. Pure.

The counters of the broker do not distinguish a release after a crash from one after a failure, so each supervisor
keeps its own count.
"""

from __future__ import annotations

from dataclasses import dataclass

# A job not seen for this long is cured, or its number belongs to another job.
FORGOTTEN_AFTER_S = 3600.0
MAX_REMEMBERED = 10_000


@dataclass(slots=True)
class _Record:
    count: int
    last: float


class CrashCounts:
    def __init__(self) -> None:
        self._records: dict[tuple[str, int], _Record] = {}  # in the order last seen

    def note(self, pool: str, job_id: int, now: float) -> int:
        """Record one more crash; return how many the job has caused so far."""
        record = self._records.pop((pool, job_id), None)
        if record is None or now - record.last > FORGOTTEN_AFTER_S:
            record = _Record(0, now)
        record.count += 1
        record.last = now
        self._records[pool, job_id] = record
        while len(self._records) > MAX_REMEMBERED:
            del self._records[next(iter(self._records))]
        return record.count

    def forget(self, pool: str, job_id: int) -> None:
        self._records.pop((pool, job_id), None)
