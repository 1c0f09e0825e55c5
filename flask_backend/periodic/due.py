"""What is due: the decisions of a tick. Pure; the time comes in as an argument."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache

from flask_backend.errors import RegistrationError
from flask_backend.system.loggers import get_logger

from . import wording
from .token import CLOCK_ERROR_S, LOOK_EVERY_S, Entry, Token
from .when import Cron, Every

logger = get_logger("flask_backend.periodic")

# Slots that passed no longer ago, in seconds, are scheduled one by one: in that time another scheduler takes over from
# one that was killed. For earlier ones, one call is made.
PROMPT_S = 10


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


def find_due(token: Token, now: float) -> Iterator[Due]:
    """Yield what is due, the earliest slot first."""
    found = [(slot, entry.definition.name, entry) for entry in token if (slot := _first(entry, now)) is not None]
    for _, _, entry in sorted(found, key=lambda each: each[:2]):
        yield _set_back(entry, now) if _is_ahead(entry, now) else _due(entry, now)


def _first(entry: Entry, now: float) -> int | None:
    """Return the first slot of an entry that is to be dealt with now, if there is one."""
    if _is_ahead(entry, now):
        return 0
    slot = next_slot(entry)
    return slot if slot is not None and slot <= now else None


def _is_ahead(entry: Entry, now: float) -> bool:
    return entry.retired is None and entry.last > now + CLOCK_ERROR_S


def _set_back(entry: Entry, now: float) -> Due:
    definition = entry.definition
    logger.warning(wording.AHEAD, definition.name, definition.queue, entry.last - now)
    return Due(None, replace(entry, last=int(now)))


def _due(entry: Entry, now: float) -> Due:
    when, most_late_s = entry.definition.when, entry.definition.most_late_s
    prompt = when.next_after(max(entry.last, math.ceil(now - PROMPT_S) - 1))
    passed = when.passed(entry.last, min(prompt, now))
    assert passed is not None  # noqa: S101  # our own invariant: its next slot is not later than now
    is_late = most_late_s is not None and now - passed.newest >= most_late_s + 1  # milliseconds are not late
    after = replace(entry, last=passed.newest, missed=entry.missed + passed.count - (0 if is_late else 1))
    return Due(None if is_late else passed.newest, after)


def next_slot(entry: Entry) -> int | None:
    """Return the next slot of an entry; None if it is not scheduled, or cannot be computed here."""
    if not entry.is_active:
        return None
    try:
        return _next_after(entry.definition.when, entry.last)
    except (RegistrationError, StopIteration, LookupError, ValueError, OSError) as error:
        # Another release wrote it, on a machine with cronsim or with newer time zones: leave it to one of those.
        logger.debug(wording.CANNOT_TELL, entry.definition.name, error)
        return None


@lru_cache(maxsize=4096)  # each tick asks for all, and changes one
def _next_after(when: Cron | Every, last: int) -> int:
    return when.next_after(last)


def look_at(token: Token, now: float) -> float:
    """Return when the token is to be looked at again: at the next slot, and within a minute."""
    return min((now + LOOK_EVERY_S, *_slots(token)))


def _slots(token: Token) -> Iterator[int]:
    for entry in token:
        if (slot := next_slot(entry)) is not None:
            yield slot
