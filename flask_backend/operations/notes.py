"""The notes in the failures tube of a queue: reserve them to read them, and give them back."""

from __future__ import annotations

import sys
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

from flask_backend.broker.connection import Connection
from flask_backend.broker.wire import ReservedJob
from flask_backend.config import Settings
from flask_backend.errors import MessageDecodeError
from flask_backend.message import cut
from flask_backend.names import failures_tube
from flask_backend.stories import Story
from flask_backend.visible import visible

# Notes are large: read them in batches, so that the server does not buffer megabytes.
AT_ONCE = 50
# Characters of the names by which stories are grouped; our workers write shorter ones.
_MAX_NAME = 1000
# Characters of a message in a list.
MAX_MESSAGE = 200

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class StoredStory:
    """A story on the broker: the id of its note, and the few facts that group and select it.

    There may be very many, so the story itself stays on the broker until it is shown. ``message`` is the beginning of
    the exception's message, if it was asked for.
    """

    id: int
    job: int
    buried_at: float
    endpoint: str | None
    kind: str
    message: str | None = None


def queue_of(tube: str) -> str:
    """Return the queue whose stories are in a failures tube."""
    return tube.removesuffix(failures_tube(""))


@contextmanager
def reading(settings: Settings, *tubes: str) -> Generator[Connection, None, None]:
    """Connect to reserve notes of some tubes, and give all of them back at the end."""
    first, *others = tubes
    reader = Connection(settings.address, settings.timeout_s, watch=first)
    try:
        reader.watch_too(others)
        yield reader
    finally:
        reader.quit()  # then the notes are ready again, for other readers and for our next command


def reserve(reader: Connection, limit: int | None) -> Iterator[ReservedJob]:
    """Yield the newest notes, at most ``limit``."""
    left = sys.maxsize if limit is None else limit
    while left > 0:
        jobs = reader.reserve_ready(wanted := min(left, AT_ONCE))
        yield from jobs
        left -= wanted
        if len(jobs) < wanted:
            return


def parts(items: Iterable[T], size: int) -> Iterator[list[T]]:
    left = iter(items)
    while part := list(islice(left, size)):
        yield part


def decode_note(body: bytes) -> Story | None:
    """Read a note, if the job is one of our notes."""
    try:
        return Story.decode(body)
    except (MessageDecodeError, TypeError):
        return None


def stored(note_id: int, note: Story, message_limit: int = 0) -> StoredStory:
    # The names are few, and the notes many: each name is kept once. A forged one is cut, and made safe to show.
    endpoint = note.endpoint and sys.intern(visible(note.endpoint, _MAX_NAME))
    message = cut(note.message, message_limit) if note.message and message_limit else None
    return StoredStory(note_id, note.job, note.buried_at, endpoint, sys.intern(visible(note.kind, _MAX_NAME)), message)
