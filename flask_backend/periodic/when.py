"""When a periodic task is due: cron expressions and intervals. Pure.

A slot is a time at which a task is due: whole seconds since the epoch. All slots of an expression are the same whenever
one begins to look, so that any scheduler finds them again after the death of another.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from itertools import islice
from typing import TYPE_CHECKING

from flask_backend.durations import MAX_SECONDS
from flask_backend.errors import RegistrationError
from flask_backend.message import show_value
from flask_backend.zones import load_zone

if TYPE_CHECKING:
    from cronsim import CronSim

ALIASES = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
}
# Other names that crontab(5) has for two of them.
_SYNONYMS = {"@midnight": "@daily", "@annually": "@yearly"}
_FORMS = f"expected five fields, such as '*/5 * * * *', or one of {', '.join(ALIASES)}"
_FIELDS = ("minute", "hour", "day of the month", "month", "day of the week")
_RANGES = (60, 24, 31, 12, 7)
NOT_INSTALLED = (
    "cron expressions need cronsim: install it with `pip install 'flask-backend[cron]'`, or use every=, which does not "
    "need it"
)
# cronsim writes 31th.
_WRONG_ORDINAL = re.compile(r"(?<=[02-9])([123])th\b")
_ORDINALS = {"1": "st", "2": "nd", "3": "rd"}
# After a long time without a scheduler, slots are counted up to this number: each takes some microseconds.
MAX_COUNTED = 5000
# How far back the newest slot is looked for if there are more, in seconds: the first of these with a slot.
_WINDOWS_S = (3600, 86400, 32 * 86400, 367 * 86400, 9 * 366 * 86400)


@dataclass(frozen=True, slots=True)
class Passed:
    """The slots of an interval of time: the newest one, and their number.

    Those of a cron expression are counted up to :data:`MAX_COUNTED`.
    """

    newest: int
    count: int


@dataclass(frozen=True, slots=True)
class Every:
    """Due at each multiple of ``seconds`` since the epoch: every=3600 at each full hour of UTC."""

    seconds: int

    def next_after(self, after: float) -> int:
        """Return the first slot after a time."""
        return int(after // self.seconds + 1) * self.seconds

    def passed(self, after: float, until: float) -> Passed | None:
        """Return the slots later than ``after``, and not later than ``until``, if there are any."""
        newest = int(until // self.seconds) * self.seconds
        count = (newest - int(after // self.seconds) * self.seconds) // self.seconds
        return Passed(newest, count) if count > 0 else None

    def words(self) -> str:
        """Return it in words."""
        for unit, size in (("day", 86400), ("hour", 3600), ("minute", 60), ("second", 1)):
            if self.seconds % size == 0:
                count = self.seconds // size
                return f"Every {unit}" if count == 1 else f"Every {count:,} {unit}s"
        raise AssertionError  # each number is a multiple of 1

    def __str__(self) -> str:
        return f"every {self.seconds} s"

    @classmethod
    def of(cls, every: object) -> Every:
        """Return the interval; raise :exc:`RegistrationError` unless it is whole seconds, at least one."""
        seconds = whole_or_none(every)
        if seconds is None or seconds < 1:
            raise RegistrationError(
                f"every={show_value(every)} is not an interval; expected whole seconds, at least 1, or a timedelta"
            )
        return cls(seconds)


@dataclass(frozen=True, slots=True)
class Cron:
    """Due at the times of a cron expression in a time zone, with the rules of Debian's cron for daylight saving time.

    Raises :exc:`RegistrationError` for an invalid expression, and if cronsim is not installed.
    """

    expression: str
    zone: str

    def next_after(self, after: float) -> int:
        """Return the first slot after a time."""
        return next(self._slots(after))

    def passed(self, after: float, until: float) -> Passed | None:
        """Return the slots later than ``after``, and not later than ``until``, if there are any."""
        slots = list(islice(self._between(after, until), MAX_COUNTED))
        if len(slots) < MAX_COUNTED:
            return Passed(slots[-1], len(slots)) if slots else None
        for window_s in _WINDOWS_S:
            newest = max(self._between(max(after, until - window_s), until), default=None)
            if newest is not None:
                return Passed(newest, MAX_COUNTED)
        return Passed(slots[-1], MAX_COUNTED)

    def words(self) -> str:
        """Return it in words; where cronsim is not installed, return the expression itself."""
        try:
            words = _simulate(_fields_of(self.expression), datetime.now(UTC)).explain()
        except RegistrationError:
            return self.expression
        return _WRONG_ORDINAL.sub(lambda found: found[1] + _ORDINALS[found[1]], words)

    def __str__(self) -> str:
        return self.expression

    @classmethod
    def of(cls, expression: object, zone: str) -> Cron:
        """Return a checked expression; warn about a step that is larger than its field."""
        if not isinstance(expression, str):
            raise RegistrationError(f"{show_value(expression)} is not a cron expression; {_FORMS}")
        cron = cls(" ".join(expression.split()), zone)
        for name, size, field in zip(_FIELDS, _RANGES, _fields_of(cron.expression).split(), strict=True):
            _warn_of_step(cron.expression, name, size, field)
        try:
            cron.next_after(datetime.now(UTC).timestamp())
        except StopIteration:
            raise RegistrationError(f"{show_value(expression)} never matches a date") from None
        return cron

    def _between(self, after: float, until: float) -> Iterator[int]:
        for slot in self._slots(after):
            if slot > until:
                return
            yield slot

    def _slots(self, after: float) -> Iterator[int]:
        fields = _fields_of(self.expression)
        minute, hour, *_ = fields.split()
        start, zone = datetime.fromtimestamp(after // 1, UTC), load_zone(self.zone)
        if minute.startswith("*") or hour.startswith("*"):
            slots = _slots_by_the_clock(fields, start, zone)
        else:  # cronsim moves or drops those in the hours that are left out or come twice
            slots = (int(each.timestamp()) for each in _simulate(fields, start.astimezone(zone)))
        # Begun in the second of two equal hours, cronsim also returns a slot of the first one.
        return (slot for slot in slots if slot > after)


def whole_or_none(value: object) -> int | None:
    """Return whole seconds, from a number or a ``timedelta``; None for anything else."""
    match value:
        case timedelta():
            seconds: float = value.total_seconds()
        case int() | float() if not isinstance(value, bool):
            seconds = value
        case _:
            return None
    return int(seconds) if 0 <= seconds <= MAX_SECONDS and seconds == seconds // 1 else None


def _slots_by_the_clock(fields: str, start: datetime, zone: tzinfo) -> Iterator[int]:
    """Yield each moment at which a clock on the wall matches: such expressions follow the clock in both nights.

    cronsim does the same, but loses slots where a clock is changed by half an hour. So it gets local times without a
    zone, up to the next change of the clock.
    """
    while True:
        offset = _offset(start, zone)
        for local in _simulate(fields, start.astimezone(zone).replace(tzinfo=None)):
            slot = (local - offset).replace(tzinfo=UTC)
            if _offset(slot, zone) != offset or _changes_between(start, slot, zone):
                # Go on from the second before the clock is changed: a slot may be at that very moment.
                start = _first_change(start, slot, zone)
                offset = _offset(start, zone)
                if _matches(fields, start.astimezone(zone).replace(tzinfo=None)):
                    yield int(start.timestamp())
                break
            start = slot
            yield int(slot.timestamp())
        else:
            return


def _changes_between(start: datetime, end: datetime, zone: tzinfo) -> bool:
    """Whether the offset changes in between and back again."""
    days = range(1, (end - start).days, 20)  # no zone has changed back sooner
    return any(_offset(start + timedelta(days), zone) != _offset(start, zone) for days in days)


def _first_change(start: datetime, end: datetime, zone: tzinfo) -> datetime:
    """Return the first second in between with another offset than the start."""
    offset = _offset(start, zone)
    step = timedelta(20)
    while start + step < end and _offset(start + step, zone) == offset:
        start += step
    end = min(end, start + step)
    while end - start > timedelta(seconds=1):
        middle = (start + (end - start) / 2).replace(microsecond=0)
        start, end = (middle, end) if _offset(middle, zone) == offset else (start, middle)
    return end


def _offset(at: datetime, zone: tzinfo) -> timedelta:
    return at.astimezone(zone).utcoffset() or timedelta()


def _matches(fields: str, local: datetime) -> bool:
    return next(_simulate(fields, local - timedelta(seconds=1))) == local


def _fields_of(expression: str) -> str:
    """Return the five fields of an expression or an alias."""
    if expression in ALIASES:
        return ALIASES[expression]
    hint = f": write {_SYNONYMS[expression]}" if expression in _SYNONYMS else ""
    if len(expression.split()) == len(_FIELDS) + 1:
        hint = " (a field of seconds is not supported; use every= for intervals of seconds)"
    if expression.startswith("@") or len(expression.split()) != len(_FIELDS):
        raise RegistrationError(f"{show_value(expression)} is not a cron expression; {_FORMS}{hint}")
    return expression


def _simulate(fields: str, start: datetime) -> CronSim:
    try:
        from cronsim import CronSim, CronSimError
    except ImportError:
        raise RegistrationError(NOT_INSTALLED) from None
    try:
        return CronSim(fields, start)
    except CronSimError as error:
        raise RegistrationError(f"{show_value(fields)} is not a cron expression ({error}); {_FORMS}") from error


def _warn_of_step(expression: str, name: str, size: int, field: str) -> None:
    for part in field.split(","):
        _, _, step = part.partition("/")
        if step.isdecimal() and int(step) >= size:
            warnings.warn(
                f"the step /{step} in the {name} of {expression!r} is not less than the {size} values of that field: "
                f"only the first one matches. For such an interval use every=",
                stacklevel=5,
            )
