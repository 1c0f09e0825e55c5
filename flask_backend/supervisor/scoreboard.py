"""Shared memory in which each child says what it does: one row a child, one writer a row, no lock, no system call.

A row is written with aligned stores of eight bytes, which no reader sees by half, in an order that makes sense to a
reader at any moment. It is set before its child is forked, so that a child stuck at its start is covered, and stays
readable after the child's death, so that the supervisor knows which job went with it. A row's counters go on when
another child takes it over: the sums over all rows tell of everything since the start.
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
# ... and what has been done in its row: how jobs ended, and the time that they took.
_ENDINGS, _BUSY_NS = 4, 7  # three words, in the order of Ending; one word
# The last sign of life: a turn of the child's loop, or a job's beginning or end. A child that is about to wait adds the
# time that it may need.
_ALIVE_NS = 8
# When the child has begun to leave.
_LEFT_NS = 9
# What parent and child have said about the child's drain: a signal may be lost where the app's code handles it.
_DRAIN = 10
_TOLD, _HEARD = 1, 2
_FIXED_WORDS = 16  # 128 bytes, two cache lines

# For each label: how often it was done and how often it failed, and how long it took. A duration of up to 2**n ms is in
# bucket n; the last bucket, from 17.5 min on, has no upper end.
BUCKETS = 22
_LABEL_WORDS = 2 + BUCKETS


@dataclass(frozen=True, slots=True)
class LabelStats:
    """What became of the jobs with one label. ``buckets[n]`` counts those that took up to 2**n ms."""

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
    """Open a file that only those have who inherit it: in memory, where the system knows such files."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("flask-backend")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


class Labels:
    """The names of what the children of a pool do, and their numbers in the memory: from 1, for 0 is unknown."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = ("?", *names)
        self.numbers = {name: number for number, name in enumerate(self.names)}
        self.row_words = _FIXED_WORDS + len(self.names) * _LABEL_WORDS


@dataclass(frozen=True, slots=True)
class Place:
    """Where a row is: the memory's descriptor, the row's first word, and the names of what its child may do."""

    fd: int
    offset: int
    labels: Sequence[str]


class Row:
    """What one child tells of itself."""

    def __init__(self, words: memoryview, labels: Labels, place: Place) -> None:
        self._words = words
        self._labels = labels
        self.place = place

    @classmethod
    def find(cls, place: Place, words: memoryview) -> Row:
        """Return the row of a child that an earlier image of this process has started, in the words of that memory."""
        labels = Labels(place.labels)
        return cls(words[place.offset : place.offset + labels.row_words], labels, place)

    # -- for the child ---------------------------------------------------------------------------------------

    def begin(self, job_id: int) -> None:
        """Say that a job is there; what it is will be known when it is decoded."""
        words = self._words
        words[_LABEL] = words[_KILL_AT_NS] = 0
        words[_STARTED_NS] = words[_ALIVE_NS] = time.monotonic_ns()
        words[_JOB] = job_id  # last: whoever sees it sees the rest

    def run(self, label: str, kill_at: float | None) -> None:
        """Say what the job is, and when its process may be killed, in seconds of the monotonic clock."""
        self._words[_LABEL] = self._labels.numbers.get(label, 0)
        if kill_at is not None:
            self._words[_KILL_AT_NS] = int(kill_at * 1e9)

    def end(self, ending: Ending | None) -> None:
        """Say that the job is settled, and how; None for not by us."""
        words = self._words
        words[_JOB] = 0  # first: a death from here on is not its doing
        words[_ALIVE_NS] = time.monotonic_ns()
        took_ns = words[_ALIVE_NS] - words[_STARTED_NS]
        words[_BUSY_NS] += took_ns
        words[_KILL_AT_NS] = 0
        if ending is None:
            return
        words[_ENDINGS + ending] += 1
        base = _FIXED_WORDS + words[_LABEL] * _LABEL_WORDS
        words[base + (ending is not Ending.DONE)] += 1
        words[base + 2 + min(BUCKETS - 1, (took_ns // 1_000_000).bit_length())] += 1

    def live(self, silent_ns: int = 0) -> None:
        """Give a sign of life. The next one may be ``silent_ns`` nanoseconds later than usual."""
        self._words[_ALIVE_NS] = time.monotonic_ns() + silent_ns

    def was_told_to_drain(self) -> bool:
        return self._words[_DRAIN] != 0

    def heard_drain(self) -> None:
        """Say that no further job will begin."""
        self._words[_DRAIN] = _HEARD

    def leave(self) -> None:
        """Say that no job will be held here any more."""
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
        """The job that the child holds; None if it is idle: beanstalkd counts ids from 1."""
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
        """When the child may be killed for what it does now, in seconds of the monotonic clock."""
        return self._words[_KILL_AT_NS] / 1e9 if self._words[_JOB] and self._words[_KILL_AT_NS] else None

    @property
    def alive_at(self) -> float:
        """When the child gave its last sign of life, in seconds of the monotonic clock.

        In the future if the child has said that it may be silent until then.
        """
        return self._words[_ALIVE_NS] / 1e9

    @property
    def left_at(self) -> float | None:
        """When the child has begun to leave, in seconds of the monotonic clock."""
        return self._words[_LEFT_NS] / 1e9 if self._words[_LEFT_NS] else None

    @property
    def settled(self) -> int:
        """How many jobs were settled in this row."""
        return sum(self._words[_ENDINGS + ending] for ending in Ending)

    def stats(self) -> dict[str, LabelStats]:
        """Return what became of the jobs of this row, by label."""
        found: dict[str, LabelStats] = {}
        for number, label in enumerate(self._labels.names):
            base = _FIXED_WORDS + number * _LABEL_WORDS
            done, failed, *buckets = self._words[base : base + _LABEL_WORDS]
            if done or failed:
                found[label] = LabelStats(done, failed, tuple(buckets))
        return found


class _Stock:
    """The rows of one pool: from ``start`` on, in the words of a memory."""

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

        ``labels`` tells for each pool what its children may do, for example the names of its tasks.
        """
        by_pool = {pool: Labels(names) for pool, names in labels.items()}
        # A file in memory, for a reload to find it again. Costs address space only: the system gives a page when it is
        # first written to.
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
        """Return a row that no other child has."""
        stock = self._stocks[pool]
        row = stock.free.pop() if stock.free else stock.add()
        row.clear_activity()
        return row

    def give_back(self, pool: str, row: Row) -> None:
        self._stocks[pool].free.append(row)

    def settled(self, pool: str) -> int:
        """Count the jobs that were settled in a pool by the children of this scoreboard."""
        return sum(row.settled for row in self._stocks[pool].rows)

    def stats(self, pool: str) -> Totals:
        """Return what became of the jobs of a pool since the first start, by label."""
        rows = self._stocks[pool].rows if pool in self._stocks else []
        guests = [row for guest_pool, row in self._guests.values() if guest_pool == pool]
        return _sum(self._past.get(pool, {}), *(row.stats() for row in [*rows, *guests]))

    # -- across a reload -------------------------------------------------------------------------------------

    def totals_of_exited(self, alive: Collection[Row]) -> dict[str, Totals]:
        """Return the totals of all rows but those whose children live on, for the next scoreboard to begin with."""
        totals = dict(self._past)
        for pool, stock in self._stocks.items():
            ended = (row.stats() for row in stock.rows if row not in alive)
            totals[pool] = _sum(totals.get(pool, {}), *ended)
        return totals

    def restore(self, totals_of_exited: Mapping[str, Totals]) -> None:
        self._past = dict(totals_of_exited)

    def adopt(self, pid: int, pool: str, row: Row) -> None:
        """Count with a row of an earlier scoreboard, as long as its child lives."""
        self._guests[pid] = pool, row

    def retire(self, pid: int) -> None:
        pool, row = self._guests.pop(pid)
        self._past[pool] = _sum(self._past.get(pool, {}), row.stats())


def _sum(*parts: Totals) -> Totals:
    total: Totals = {}
    for part in parts:
        for label, stats in part.items():
            total[label] = total[label] + stats if label in total else stats
    return total
