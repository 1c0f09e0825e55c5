"""Writes the status page: shared memory where each child publishes its activity, and the supervisor its own state.

`flask_backend.system.page` has the layout, and the reader for other processes. There is one row per child and one
writer per word; a child uses no lock and no system call. Words are aligned and eight bytes long, so that their stores
are atomic, and are written in an order that is consistent for a reader at any moment. A row is set before its child is
forked, which covers a child that is stuck at its start. It stays readable after the child's death, so that the
supervisor knows which job the child held. When another child takes over a row, its counters continue: the sums over all
rows cover everything since the start.
"""

from __future__ import annotations

import fcntl
import json
import mmap
import os
import tempfile
import time
from collections.abc import Collection, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flask_backend.deaths import Activity
from flask_backend.outcome import Ending
from flask_backend.system import page
from flask_backend.system.page import (
    ALIVE_NS,
    AWAY_SINCE_NS,
    BURIED,
    BUSY_NS,
    CRASHED,
    DRAIN,
    DURATIONS,
    FIXED_WORDS,
    GIVEN_BACK,
    JOB,
    JOB_SINCE_NS,
    KILL_AT_NS,
    LABEL_NUMBER,
    LABEL_WORDS,
    LEFT_NS,
    LIMITED_SINCE_NS,
    PROGRESS_DONE,
    PROGRESS_TOTAL,
    RECONNECTS,
    WAITED_US,
    WAITS,
    bucket_of,
)

from .states import ChildState

# The handshake of a drain between parent and child: a signal may be lost if a handler of the app takes it.
_TOLD, _HEARD = 1, 2
# The room for the supervisor's texts, in bytes.
FACTS_BYTES = 256 << 10


def nameless_file(name: str = "flask-backend") -> int:
    """Open an unnamed file, accessible only by inheritance and /proc: in memory, if the system supports that."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create(name)
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


class Memory:
    """A file that processes share. It gets its ``path``, if any, once its content is complete."""

    def __init__(self, fd: int, path: str | None, draft: str | None = None) -> None:
        self.fd = fd
        self.path = path
        self._draft = draft

    @classmethod
    def make(cls, folder: str | None, name: str, first_bytes: int, size: int) -> Memory:
        """Make a file for a page, in memory without a path if the folder has no room."""
        if folder is not None:
            draft = f"{folder}/.{name}"
            with suppress(OSError):
                cls._remove(draft)
                fd = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
                memory = cls(fd, f"{folder}/{name}", draft)
                try:
                    memory.reserve(0, first_bytes)
                    os.ftruncate(fd, size)
                except OSError:
                    cls._remove(draft)
                    os.close(fd)
                    raise
                return memory
        fd = nameless_file(name)
        os.ftruncate(fd, size)
        return cls(fd, None)

    def open_stacks(self, name: str) -> int:
        """Open the file for the stacks of children, beside this one if that has a path, and removed with it."""
        if self.path is not None:
            path = f"{self.path}{page.STACKS}"
            with suppress(OSError):
                self._remove(path)
                return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600)
        fd = nameless_file(f"{name}{page.STACKS}")
        fcntl.fcntl(fd, fcntl.F_SETFL, os.O_APPEND)
        return fd

    def map(self) -> memoryview:
        """Map the file, as words."""
        return memoryview(mmap.mmap(self.fd, 0)).cast("Q")

    def reserve(self, at: int, size: int) -> None:
        """Take room on the file system; raise :exc:`OSError` if it is full: a write would kill the process."""
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(self.fd, at, size)

    def publish(self) -> None:
        if self.path is not None and self._draft is not None:
            with suppress(OSError):  # the folder is gone: readers find the descriptor
                Path(self._draft).replace(self.path)
        self._draft = None

    def close(self) -> None:
        """Remove and close the file."""
        self.remove()
        os.close(self.fd)

    def remove(self) -> None:
        for path in (self._draft, self.path, self.path and f"{self.path}{page.STACKS}"):
            if path is not None:
                self._remove(path)

    @staticmethod
    def _remove(path: str) -> None:
        with suppress(OSError):
            Path(path).unlink()


class Labels:
    """The names of the work that a pool does, and their numbers in the memory: from 1, since 0 is unknown."""

    def __init__(self, names: Iterable[str]) -> None:
        self.names = ("?", *(name for name in dict.fromkeys(names) if name != "?"))
        self.numbers = {name: number for number, name in enumerate(self.names)}
        self.row_words = FIXED_WORDS + len(self.names) * LABEL_WORDS


@dataclass(frozen=True, slots=True)
class Place:
    """Where a row is: the memory's descriptor, the row's first word, and the names of its child's work."""

    fd: int
    offset: int
    labels: Sequence[str]


# For each label the counts of `page.LABEL`.
Totals = dict[str, list[int]]


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
        words[LABEL_NUMBER] = words[KILL_AT_NS] = words[PROGRESS_TOTAL] = 0
        words[JOB_SINCE_NS] = words[ALIVE_NS] = time.monotonic_ns()
        words[JOB] = job_id  # last: a reader that sees it sees the rest

    def run(self, label: str, kill_at: float | None) -> None:
        """Record the label of the job, and when its process may be killed, in seconds of the monotonic clock."""
        self._words[LABEL_NUMBER] = self._labels.numbers.get(label, 0)
        if kill_at is not None:
            self._words[KILL_AT_NS] = int(kill_at * 1e9)

    def progress(self, done: int, total: int) -> None:
        """Record how much of its work the task has done, as it says itself."""
        words = self._words
        words[PROGRESS_TOTAL] = 0  # so that a reader does not mix two records
        words[PROGRESS_DONE] = done
        words[PROGRESS_TOTAL] = total

    def end(self, ending: Ending | None) -> None:
        """Record that the job is over. ``ending`` is how this child settled it, if it did."""
        words = self._words
        words[JOB] = 0  # first: a crash after this point must not be blamed on the job
        words[ALIVE_NS] = now_ns = time.monotonic_ns()
        words[KILL_AT_NS] = 0
        if ending is None:
            return
        took_ns = now_ns - words[JOB_SINCE_NS]
        base = FIXED_WORDS + words[LABEL_NUMBER] * LABEL_WORDS
        words[base + ending] += 1
        if ending is Ending.EXPIRED:
            return
        words[base + BUSY_NS] += took_ns
        words[base + DURATIONS + bucket_of(took_ns)] += 1

    def count_wait(self, label: str, waited_us: int, jobs: int) -> None:
        """Record that jobs have waited so long for their start: from when they were due, without their delay."""
        words = self._words
        base = FIXED_WORDS + self._labels.numbers.get(label, 0) * LABEL_WORDS
        words[base + WAITED_US] += waited_us * jobs
        words[base + WAITS + bucket_of(waited_us * 1000)] += jobs

    def count_reconnect(self) -> None:
        """Record that the child has connected to the broker again."""
        self._words[FIXED_WORDS + RECONNECTS] += 1

    def live(self, silent_ns: int = 0) -> None:
        """Send a heartbeat. The next one may be ``silent_ns`` nanoseconds later than usual."""
        self._words[ALIVE_NS] = time.monotonic_ns() + silent_ns

    def show_broker(self, *, is_away: bool) -> None:
        """Record that the broker is away, or back."""
        self._words[AWAY_SINCE_NS] = time.monotonic_ns() if is_away else 0

    def show_limit(self, *, is_waiting: bool) -> None:
        """Record that the child waits for a limit before it starts its job, or no longer does."""
        self._words[LIMITED_SINCE_NS] = time.monotonic_ns() if is_waiting else 0

    def was_told_to_drain(self) -> bool:
        return self._words[DRAIN] != 0

    def heard_drain(self) -> None:
        """Record that the child will not begin another job."""
        self._words[DRAIN] = _HEARD

    def leave(self) -> None:
        """Record that the child no longer holds any job."""
        self._words[LEFT_NS] = time.monotonic_ns()

    # -- for its parent --------------------------------------------------------------------------------------

    def clear_activity(self, slot: int) -> None:
        """Prepare the row for another child, of this slot of its pool."""
        words = self._words
        words[page.ROW_PID] = 0
        words[:FIXED_WORDS] = memoryview(bytes(8 * FIXED_WORDS)).cast("Q")
        words[page.ROW_STATE] = _number_of(ChildState.STARTING)
        words[page.FORKED_NS] = time.monotonic_ns()
        words[page.SLOT] = slot
        done, words[page.RETRIED_BEFORE], words[page.BURIED_BEFORE], discarded, _ = self._endings()
        words[page.DONE_BEFORE] = done + discarded
        self.live()

    def occupy(self, pid: int) -> None:
        """Show the child to readers."""
        self._words[page.ROW_PID] = pid

    def vacate(self) -> None:
        self._words[page.ROW_PID] = 0

    def show_state(self, state: ChildState) -> None:
        self._words[page.ROW_STATE] = _number_of(state)

    def show_memory(self, private_bytes: int) -> None:
        self._words[page.PRIVATE_BYTES] = private_bytes

    def tell_to_drain(self) -> None:
        self._words[DRAIN] = _TOLD

    @property
    def has_heard_drain(self) -> bool:
        return self._words[DRAIN] == _HEARD

    @property
    def activity(self) -> Activity | None:
        """The job that the child runs, if any: beanstalkd counts ids from 1, so 0 means idle.

        A job that waits for a limit has not begun: the death of its child is not its fault.
        """
        job_id, label = self._words[JOB], self._words[LABEL_NUMBER]
        if not job_id or self.is_limited:
            return None
        running_s = (time.monotonic_ns() - self._words[JOB_SINCE_NS]) / 1e9
        return Activity(job_id, self._labels.names[label], running_s)

    @property
    def began_at(self) -> float:
        """When the child began its last job, in seconds of the monotonic clock."""
        return self._words[JOB_SINCE_NS] / 1e9

    @property
    def kill_at(self) -> float | None:
        """When the child may be killed for its current job, in seconds of the monotonic clock."""
        return self._words[KILL_AT_NS] / 1e9 if self._words[JOB] and self._words[KILL_AT_NS] else None

    @property
    def alive_at(self) -> float:
        """When the child sent its last heartbeat, in seconds of the monotonic clock.

        In the future if the child has announced that it may be silent until then.
        """
        return self._words[ALIVE_NS] / 1e9

    @property
    def left_at(self) -> float | None:
        """When the child began to leave, in seconds of the monotonic clock."""
        return self._words[LEFT_NS] / 1e9 if self._words[LEFT_NS] else None

    @property
    def is_away(self) -> bool:
        """Whether the child waits for its broker."""
        return self._words[AWAY_SINCE_NS] != 0

    @property
    def is_limited(self) -> bool:
        """Whether the child waits for a limit before it starts its job."""
        return self._words[LIMITED_SINCE_NS] != 0

    @property
    def settled(self) -> int:
        """How many settled jobs this row has counted."""
        return sum(self._endings())

    @property
    def done(self) -> int:
        """How many done jobs this row has counted."""
        return sum(self._words[FIXED_WORDS + Ending.DONE :: LABEL_WORDS])

    def _endings(self) -> Iterator[int]:
        """Yield how many jobs it has counted with each ending."""
        return (sum(self._words[FIXED_WORDS + ending :: LABEL_WORDS]) for ending in Ending)

    def totals(self) -> Totals:
        """Return the counts of the jobs of this row, by label."""
        words, names = self._words, self._labels.names
        starts = range(FIXED_WORDS, len(words), LABEL_WORDS)
        return {name: words[at : at + LABEL_WORDS].tolist() for name, at in zip(names, starts, strict=True)}

    def count(self, totals: Totals) -> None:
        """Add to the counts of this row."""
        for label, counts in totals.items():
            base = FIXED_WORDS + self._labels.numbers.get(label, 0) * LABEL_WORDS
            for word, count in enumerate(counts):
                if count:
                    self._words[base + word] += count

    def count_one(self, label: str, word: int) -> None:
        """Add one to a word of a label."""
        self._words[FIXED_WORDS + self._labels.numbers.get(label, 0) * LABEL_WORDS + word] += 1


def _number_of(state: ChildState) -> int:
    return page.WORKER_STATES.index(state.name.lower())


class _Stock:
    """The rows of one pool. ``start`` is the first word of the first row, ``head`` the first of the queue's words."""

    def __init__(self, memory: Memory, words: memoryview, head: int, start: int, labels: Labels) -> None:
        self._memory = memory
        self._words = words
        self._head = head
        self._start = start
        self._labels = labels
        self.rows: list[Row] = []
        self.free: list[Row] = []
        self.labels = labels.names
        words[head + page.ROWS_AT], words[head + page.ROW_WORDS] = 8 * start, labels.row_words
        self.past = self._open_row(0)  # the supervisor's own

    def add(self) -> Row:
        row = self._open_row(len(self.rows) + 1)
        self.rows.append(row)
        return row

    def want(self, size: int, minimum: int, maximum: int) -> None:
        head = self._head
        words = self._words
        words[head + page.WANTED], words[head + page.MINIMUM], words[head + page.MAXIMUM] = size, minimum, maximum

    def _open_row(self, number: int) -> Row:
        width = self._labels.row_words
        start = self._start + number * width
        self._memory.reserve(8 * start, 8 * width)
        row = Row(self._words[start : start + width], self._labels, Place(self._memory.fd, start, self._labels.names))
        self._words[self._head + page.ROWS] = number + 1
        return row


@dataclass(frozen=True, slots=True)
class Publication:
    """Where a page is published: under no name without a ``folder``."""

    folder: str | None = None
    generation: int = 0
    checks: int = 0  # begun so far


class Scoreboard:
    """The rows of all children, and the supervisor's own words and texts. Created before the first fork."""

    def __init__(
        self,
        labels: Mapping[str, Sequence[str]],
        capacity: int,
        publication: Publication | None = None,
        past: Mapping[str, Totals] | None = None,
    ) -> None:
        """Make room for ``capacity`` children of each pool.

        ``labels`` names for each pool the kinds of work of its children, for example its tasks. ``past`` has the totals
        of children that have exited before a reload, also of pools and labels that no longer exist.
        """
        publication, past = publication or Publication(), past or {}
        by_pool = {pool: Labels([*names, *past.get(pool, {})]) for pool, names in labels.items()}
        by_pool |= {pool: Labels(totals) for pool, totals in past.items() if pool not in labels}
        text = _describe({pool: each.names for pool, each in by_pool.items()})
        labels_at = page.HEADER_WORDS
        facts_at = labels_at + len(text) // 8
        queues_at = facts_at + FACTS_BYTES // 8
        rows_at = queues_at + len(page.QUEUE) * len(by_pool)
        rooms = {pool: (1 + (capacity if pool in labels else 0)) * each.row_words for pool, each in by_pool.items()}
        # A file in memory, so that a reload can map it again. It costs only address space: the system allocates a page
        # when a row is opened.
        name = page.name_for(os.getpid(), publication.generation)
        self.memory = Memory.make(publication.folder, name, 8 * rows_at, 8 * (rows_at + sum(rooms.values())))
        self.stacks_fd = self.memory.open_stacks(name)
        self._words = words = self.memory.map()
        self._bytes = words.cast("B")
        self._bytes[8 * labels_at : 8 * labels_at + len(text)] = text
        self._stocks: dict[str, _Stock] = {}
        for number, (pool, each) in enumerate(by_pool.items()):
            head = queues_at + number * len(page.QUEUE)
            self._stocks[pool] = stock = _Stock(self.memory, words, head, rows_at, each)
            stock.past.count(past.get(pool, {}))
            rows_at += rooms[pool]
        self._guests: dict[int, tuple[str, Row]] = {}
        self._earlier: dict[int, Memory] = {}
        self._state = ""
        process = page.read_process(os.getpid())
        words[page.PID], words[page.STARTED_TICKS] = os.getpid(), process[1] if process else 0
        words[page.GENERATION], words[page.CHECKS] = publication.generation, publication.checks
        words[page.LABELS_AT], words[page.LABELS_BYTES] = 8 * labels_at, len(text)
        words[page.FACTS_AT] = 8 * facts_at
        words[page.QUEUES_AT], words[page.QUEUES] = 8 * queues_at, len(by_pool)
        self.show_state("starting")
        self.note_turn()

    # -- children --------------------------------------------------------------------------------------------

    def take(self, pool: str, slot: int = 0) -> Row:
        """Return a row for a child of this slot; raise :exc:`OSError` if the file system is full."""
        self.note_turn()  # many forks take long
        stock = self._stocks[pool]
        row = stock.free.pop() if stock.free else stock.add()
        row.clear_activity(slot)
        return row

    def give_back(self, pool: str, row: Row) -> None:
        row.vacate()
        self._stocks[pool].free.append(row)

    def settled(self, pool: str) -> int:
        """Count the jobs of a pool that were settled by the children of this scoreboard."""
        return sum(row.settled for row in self._stocks[pool].rows)

    def done(self) -> int:
        """Count the jobs that were done since the supervisor's start, also before a reload."""
        rows = (row for stock in self._stocks.values() for row in (stock.past, *stock.rows))
        return sum(row.done for row in rows) + sum(row.done for _, row in self._guests.values())

    def count_crash(self, pool: str, label: str) -> None:
        """Count a child that died at a job."""
        self._stocks[pool].past.count_one(label, CRASHED)

    def count_given_back(self, pool: str, label: str) -> None:
        """Count a job that goes back to the queue because its child was stopped."""
        self._stocks[pool].past.count_one(label, GIVEN_BACK)

    def count_burial(self, pool: str, label: str) -> None:
        """Count a job that was buried because it keeps crashing its child."""
        self._stocks[pool].past.count_one(label, BURIED)

    # -- the supervisor --------------------------------------------------------------------------------------

    def publish(self) -> None:
        """Let readers find the page, and remove those of supervisors that are gone."""
        self._words[0] = page.MAGIC
        self.memory.publish()
        _remove_stale(self.memory.path, [memory.path for memory in self._earlier.values()])

    def note_turn(self) -> None:
        self._words[page.TURN_NS] = time.monotonic_ns()

    def show_state(self, state: str) -> None:
        """Show the supervisor's state, one of `page.STATES`, and since when it has it."""
        if state != self._state:
            self._state = state
            with self._changing():
                self._words[page.STATE] = page.STATES.index(state)
                self._words[page.SINCE_NS] = time.monotonic_ns()

    def show_plan(self, sizes: Iterable[tuple[str, int, int, int]]) -> None:
        """Show the wanted number of children of each pool, and their minimum and maximum."""
        for pool, size, minimum, maximum in sizes:
            self._stocks[pool].want(size, minimum, maximum)

    def show_facts(self, facts: Mapping[str, Any], checks: int) -> None:
        """Show the supervisor's texts, and the number of checks of new code that have begun."""
        data = json.dumps(facts).encode()
        if len(data) > FACTS_BYTES:
            data = b"{}"
        with self._changing():
            self._words[page.FACTS_BYTES] = len(data)
            at = self._words[page.FACTS_AT]
            self._bytes[at : at + len(data)] = data
            self._words[page.CHECKS] = checks

    def close(self) -> None:
        """Remove the pages: the supervisor ends."""
        for memory in (self.memory, *self._earlier.values()):
            memory.remove()

    @contextmanager
    def _changing(self) -> Generator[None]:
        """Make the sequence odd during a change that readers must not see in part."""
        self._words[page.SEQUENCE] |= 1
        try:
            yield
        finally:
            self._words[page.SEQUENCE] += 1

    # -- across a reload -------------------------------------------------------------------------------------

    def memories(self) -> list[tuple[int, str | None]]:
        """Return the descriptors and paths of the pages that the next image inherits: it removes them later."""
        return [(memory.fd, memory.path) for memory in (self.memory, *self._earlier.values())]

    def totals_of_exited(self, alive: Iterable[tuple[str, Row]]) -> dict[str, Totals]:
        """Return the totals of the rows whose children have exited, as the start of the next scoreboard.

        ``alive`` has the other rows and their pools. Labels without a count are left out, apart from theirs.
        """
        living = {row: pool for pool, row in alive}
        found: dict[str, Totals] = {}
        for pool, stock in self._stocks.items():
            ended = [stock.past, *(row for row in stock.rows if row not in living)]
            totals = _sum(row.totals() for row in ended)
            found[pool] = {label: counts for label, counts in totals.items() if any(counts)}
        for row, pool in living.items():
            for label in row.place.labels:
                found[pool].setdefault(label, [0] * LABEL_WORDS)
        return {pool: totals for pool, totals in found.items() if totals}

    def inherit(self, memories: Iterable[tuple[int, str | None]]) -> dict[int, memoryview]:
        """Take over the pages of earlier images; return the words of each."""
        self._earlier = {fd: Memory(fd, path) for fd, path in memories}
        return {fd: memory.map() for fd, memory in self._earlier.items()}

    def adopt(self, pid: int, pool: str, row: Row) -> None:
        """Include a row of an earlier page in the counts while its child lives."""
        self._guests[pid] = pool, row

    def retire(self, pid: int) -> None:
        """Count the row among the totals; remove the earlier page with the last of its rows."""
        pool, row = self._guests.pop(pid)
        with self._changing():
            self._stocks[pool].past.count(row.totals())
            row.vacate()
        self.let_go_of_earlier()

    def let_go_of_earlier(self) -> None:
        """Remove the earlier pages that have no living child."""
        in_use = {guest.place.fd for _, guest in self._guests.values()}
        for fd in [fd for fd in self._earlier if fd not in in_use]:
            self._earlier.pop(fd).close()


def _sum(parts: Iterable[Totals]) -> Totals:
    total: Totals = {}
    for part in parts:
        for label, counts in part.items():
            total[label] = [a + b for a, b in zip(total[label], counts, strict=True)] if label in total else counts
    return total


def _describe(queues: Mapping[str, Sequence[str]]) -> bytes:
    """Return the text that explains the page, in whole words."""
    words = {"header": page.HEADER, "queue": page.QUEUE, "row": page.ROW, "label": page.LABEL}
    text = json.dumps({"format": page.FORMAT, "words": words, "queues": queues}).encode()
    return text + b" " * (-len(text) % 8)


def _remove_stale(path: str | None, in_use: Collection[str | None]) -> None:
    """Remove the pages in the folder of this one whose supervisor is gone, and this supervisor's own of no use."""
    if path is None:
        return
    folder, _, own = path.rpartition("/")
    with suppress(OSError):
        for name in sorted(os.listdir(folder), reverse=True):  # noqa: PTH208  # they are names, not paths
            of_page = name.removesuffix(page.STACKS)  # comes before its page, which must still be there
            parsed = page.parse_name(of_page.removeprefix("."))
            if parsed is None or of_page == own or f"{folder}/{of_page}" in in_use:
                continue
            if parsed[0] == os.getpid() or page.is_stale(f"{folder}/{of_page}", parsed[0]):
                with suppress(OSError):
                    Path(folder, name).unlink()
