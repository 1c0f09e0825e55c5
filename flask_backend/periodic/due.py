"""What is due: the decisions of a tick. Pure; the time comes in as an argument."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from flask_backend.errors import RegistrationError
from flask_backend.system.loggers import get_logger

from .token import CLOCK_ERROR_S, LOOK_EVERY_S, Entry, Token

logger = get_logger("flask_backend.periodic")


@dataclass(frozen=True, slots=True)
class Due:
    """An entry with slots to deal with: ``slot`` is to be scheduled, if any, and ``after`` is the entry without it."""

    slot: int | None
    after: Entry

    def scheduled(self, job: int, uid: str) -> Entry:
        """Return the entry once the slot is scheduled, as this job."""
        return replace(self.after, ran=self.slot, job=job, uid=uid, scheduled=self.after.scheduled + 1)

    def skipped(self) -> Entry:
        return replace(self.after, skipped=self.after.skipped + 1)

    def missed(self) -> Entry:
        return replace(self.after, missed=self.after.missed + 1)


def find_due(token: Token, now: float) -> list[Due]:
    """Return what is due, the earliest slot first."""
    found = [due for entry in token if (due := _due(entry, now)) is not None]
    return sorted(found, key=lambda due: (due.slot or 0, due.after.definition.name))


def _due(entry: Entry, now: float) -> Due | None:
    definition = entry.definition
    if entry.retired is not None:
        return None
    if entry.last > now + CLOCK_ERROR_S:
        logger.warning(
            "the periodic task %s of %s was scheduled up to %d s ahead of this clock: it was set back, and its slots "
            "count from now on; some may be scheduled twice",
            definition.name,
            definition.queue,
            entry.last - now,
        )
        return Due(None, replace(entry, last=int(now)))
    try:
        passed = definition.when.passed(entry.last, now)
    except (RegistrationError, StopIteration, LookupError, ValueError, OSError) as error:
        # Another release wrote it, on a machine with cronsim or with newer time zones: leave it to one of those.
        logger.warning("cannot tell when the periodic task %s is due: %s", definition.name, error)
        return None
    if passed is None:
        return None
    after = replace(entry, last=passed.newest)
    if entry.is_paused:
        return Due(None, after)
    is_late = definition.most_late_s is not None and now - passed.newest > definition.most_late_s
    after = replace(after, missed=entry.missed + passed.count - (0 if is_late else 1))
    return Due(None if is_late else passed.newest, after)


def next_slot(entry: Entry) -> int | None:
    """Return the next slot of an entry; None if it is not scheduled, or cannot be computed here."""
    if not entry.is_active:
        return None
    try:
        return entry.definition.when.next_after(entry.last)
    except (RegistrationError, StopIteration, LookupError, ValueError, OSError):
        return None


def look_at(token: Token, now: float) -> float:
    """Return when the token is to be looked at again: at the next slot, and within a minute."""
    return min((now + LOOK_EVERY_S, *_slots(token)))


def _slots(token: Token) -> Iterator[int]:
    for entry in token:
        if (slot := next_slot(entry)) is not None:
            yield slot
