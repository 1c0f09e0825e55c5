"""The token of a queue: one job, in the tube ``QUEUE.schedule``, whose body is the state of all its periodic tasks.

It carries the whole definitions, so that each scheduler can act on it, whatever release of the app it has loaded; and
what was scheduled last. Pure: who reads and writes it is in :mod:`flask_backend.periodic.keeping`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, cast

from flask_backend.errors import MessageDecodeError
from flask_backend.message import END_OF_DATES, decode_json, encode_json

from .definition import Definition

# How long a periodic task that the newest release lacks is remembered: a release may be taken back.
FORGET_AFTER_S = 86400
# A scheduler looks at the token at least this often. So new code and a clock that was set show within a minute.
LOOK_EVERY_S = 60
# What lies further in the future was written by a machine whose clock was wrong.
CLOCK_ERROR_S = 3600


@dataclass(frozen=True, slots=True)
class Release:
    """The code that a supervisor has loaded: when, in seconds since the epoch, and a random id."""

    loaded_at: float = 0.0
    id: str = ""

    def is_newer_than(self, other: Release, now: float) -> bool:
        """Whether this one was loaded later. A time in the future does not count: that clock was wrong."""
        if other.loaded_at > now + CLOCK_ERROR_S >= self.loaded_at:
            return True
        return (self.loaded_at, self.id) > (other.loaded_at, other.id)

    @classmethod
    def now(cls, now: float) -> Release:
        return cls(round(now, 3), os.urandom(4).hex())


@dataclass(frozen=True, slots=True)
class Entry:
    """A periodic task in the token. Times are in seconds since the epoch.

    ``last`` is the last slot that was dealt with, ``ran`` the last one that was scheduled, as ``job``. Slots are
    counted as ``scheduled``, ``missed`` (found too late, or caught up by a later one) or ``skipped`` (the last call was
    unfinished). ``retired`` is since when the newest release lacks it; it is not scheduled any more.
    """

    definition: Definition
    last: int
    ran: int | None = None
    job: int | None = None
    uid: str | None = None
    scheduled: int = 0
    missed: int = 0
    skipped: int = 0
    is_paused: bool = False
    retired: int | None = None

    @property
    def is_active(self) -> bool:
        return not self.is_paused and self.retired is None

    def resumed(self, now: float) -> Entry:
        """Return it without a pause; the slots that have passed are left out."""
        return replace(self, is_paused=False, last=max(self.last, int(now))) if self.is_paused else self

    def as_dict(self) -> dict[str, Any]:
        state = {
            "ran": self.ran,
            "job": self.job,
            "uid": self.uid,
            "scheduled": self.scheduled,
            "missed": self.missed,
            "skipped": self.skipped,
            "paused": self.is_paused,
            "retired": self.retired,
        }
        return {**self.definition.as_dict(), "last": self.last, **{name: each for name, each in state.items() if each}}

    @classmethod
    def read(cls, name: str, queue: str, value: Mapping[str, Any]) -> Entry:
        def number(key: str, default: int | None = None) -> Any:
            if (found := value.get(key, default)) is not None and not (
                type(found) is int and 0 <= found < END_OF_DATES**2
            ):
                raise ValueError(f"{key} is not a number")
            return found

        uid = value.get("uid")
        return cls(
            Definition.read(name, queue, value),
            number("last", 0),
            number("ran"),
            number("job"),
            uid if isinstance(uid, str) else None,
            number("scheduled", 0),
            number("missed", 0),
            number("skipped", 0),
            value.get("paused") is True,
            number("retired"),
        )


@dataclass(frozen=True, slots=True)
class Token:
    """The state of a queue's periodic tasks, by name. ``number`` grows by 1 each time that it is written."""

    queue: str
    number: int = 0
    release: Release = field(default_factory=Release)
    entries: Mapping[str, Entry] = field(default_factory=dict[str, Entry])

    def __iter__(self) -> Iterator[Entry]:
        return iter(self.entries.values())

    def encode(self) -> bytes:
        return encode_json(
            {
                "queue": self.queue,
                "number": self.number,
                "loaded": [self.release.loaded_at, self.release.id],
                "schedules": {name: entry.as_dict() for name, entry in self.entries.items()},
            }
        )

    @classmethod
    def decode(cls, body: bytes) -> Token:
        """Read a token; raise :exc:`MessageDecodeError` for anything else."""
        try:
            value = cast("dict[str, Any]", decode_json(body))
            loaded_at, release = value["loaded"]
            queue, number = value["queue"], value["number"]
            if not (isinstance(queue, str) and type(number) is int and number >= 0):
                raise ValueError("no queue or no number")  # noqa: TRY301  # all errors become one
            entries = {name: Entry.read(name, queue, each) for name, each in value["schedules"].items()}
            return cls(queue, number, Release(float(loaded_at), str(release)), entries)
        except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise MessageDecodeError(f"not the state of periodic tasks: {error}") from error

    def next_written(self, entries: Iterable[Entry] = ()) -> Token:
        """Return the token that replaces this one, with these entries changed."""
        changed = {entry.definition.name: entry for entry in entries}
        return replace(self, number=self.number + 1, entries={**self.entries, **changed})

    def without(self, name: str) -> Token:
        """Return the token that replaces this one, without an entry."""
        entries = {other: entry for other, entry in self.entries.items() if other != name}
        return replace(self, number=self.number + 1, entries=entries)

    def with_release(self, release: Release, definitions: Iterable[Definition], now: float) -> Token:
        """Return the token with the definitions of a release, if this was loaded after the one that wrote it last.

        What was scheduled stays known, whatever becomes of an expression. Names that the release lacks are remembered
        for a day, and not scheduled.
        """
        if not release.is_newer_than(self.release, now):
            return self
        entries: dict[str, Entry] = {}
        for definition in definitions:
            known = self.entries.get(definition.name)
            if known is None:
                entries[definition.name] = Entry(definition, last=int(now))
            else:
                entries[definition.name] = replace(known, definition=definition, retired=None)
        for name, known in self.entries.items():
            if name not in entries and now - (known.retired or now) < FORGET_AFTER_S:
                entries[name] = replace(known, retired=known.retired or int(now))
        return replace(self, release=release, entries=entries)
