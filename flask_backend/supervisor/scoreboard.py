"""Shared memory where each child publishes its activity: one row per child, one writer per row, no lock or system call.

Rows are written with aligned eight-byte stores, which are atomic, in an order that is consistent for a reader at any
moment. A row is set before its child is forked, which covers a child that is stuck at its start. It stays readable
after the child's death, so that the supervisor knows which job the child held. When another child takes over a row, its
counters continue: the sums over all rows cover everything since the start.
"""

from __future__ import annotations

import mmap
import os
import tempfile
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from flask_backend.deaths import Activity
from flask_backend.outcome import Ending

# What a child is doing now ...
_JOB, _LABEL, _STARTED_NS, _KILL_AT_NS = range(4)
# ... and the totals of its row: how jobs ended, and the time that they took.
_ENDINGS, _BUSY_NS = 4, 7  # three words, in the order of Ending; one word
# The last heartbeat: a turn of the child's loop, or the beginning or end of a job. Before a wait the child adds the
# time that the wait may take.
_ALIVE_NS = 8
# When the child began to leave.
_LEFT_NS = 9
# The handshake of a drain between parent and child: a signal may be lost if a handler of the app takes it.
_DRAIN = 10
_TOLD, _HEARD = 1, 2
_FIXED_WORDS = 16  # 128 bytes, two cache lines

# For each label: the numbers of successes and failures, and the durations. A duration of up to 2**n ms is in
# bucket n; the last bucket, from 17.5 min on, has no upper end.
BUCKETS = 22
_LABEL_WORDS = 2 + BUCKETS


@dataclass(frozen=True, slots=True)
class LabelStats:
    """The outcomes of the jobs with one label. ``buckets[n]`` counts jobs that took up to 2**n ms."""

    done: int
    failed: int
    buckets: tuple[int, ...]

    def __add__(self, other: LabelStats) -> LabelStats:
        return LabelStats(
            self.done + other.done,
            self.failed + other.failed,
            tuple(map(sum, zip(self.buckets, other.buckets, strict=True))),
        )


def map_words(fd: int) -> memoryview:
    """Map the memory of a scoreboard, as words."""
    return memoryview(mmap.mmap(fd, 0)).cast("Q")


def nameless_file() -> int:
    """Open an unnamed file, accessible only by inheritance: in memory, if the system supports that."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("flask-backend")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


class Labels:
    """The names of the work that a pool does, and their numbers in the memory: from 1, since 0 is unknown."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = ("?", *names)
        self.numbers = {name: number for number, name in enumerate(self.names)}
        self.row_words = _FIXED_WORDS + len(self.names) * _LABEL_WORDS


@dataclass(frozen=True, slots=True)
class Place:
    """Where a row is: the memory's descriptor, the row's first word, and the names of its child's work."""

    fd: int
    offset: int
    labels: Sequence[str]


class Row:
    """The published activity of one child."""

    def __init__(self, words: memoryview, labels: Labels, place: Place) -> None:
        self._words = words
        self._labels = labels
        self.place = place

    @classmethod
    def find(cls, place: Place, words: memoryview) -> Row:
        """Return the row, in that image's memory, of a child that an earlier image of this process started."""
        labels = Labels(place.labels)
        return cls(words[place.offset : place.offset + labels.row_words], labels, place)

    # -- for the child ---------------------------------------------------------------------------------------

    def begin(self, job_id: int) -> None:
        """Record that the child holds a job. Its label is known only after decoding."""
        words = self._words
        words[_LABEL] = words[_KILL_AT_NS] = 0
        words[_STARTED_NS] = words[_ALIVE_NS] = time.monotonic_ns()
        words[_JOB] = job_id  # last: a reader that sees it sees the rest

    def run(self, label: str, kill_at: float | None) -> None:
        """Record the label of the job, and when its process may be killed, in seconds of the monotonic clock."""
        self._words[_LABEL] = self._labels.numbers.get(label, 0)
        if kill_at is not None:
            self._words[_KILL_AT_NS] = int(kill_at * 1e9)

    def end(self, ending: Ending | None) -> None:
        """Record that the job is over. ``ending`` is how this child settled it, if it did."""
        words = self._words
        words[_JOB] = 0  # first: a crash after this point must not be blamed on the job
        words[_ALIVE_NS] = now_ns = time.monotonic_ns()
        took_ns = now_ns - words[_STARTED_NS]
        words[_BUSY_NS] += took_ns
        words[_KILL_AT_NS] = 0
        if ending is None:
            return
        words[_ENDINGS + ending] += 1
        base = _FIXED_WORDS + words[_LABEL] * _LABEL_WORDS
        words[base + (ending is not Ending.DONE)] += 1
        words[base + 2 + min(BUCKETS - 1, (took_ns // 1_000_000).bit_length())] += 1

    def live(self, silent_ns: int = 0) -> None:
        """Send a heartbeat. The next one may be ``silent_ns`` nanoseconds later than usual."""
        self._words[_ALIVE_NS] = time.monotonic_ns() + silent_ns

    def was_told_to_drain(self) -> bool:
        return self._words[_DRAIN] != 0

    def heard_drain(self) -> None:
        """Record that the child will not begin another job."""
        self._words[_DRAIN] = _HEARD

    def leave(self) -> None:
        """Record that the child no longer holds any job."""
        self._words[_LEFT_NS] = time.monotonic_ns()

    # -- for its parent --------------------------------------------------------------------------------------

    def tell_to_drain(self) -> None:
        self._words[_DRAIN] = _TOLD

    @property
    def has_heard_drain(self) -> bool:
        return self._words[_DRAIN] == _HEARD

    def clear_activity(self) -> None:
        for index in (_JOB, _LABEL, _STARTED_NS, _KILL_AT_NS, _LEFT_NS, _DRAIN):
            self._words[index] = 0
        self.live()

    @property
    def activity(self) -> Activity | None:
        """The job that the child holds, if any: beanstalkd counts ids from 1, so 0 means idle."""
        job_id, label = self._words[_JOB], self._words[_LABEL]
        if not job_id:
            return None
        running_s = (time.monotonic_ns() - self._words[_STARTED_NS]) / 1e9
        return Activity(job_id, self._labels.names[label], running_s)

    @property
    def began_at(self) -> float:
        """When the child began its last job, in seconds of the monotonic clock."""
        return self._words[_STARTED_NS] / 1e9

    @property
    def kill_at(self) -> float | None:
        """When the child may be killed for its current job, in seconds of the monotonic clock."""
        return self._words[_KILL_AT_NS] / 1e9 if self._words[_JOB] and self._words[_KILL_AT_NS] else None

    @property
    def alive_at(self) -> float:
        """When the child sent its last heartbeat, in seconds of the monotonic clock.

        In the future if the child has announced that it may be silent until then.
        """
        return self._words[_ALIVE_NS] / 1e9

    @property
    def left_at(self) -> float | None:
        """When the child began to leave, in seconds of the monotonic clock."""
        return self._words[_LEFT_NS] / 1e9 if self._words[_LEFT_NS] else None

    @property
    def settled(self) -> int:
        """How many settled jobs this row has counted."""
        return sum(self._words[_ENDINGS + ending] for ending in Ending)

    def stats(self) -> dict[str, LabelStats]:
        """Return the outcomes of the jobs of this row, by label."""
        found: dict[str, LabelStats] = {}
        for number, label in enumerate(self._labels.names):
            base = _FIXED_WORDS + number * _LABEL_WORDS
            done, failed, *buckets = self._words[base : base + _LABEL_WORDS]
            if done or failed:
                found[label] = LabelStats(done, failed, tuple(buckets))
        return found


class _Stock:
    """The rows of one pool, which begin at ``start`` in the words of a memory."""

    def __init__(self, fd: int, words: memoryview, start: int, labels: Labels) -> None:
        self._fd = fd
        self._words = words
        self._start = start
        self._labels = labels
        self.rows: list[Row] = []
        self.free: list[Row] = []

    def add(self) -> Row:
        width = self._labels.row_words
        start = self._start + len(self.rows) * width
        place = Place(self._fd, start, self._labels.names[1:])
        row = Row(self._words[start : start + width], self._labels, place)
        self.rows.append(row)
        return row


Totals = dict[str, LabelStats]


class Scoreboard:
    """The rows of all children. Created before the first fork."""

    def __init__(self, labels: Mapping[str, Sequence[str]], capacity: int) -> None:
        """Make room for ``capacity`` children of each pool.

        ``labels`` names for each pool the kinds of work of its children, for example its tasks.
        """
        by_pool = {pool: Labels(names) for pool, names in labels.items()}
        # A file in memory, so that a reload can map it again. It costs only address space: the system allocates a page
        # at the first write.
        fd = nameless_file()
        os.ftruncate(fd, 8 * capacity * sum(each.row_words for each in by_pool.values()))
        words = map_words(fd)
        self._stocks: dict[str, _Stock] = {}
        start = 0
        for pool, each in by_pool.items():
            self._stocks[pool] = _Stock(fd, words, start, each)
            start += capacity * each.row_words
        self._guests: dict[int, tuple[str, Row]] = {}
        self._past: dict[str, Totals] = {}

    def take(self, pool: str) -> Row:
        """Return a row that is not in use."""
        stock = self._stocks[pool]
        row = stock.free.pop() if stock.free else stock.add()
        row.clear_activity()
        return row

    def give_back(self, pool: str, row: Row) -> None:
        self._stocks[pool].free.append(row)

    def settled(self, pool: str) -> int:
        """Count the jobs of a pool that were settled by the children of this scoreboard."""
        return sum(row.settled for row in self._stocks[pool].rows)

    def stats(self, pool: str) -> Totals:
        """Return the outcomes of the jobs of a pool since the first start, by label."""
        rows = self._stocks[pool].rows if pool in self._stocks else []
        guests = [row for guest_pool, row in self._guests.values() if guest_pool == pool]
        return _sum(self._past.get(pool, {}), *(row.stats() for row in [*rows, *guests]))

    # -- across a reload -------------------------------------------------------------------------------------

    def totals_of_exited(self, alive: Collection[Row]) -> dict[str, Totals]:
        """Return the totals of the rows whose children have exited, as the start of the next scoreboard."""
        totals = dict(self._past)
        for pool, stock in self._stocks.items():
            ended = (row.stats() for row in stock.rows if row not in alive)
            totals[pool] = _sum(totals.get(pool, {}), *ended)
        return totals

    def restore(self, totals_of_exited: Mapping[str, Totals]) -> None:
        self._past = dict(totals_of_exited)

    def adopt(self, pid: int, pool: str, row: Row) -> None:
        """Include a row of an earlier scoreboard, whose descriptor is now ours, in the counts while its child lives."""
        self._guests[pid] = pool, row

    def retire(self, pid: int) -> None:
        """Count the row among the totals; close the earlier scoreboard with the last of its rows."""
        pool, row = self._guests.pop(pid)
        if all(guest.place.fd != row.place.fd for _, guest in self._guests.values()):
            os.close(row.place.fd)
        self._past[pool] = _sum(self._past.get(pool, {}), row.stats())


def _sum(*parts: Totals) -> Totals:
    total: Totals = {}
    for part in parts:
        for label, stats in part.items():
            total[label] = total[label] + stats if label in total else stats
    return total
