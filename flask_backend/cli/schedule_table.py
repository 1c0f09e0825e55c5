"""The table of the periodic tasks of a queue."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from flask_backend.zones import load_zone

from .output import Column, show_seconds

if TYPE_CHECKING:
    from flask_backend.operations.schedules import Schedule, ScheduledQueue


def table_of(queue: ScheduledQueue) -> tuple[list[Column], list[list[str]]]:
    """Return the columns and the rows."""
    columns = [Column("name", least=24), Column("when"), Column("policy")]
    columns += [Column(title) for title in ("last", "next")]
    columns += [Column(title, is_number=True) for title in ("made", "missed", "skipped")]
    rows = [
        [
            each.name,
            f"{each.words} ({each.timezone})",
            _policy(each),
            _show_time(each.last, each.timezone),
            "retired" if each.is_retired else "paused" if each.is_paused else _show_time(each.next, each.timezone),
            *(f"{number:,}" for number in (each.scheduled, each.missed, each.skipped)),
        ]
        for each in queue.schedules
    ]
    return columns, rows


def styles_of(queue: ScheduledQueue) -> list[dict[str, Any]]:
    """Return the styles of the rows."""
    return [
        {"dim": True} if each.is_retired else {"fg": "yellow"} if each.is_paused else {} for each in queue.schedules
    ]


def _policy(schedule: Schedule) -> str:
    parts = [] if schedule.overlap else ["no overlap"]
    parts += [] if schedule.catch_up == "once" else [f"catch up {schedule.catch_up}"]
    parts += [] if schedule.grace_s is None else [f"grace {show_seconds(schedule.grace_s)}"]
    return ", ".join(parts) or "-"


def _show_time(at: int | None, zone: str) -> str:
    """Return a time in a time zone, without its year or its date if that is the one of today there."""
    if at is None:
        return "-"
    try:
        here = load_zone(zone)
    except (LookupError, ValueError, OSError):  # newer than this machine's database
        here = UTC
    local, now = datetime.fromtimestamp(at, here), datetime.fromtimestamp(time.time(), here)
    if local.date() == now.date():
        return local.strftime("%H:%M:%S")
    return local.strftime("%m-%d %H:%M" if local.year == now.year else "%Y-%m-%d %H:%M")
