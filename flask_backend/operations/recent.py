"""The newest stories of all queues, for pages that many people reload: read rarely, held shortly, kept in memory.

Beanstalkd shows a whole tube only to a connection that reserves its jobs, and two concurrent readers hide notes from
each other. So one thread of a process reads at a time, at most once in :data:`EVERY_S` seconds; it holds at most
:data:`MOST` notes, for less than 50 ms, and decodes them when it has given them back. It writes nothing: actions and
commands delete the notes of jobs that are not buried any longer.
"""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from flask_backend.broker.connection import Connection
from flask_backend.broker.stats import Queue
from flask_backend.broker.wire import ReservedJob
from flask_backend.errors import BrokerConnectionError
from flask_backend.names import failures_tube, is_queue_name

from .console import Console, Failures
from .notes import MAX_MESSAGE, StoredStory, decode_note, queue_of, reading, stored

# The notes of all queues together that one read holds.
MOST = 1000
# Seconds from one read to the next.
EVERY_S = 5.0
# No further note is reserved after this time, which leaves some of the 50 ms to give all back.
_HELD_S = 0.035
# The notes of the first request, and of each further one: their sizes are not known before.
_FIRST, _FURTHER = 20, 250
# Bytes of all held notes: our own have at most 10 kB each, but other programs can put jobs there too.
_MOST_BYTES = 32 << 20
# If other readers hold notes for longer than this, they hang: the others are read without those.
_PATIENCE_S = 10.0
# The first reader waits for another one this long, in seconds, and looks this often.
_FIRST_WAIT_S, _LOOK_AGAIN_S = 0.5, 0.02
# The queues whose own stories are kept beside those of all: the last ones that were asked for.
_KEPT = 20


@dataclass(frozen=True, slots=True)
class RecentStories:
    """The failures of each queue with buried jobs, by name, as they were at ``read_at``, in seconds since the epoch.

    ``oldest_at`` is when the job of the oldest story that was read was buried, if further ones were not read; else
    None. ``held`` notes were not read because other readers hang with them. ``stale_since`` is the time of the last
    attempt to read them again, if it found other readers and left this older state; else None.
    """

    failures: Sequence[Failures]
    read_at: float
    oldest_at: float | None = None
    held: int = 0
    stale_since: float | None = None

    @property
    def is_complete(self) -> bool:
        """Whether all stories were read."""
        return not self.unread

    @property
    def count(self) -> int:
        """The number of stories."""
        return sum(len(each.stories) for each in self.failures)

    @property
    def unread(self) -> int:
        return sum(each.unread for each in self.failures)

    @property
    def total(self) -> int:
        """The number of buried jobs, as the server counts them."""
        return sum(each.total for each in self.failures)

    def only(self, is_wanted: Callable[[str], bool]) -> RecentStories:
        """Return these stories without those of the queues that are not wanted."""
        return replace(self, failures=[each for each in self.failures if is_wanted(each.queue)])

    def of(self, queue: str) -> Failures:
        """Return the failures of a queue; empty ones if it has none."""
        return next((each for each in self.failures if each.queue == queue), Failures(queue, (), 0))


@dataclass(slots=True)
class _Kept:
    state: RecentStories
    asked_at: float  # by the monotonic clock


class StoryReader:
    """Reads the newest stories of one broker for all threads of a process; after a fork it begins again."""

    def __init__(self, *, every_s: float = EVERY_S, most: int = MOST) -> None:
        self._every_s = every_s
        self._most = most
        self._begin()

    def _begin(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._kept: dict[str | None, _Kept] = {}
        self._forgotten = 0  # how often

    def read(self, console: Console, queue: str | None = None) -> RecentStories:
        """Return the newest stories of all queues, or of one, at most some seconds old.

        While another thread or process reads them, returns the last known state. Raises :exc:`BrokerConnectionError`.
        """
        if self._pid != os.getpid():  # the lock may have been held at the fork
            self._begin()
        kept = self._kept.get(queue)
        if kept is not None and not self._is_due(kept):
            return kept.state
        lock = self._lock
        # Where the broker hangs, the requests that wait here must not wait for one another in turn.
        if not lock.acquire(timeout=0 if kept is not None else console.settings.timeout_s):
            if kept is not None:
                return kept.state
            raise BrokerConnectionError(
                f"the broker at {console.address} has not answered another reader of its stories for "
                f"{console.settings.timeout_s:g} s"
            )
        try:
            newer = self._kept.get(queue)
            if newer is None or self._is_due(newer):
                newer = self._read(console, queue, newer)
            return newer.state
        finally:
            lock.release()

    def read_of(self, console: Console, queue: str) -> RecentStories:
        """Return the newest stories of a queue: those of the last read of all queues if that had all of them."""
        kept = self._kept.get(None) if self._pid == os.getpid() else None
        if kept is not None and not self._is_due(kept) and not kept.state.of(queue).unread:
            return kept.state
        return self.read(console, queue)

    def last(self, queue: str | None = None) -> RecentStories | None:
        """Return the last known state without asking the broker, for example while it is away."""
        kept = self._kept.get(queue) if self._pid == os.getpid() else None
        return kept.state if kept is not None else None

    def forget(self) -> None:
        """Let the next reader ask the broker: an action has changed what is there."""
        self._forgotten += 1
        for kept in list(self._kept.values()):
            kept.asked_at = -math.inf

    def _is_due(self, kept: _Kept) -> bool:
        return time.monotonic() - kept.asked_at >= self._every_s

    def _read(self, console: Console, queue: str | None, old: _Kept | None) -> _Kept:
        forgotten, asked_at = self._forgotten, time.monotonic()
        if old is None:
            state = self._look_first(console, queue)
        else:
            is_patient = time.time() - old.state.read_at < _PATIENCE_S
            found = _look(console, queue, self._most, with_others=not is_patient)
            state = found or replace(old.state, stale_since=time.time())
        # An action in the meantime may or may not be seen.
        kept = _Kept(state, asked_at if self._forgotten == forgotten else -math.inf)
        self._kept.pop(queue, None)  # so that it becomes the last one
        self._kept[queue] = kept
        if len(self._kept) > _KEPT:
            self._kept.pop(next(iter(self._kept)), None)
        return kept

    def _look_first(self, console: Console, queue: str | None) -> RecentStories:
        """Look while there is no older state to show: other readers hold the notes only for a moment."""
        until = time.monotonic() + _FIRST_WAIT_S
        while (found := _look(console, queue, self._most, with_others=time.monotonic() >= until)) is None:
            time.sleep(_LOOK_AGAIN_S)  # the protocol cannot report when they are given back
        return found


def _look(console: Console, queue: str | None, most: int, *, with_others: bool) -> RecentStories | None:
    """Read the newest notes; return None if other readers hold some, unless the rest is wanted ``with_others``."""
    read_at = time.time()
    tubes = console.failure_tubes() if queue is None else list(filter(is_queue_name, [failures_tube(queue)]))
    notes = {queue_of(each.name): each for each in console.find_queues(tubes) if each.ready + each.reserved}
    if not with_others and any(each.reserved for each in notes.values()):
        return None
    held: list[ReservedJob] = []
    if any(each.ready for each in notes.values()):
        with reading(console.settings, *(each.name for each in notes.values())) as reader:
            held = _reserve(reader, most)
            notes = {queue_of(each.name): each for each in console.find_queues([each.name for each in notes.values()])}
    others = sum(each.reserved for each in notes.values()) - len(held)
    if others > 0 and not with_others:
        return None
    told = _decode(held)
    is_complete = len(held) >= sum(each.ready + each.reserved for each in notes.values())
    oldest = min((story.buried_at for stories in told.values() for story in stories), default=read_at)
    queues = console.queues() if queue is None else console.find_queues([queue])
    failures = [
        _sort(console, each, told.get(each.name, ()), None if is_complete else notes.get(each.name))
        for each in queues
        if each.buried
    ]
    return RecentStories(failures, read_at, None if is_complete else oldest, max(0, others))


def _reserve(reader: Connection, most: int) -> list[ReservedJob]:
    """Reserve the newest notes, as many as arrive in the time for it."""
    held: list[ReservedJob] = []
    begun = time.monotonic()
    wanted, left_bytes = min(_FIRST, most), _MOST_BYTES
    while wanted > 0 and left_bytes > 0:
        jobs = reader.reserve_ready(wanted)
        held += jobs
        left_bytes -= sum(len(job.body) for job in jobs)
        if len(jobs) < wanted:
            break
        spent_s = time.monotonic() - begun
        in_time = int(len(held) * (_HELD_S - spent_s) / max(spent_s, 1e-6))
        wanted = min(most - len(held), _FURTHER, in_time)
    return held


def _decode(notes: Iterable[ReservedJob]) -> dict[str, list[StoredStory]]:
    """Return the stories in notes by their queues, each queue's newest first."""
    told: dict[str, list[StoredStory]] = {}
    for job in notes:
        note = decode_note(_without_traceback(job.body))
        if note is not None:
            told.setdefault(note.queue, []).append(stored(job.id, note, MAX_MESSAGE))
    for stories in told.values():
        stories.sort(key=lambda story: -story.id)  # as the clocks of several hosts may differ
    return told


def _sort(console: Console, queue: Queue, told: Sequence[StoredStory], tube: Queue | None) -> Failures:
    """Return the failures of a queue by the stories that were read, without those of jobs that are not buried.

    ``tube`` is its failures tube, if some notes were not read.
    """
    places = console.places_of({story.job for story in told})
    stories: dict[int, StoredStory] = {}
    for story in told:
        if places.get(story.job) == (queue.name, "buried"):
            stories.setdefault(story.job, story)
    unread = max(0, tube.ready + tube.reserved - len(told)) if tube is not None else 0
    left = max(0, queue.buried - len(stories))
    return Failures(queue.name, list(stories.values()), max(0, left - unread), min(left, unread))


def _without_traceback(body: bytes) -> bytes:
    """Return a note without its traceback, which our workers write last: it takes most of the time of decoding."""
    begin = body.find(b',"traceback":"')
    return body[:begin] + b"}" if begin > 0 and body.endswith(b'"}') else body
