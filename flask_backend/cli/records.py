"""Jobs and queues as dictionaries, for --json."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flask_backend.broker.stats import JobRecord, Queue
    from flask_backend.operations.console import Rates


def attempts_made(record: JobRecord) -> int:
    """Return how often a job was tried, including a running attempt."""
    return record.attempts.number - (record.state != "reserved")


def job_as_dict(address: str, record: JobRecord) -> dict[str, Any]:
    told = asdict(record)
    return {"broker": address, "job": told.pop("id"), **told, "attempts": attempts_made(record)}


def queue_as_dict(
    address: str, queue: Queue, next_wait_s: int | None = None, rates: Rates | None = None
) -> dict[str, Any]:
    told = asdict(queue)
    return {
        "broker": address,
        "queue": told.pop("name"),
        **told,
        "next_wait_s": next_wait_s,
        "put_per_s": round(rates.put, 3) if rates else None,
        "deleted_per_s": round(rates.deleted, 3) if rates else None,
    }
