"""The status page: a file where a supervisor and its workers publish their state, and the reader of it.

Any process of the same user, or root, reads it without the supervisor's help, even if that is frozen. The file begins
with words of eight bytes, in the order of `HEADER`; then come texts in JSON, the words of each queue in the order of
`QUEUE`, and the rows of its workers. A row has the words of `ROW`, and for each label, which is the name of a task, the
words of `LABEL`. Each word has one writer. The supervisor's words and texts are consistent while `sequence` is even and
unchanged; a worker's job is consistent if two readings agree.

A page is named ``PID.GENERATION.NAMESPACE``, and beside it is a file of that name with `STACKS`, where a worker writes
its Python stacks when a reader asks. After a reload the older pages stay while workers of the old code live:
the newest page has the totals of those that have exited, an older one has only the rows of living workers.

This imports few modules, since a health check must be fast.
"""

from __future__ import annotations

import os
import stat
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from typing import Any

HEADER = tuple(
    "magic sequence pid started_ticks generation state since_ns turn_ns checks "
    "labels_at labels_bytes facts_at facts_bytes queues_at queues".split()
)
_, SEQUENCE, PID, STARTED_TICKS, GENERATION, STATE, SINCE_NS, TURN_NS, CHECKS = range(9)
LABELS_AT, LABELS_BYTES, FACTS_AT, FACTS_BYTES, QUEUES_AT, QUEUES = range(9, len(HEADER))
HEADER_WORDS = 32

QUEUE = ("wanted", "rows", "rows_at", "row_words", "minimum", "maximum")
WANTED, ROWS, ROWS_AT, ROW_WORDS, MINIMUM, MAXIMUM = range(len(QUEUE))

# The first cache line is the worker's, apart from `drain`, the second one the supervisor's, the rest the worker's.
ROW = tuple(
    "job label job_since_ns kill_at_ns alive_ns left_ns drain away_since_ns "
    "pid state forked_ns private_bytes done_before retried_before buried_before slot "
    "progress_done progress_total limited_since_ns".split()
)
JOB, LABEL_NUMBER, JOB_SINCE_NS, KILL_AT_NS, ALIVE_NS, LEFT_NS, DRAIN, AWAY_SINCE_NS = range(8)
ROW_PID, ROW_STATE, FORKED_NS, PRIVATE_BYTES, DONE_BEFORE, RETRIED_BEFORE, BURIED_BEFORE, SLOT = range(8, 16)
PROGRESS_DONE, PROGRESS_TOTAL, LIMITED_SINCE_NS = range(16, len(ROW))
FIXED_WORDS = len(ROW)

# A time of less than 2**n ms is in bucket n; the last bucket, from 17.5 min on, has no upper end.
BUCKETS = 22
_BOUNDS = (*(f"{1 << n}_ms" for n in range(BUCKETS - 1)), "inf")
# First the jobs that a worker has settled, by ending, then other events: only the label 0 has `reconnects`.
LABEL = (
    *("done", "retried", "buried", "discarded", "expired", "crashed", "given_back", "reconnects"),
    *("busy_ns", *(f"ran_below_{bound}" for bound in _BOUNDS)),
    *("waited_us", *(f"waited_below_{bound}" for bound in _BOUNDS)),
)
DONE, RETRIED, BURIED, DISCARDED, EXPIRED, CRASHED, GIVEN_BACK, RECONNECTS, BUSY_NS, DURATIONS = range(10)
WAITED_US = DURATIONS + BUCKETS
WAITS = WAITED_US + 1
LABEL_WORDS = len(LABEL)

# The names of all words, as a number modulo a prime: a reader of another layout does not take the page for one of its.
FORMAT = int.from_bytes(" ".join((*HEADER, *QUEUE, *ROW, *LABEL)).encode(), "big") % 4_294_967_291
MAGIC = int.from_bytes(b"FBpg" + FORMAT.to_bytes(4, "big"), "big")

# The end of the name of the file for the stacks.
STACKS = ".stacks"

STATES = ("starting", "running", "reloading", "draining", "stopped")
WORKER_STATES = ("starting", "ready", "draining", "leaving", "killed", "exited")

# A supervisor takes a turn at least each second. One that has taken none for this long hangs.
FROZEN_AFTER_S = 5.0
# A reader does not wait longer than this for the end of a change.
_PATIENCE_S = 0.05


def bucket_of(time_ns: int) -> int:
    """Return the bucket of a time."""
    return min(BUCKETS - 1, (time_ns // 1_000_000).bit_length())


class PageError(Exception):
    """A file is not a status page of this format."""


class WorkerView:
    """A worker's row, as read at one moment."""

    __slots__ = ("is_torn", "words")

    def __init__(self, words: Sequence[int], *, is_torn: bool) -> None:
        self.words = words
        self.is_torn = is_torn  # its job changed during each reading: it is busy with short jobs

    @property
    def state(self) -> str:
        return _name(WORKER_STATES, self.words[ROW_STATE])

    @property
    def pid(self) -> int:
        return self.words[ROW_PID]

    @property
    def job(self) -> int | None:
        return None if self.is_torn else self.words[JOB] or None

    @property
    def progress(self) -> tuple[int, int] | None:
        """How much of its work the task has done, and the whole, if it says so."""
        done, total = self.words[PROGRESS_DONE], self.words[PROGRESS_TOTAL]
        return (done, total) if self.job and total else None

    @property
    def is_limited(self) -> bool:
        """Whether the worker waits for a limit before it starts its job."""
        return self.words[LIMITED_SINCE_NS] != 0

    def label_words(self) -> Iterator[Sequence[int]]:
        """Yield the words of each label, in the order of the queue's labels."""
        for at in range(FIXED_WORDS, len(self.words), LABEL_WORDS):
            yield self.words[at : at + LABEL_WORDS]

    def total(self, word: int) -> int:
        """Return the sum of one word over all labels."""
        return sum(self.words[FIXED_WORDS + word :: LABEL_WORDS])


class QueueView:
    """The words of a queue, the supervisor's own row, ``past``, and the rows of its workers, living and dead."""

    __slots__ = ("past", "rows", "words")

    def __init__(self, words: Sequence[int], rows: list[WorkerView]) -> None:
        self.words = words
        self.past, *self.rows = rows

    @property
    def wanted(self) -> int:
        return self.words[WANTED]

    @property
    def minimum(self) -> int:
        return self.words[MINIMUM]

    @property
    def maximum(self) -> int:
        return self.words[MAXIMUM]

    @property
    def workers(self) -> list[WorkerView]:
        """The rows of living workers."""
        return [row for row in self.rows if row.pid]

    def count_serving(self) -> int:
        """Count the ready workers that have a connection to the broker."""
        return sum(row.state == "ready" and not row.words[AWAY_SINCE_NS] for row in self.rows if row.pid)


class Page:
    """What one page says, as read at one moment."""

    def __init__(
        self, header: Sequence[int], labels: bytes, facts: bytes, queues: list[QueueView], now_ns: int
    ) -> None:
        self.header = header
        self.queues = queues
        self.now_ns = now_ns
        self._labels = labels
        self._facts = facts

    @property
    def pid(self) -> int:
        return self.header[PID]

    @property
    def state(self) -> str:
        return _name(STATES, self.header[STATE])

    @property
    def generation(self) -> int:
        """The number of reloads before this page."""
        return self.header[GENERATION]

    @property
    def checks(self) -> int:
        """How many checks of new code have begun."""
        return self.header[CHECKS]

    @property
    def turn_age_s(self) -> float:
        """How long ago the supervisor took its last turn."""
        return max(0, self.now_ns - self.header[TURN_NS]) / 1e9

    def labels(self) -> dict[str, list[str]]:
        """Return the name of each queue and the names of its tasks, in the order of the page."""
        import json

        told: dict[str, list[str]] = json.loads(self._labels)["queues"]
        return told

    def facts(self) -> dict[str, Any]:
        """Return the supervisor's texts: deaths, restarts and reloads. Empty if they were changing all the time."""
        import json

        try:
            told: dict[str, Any] = json.loads(self._facts)
        except ValueError:
            return {}
        return told


def _name(names: Sequence[str], number: int) -> str:
    return names[number] if number < len(names) else "?"


def read(fd: int) -> Page:
    """Read a page; raise :exc:`PageError` if the file is not one, :exc:`OSError` if it cannot be read.

    The file is read, not mapped: a page that another user truncates cannot kill its reader.
    """
    until = time.monotonic() + _PATIENCE_S
    while True:
        before = _read_words(fd, 0, HEADER_WORDS)
        if before[0] != MAGIC:
            raise PageError("it is not a status page, or of another version of Flask-Backend")
        page = _read_once(fd, before)
        is_sound = before[SEQUENCE] % 2 == 0 and _read_words(fd, SEQUENCE, 1)[0] == before[SEQUENCE]
        if is_sound or time.monotonic() > until:  # then the supervisor was stopped in the middle of a change
            return page
        time.sleep(0.001)  # a change takes microseconds, unless the supervisor has lost its CPU


def _read_once(fd: int, header: Sequence[int]) -> Page:
    labels = _read_bytes(fd, header[LABELS_AT], header[LABELS_BYTES])
    facts = _read_bytes(fd, header[FACTS_AT], header[FACTS_BYTES])
    queues: list[QueueView] = []
    for number in range(min(header[QUEUES], 1 << 16)):
        words = _read_words(fd, header[QUEUES_AT] // 8 + number * len(QUEUE), len(QUEUE))
        queues.append(QueueView(words, list(_read_rows(fd, words))))
    return Page(header, labels, facts, queues, time.monotonic_ns())


def _read_rows(fd: int, queue: Sequence[int]) -> Iterator[WorkerView]:
    width = queue[ROW_WORDS]
    if not FIXED_WORDS <= width < 1 << 20 or (width - FIXED_WORDS) % LABEL_WORDS:
        raise PageError("its rows have an impossible width")
    for number in range(min(queue[ROWS], 1 << 16)):
        at = queue[ROWS_AT] // 8 + number * width
        words = _read_words(fd, at, width)
        for _ in range(3):
            again = _read_words(fd, at, FIXED_WORDS)
            if _is_same_job(words, again):
                yield WorkerView(words, is_torn=False)
                break
            words = _read_words(fd, at, width)
        else:
            yield WorkerView(words, is_torn=True)


def _is_same_job(one: Sequence[int], other: Sequence[int]) -> bool:
    return (
        one[JOB] == other[JOB] and one[LABEL_NUMBER] == other[LABEL_NUMBER] and one[JOB_SINCE_NS] == other[JOB_SINCE_NS]
    )


def _read_words(fd: int, at: int, count: int) -> memoryview:
    return memoryview(_read_bytes(fd, at * 8, count * 8)).cast("Q")


def _read_bytes(fd: int, at: int, count: int) -> bytes:
    if at + count > 1 << 40 or count > 1 << 24 or len(data := os.pread(fd, count, at)) < count:
        raise PageError("it is shorter than it says")
    return data


# -- where pages are -------------------------------------------------------------------------------------------


def folder_for(environment: Mapping[str, str]) -> str | None:
    """Return the folder for the pages of this user's supervisors, which it makes; None if there is no place for one."""
    if runtime := environment.get("RUNTIME_DIRECTORY", "").partition(":")[0]:
        return runtime if os.access(runtime, os.W_OK) else None
    for folder in _own_folders(os.getuid()):
        try:
            if not os.path.ismount(os.path.dirname(folder)):
                continue
            try:
                os.mkdir(folder, 0o700)
            except FileExistsError:
                pass
            if _is_trusted(folder, os.getuid()):
                return folder
        except OSError:  # read-only, or full
            continue
    return None


def _own_folders(uid: int) -> tuple[str, str]:
    """Return the places for the folder of a user, in memory, the best first."""
    return f"/dev/shm/flask-backend-{uid}", f"/run/user/{uid}/flask-backend"


def _is_trusted(folder: str, owner: int) -> bool:
    found = os.lstat(folder)
    return stat.S_ISDIR(found.st_mode) and found.st_uid == owner and not found.st_mode & 0o022


def _folders() -> Iterator[str]:
    """Yield all folders that may have pages: those of this user, or of all users for root."""
    yield from filter(None, os.environ.get("RUNTIME_DIRECTORY", "").split(":")[:1])
    for parent in ("/run/flask-backend", "/run/private/flask-backend"):
        yield from (f"{parent}/{name}" for name in _names(parent))
    if os.getuid():
        yield from _own_folders(os.getuid())
        return
    yield from (f"/dev/shm/{name}" for name in _names("/dev/shm") if name.startswith("flask-backend-"))
    yield from (f"/run/user/{name}/flask-backend" for name in _names("/run/user"))


def _names(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []


def name_for(pid: int, generation: int) -> str:
    """Return the name of a page. Containers may share a folder, but not their pids: it has the namespace of the pid."""
    return f"{pid}.{generation}.{_pid_namespace()}"


def parse_name(name: str) -> tuple[int, int] | None:
    """Return the pid and the generation in the name of a page, if the pid is of this namespace."""
    parts = name.split(".")
    if not all(part.isdecimal() for part in parts):
        return None
    match [int(part) for part in parts]:
        case [pid, generation, namespace] if namespace == _pid_namespace():
            return pid, generation
        case _:
            return None


def _pid_namespace() -> int:
    try:
        return os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        return 0


def read_process(pid: int) -> tuple[str, int] | None:
    """Return the state of a process, such as R or T, and its start in ticks since the boot, if it is alive.

    Both are unknown, "?" and 0, if /proc hides a process of this user. With `hidepid`, see proc(5), it hides those in
    another user namespace too: systemd makes one for each command of a unit with `PrivateUsers=`.
    """
    try:
        with open(f"/proc/{pid}/stat", "rb", buffering=0) as file:
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return ("?", 0) if _accepts_signals(pid) else None
    return None if fields[0] in b"ZX" else (fields[0].decode(), int(fields[19]))


def _accepts_signals(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError:
        return False
    return True


class Found:
    """A living supervisor's pages, the newest one first, the state of its process, and the path of each generation."""

    __slots__ = ("pages", "paths", "pid", "process_state")

    def __init__(self, pid: int, process_state: str, pages: list[Page], paths: Mapping[int, str]) -> None:
        self.pid = pid
        self.process_state = process_state
        self.pages = pages
        self.paths = paths

    @property
    def page(self) -> Page:
        return self.pages[0]

    @property
    def is_stopped(self) -> bool:
        """Whether a signal or a debugger has stopped the process."""
        return self.process_state in "Tt"

    @property
    def frozen_s(self) -> float | None:
        """For how many seconds the supervisor has been frozen, if it is."""
        if self.is_stopped or (self.page.state != "reloading" and self.page.turn_age_s > FROZEN_AFTER_S):
            return self.page.turn_age_s
        return None


def find(only: int | None = None) -> dict[int, Found]:
    """Read the pages of all living supervisors that this user may read, or of the one with the pid ``only``."""
    files: dict[int, dict[int, str]] = {}
    for folder in _folders():
        for name in _names(folder):
            if (parsed := parse_name(name)) and only in (None, parsed[0]):
                files.setdefault(parsed[0], {})[parsed[1]] = f"{folder}/{name}"
    if only is not None and only not in files:
        files[only] = nameless_pages(only)
    found = (_read_all(pid, files[pid]) for pid in sorted(files))
    return {each.pid: each for each in found if each}


def nameless_pages(pid: int, end: str = "") -> dict[int, str]:
    """Return the pages of a supervisor that are not in a known folder: in memory, for example.

    With `STACKS` as the ``end`` of their names, return the files for the stacks instead.
    """
    paths: dict[int, str] = {}
    for number in _names(f"/proc/{pid}/fd"):
        path = f"/proc/{pid}/fd/{number}"
        try:
            name = os.readlink(path).rpartition("/")[2].removesuffix(" (deleted)").removeprefix("memfd:")
        except OSError:
            continue
        if name.endswith(end) and (parsed := parse_name(name.removesuffix(end))) and parsed[0] == pid:
            paths[parsed[1]] = path
    return paths


def stacks_path(found: Found, generation: int) -> str | None:
    """Return the file for the stacks of the workers of one generation, if there is one that this user can find."""
    path = found.paths[generation]
    return nameless_pages(found.pid, STACKS).get(generation) if path.startswith("/proc/") else path + STACKS


def _read_all(pid: int, paths: dict[int, str]) -> Found | None:
    process = read_process(pid)
    if process is None:
        return None
    state, started = process
    until = time.monotonic() + _PATIENCE_S
    while True:
        pages: list[Page] = []
        for generation in sorted(paths, reverse=True):
            try:
                page = _read_file(paths[generation])
            except (OSError, PageError):
                continue  # it has just been removed, or belongs to another user
            if started in (0, page.header[STARTED_TICKS]) and page.pid == pid:
                pages.append(page)
        # While a row moves from an older page to the totals of the newest one, it would be counted twice or not at all.
        if not pages:
            return None
        newest, *older = pages
        if not older or time.monotonic() > until or _is_unchanged(paths[newest.header[GENERATION]], newest):
            return Found(pid, state, pages, paths)


def _is_unchanged(path: str, page: Page) -> bool:
    try:
        return _read_file(path).header[SEQUENCE] == page.header[SEQUENCE]
    except (OSError, PageError):
        return False


def _read_file(path: str) -> Page:
    # Another user may have put anything there.
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | (0 if path.startswith("/proc/") else os.O_NOFOLLOW))
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise PageError("it is not a regular file")
        return read(fd)
    finally:
        os.close(fd)


def is_stale(path: str, pid: int) -> bool:
    """Whether the supervisor of a page is gone: its pid is free, or belongs to a younger process."""
    process = read_process(pid)
    if process is None:
        return True
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        words = _read_words(fd, 0, HEADER_WORDS)
    except PageError:
        return False
    finally:
        os.close(fd)
    return words[0] == MAGIC and process[1] not in (0, words[STARTED_TICKS])
