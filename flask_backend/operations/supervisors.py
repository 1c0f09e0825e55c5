"""The supervisors of this machine: what their status pages say, and what /proc says of their processes."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from flask_backend.config import Address
from flask_backend.errors import ConfigError
from flask_backend.system import page as pages
from flask_backend.system.page import (
    BUCKETS,
    BURIED,
    BUSY_NS,
    CRASHED,
    DISCARDED,
    DONE,
    DURATIONS,
    EXPIRED,
    GIVEN_BACK,
    RECONNECTS,
    RETRIED,
    WAITED_US,
    WAITS,
    Found,
    WorkerView,
)
from flask_backend.system.procfs import MemoryUse, read_memory, read_stat, titles, uptime_s
from flask_backend.system.titles import is_master, read_worker
from flask_backend.visible import MAX_NAME, visible


@dataclass(frozen=True, slots=True)
class Process:
    """What /proc says of a process. ``memory`` is unset if this user may not read it."""

    pid: int
    parent: int
    title: str
    up_s: float
    rss_bytes: int
    memory: MemoryUse | None


@dataclass(slots=True)
class Counts:
    """How jobs ended, the time that they took, and how long they had waited for their first attempt.

    ``durations[n]`` and ``waits[n]`` count those of less than 2**n ms.
    """

    done: int = 0  # also those discarded
    retried: int = 0
    buried: int = 0
    discarded: int = 0
    expired: int = 0  # deleted without an attempt
    crashed: int = 0
    given_back: int = 0
    busy_s: float = 0.0
    waited_s: float = 0.0
    durations: list[int] = field(default_factory=lambda: [0] * BUCKETS)
    waits: list[int] = field(default_factory=lambda: [0] * BUCKETS)

    @property
    def failed(self) -> int:
        return self.retried + self.buried

    @property
    def mean_s(self) -> float | None:
        """The mean time of an attempt, if there was one."""
        attempts = sum(self.durations)
        return self.busy_s / attempts if attempts else None

    @property
    def mean_wait_s(self) -> float | None:
        """The mean time that jobs have waited, if one was measured."""
        waits = sum(self.waits)
        return self.waited_s / waits if waits else None

    def merge(self, other: Counts) -> None:
        """Add the counts of another supervisor."""
        self.done += other.done
        self.retried += other.retried
        self.buried += other.buried
        self.discarded += other.discarded
        self.expired += other.expired
        self.crashed += other.crashed
        self.given_back += other.given_back
        self.busy_s += other.busy_s
        self.waited_s += other.waited_s
        self.durations = list(map(sum, zip(self.durations, other.durations, strict=True)))
        self.waits = list(map(sum, zip(self.waits, other.waits, strict=True)))

    def add(self, words: Sequence[int]) -> None:
        self.done += words[DONE] + words[DISCARDED]
        self.discarded += words[DISCARDED]
        self.expired += words[EXPIRED]
        self.retried += words[RETRIED]
        self.buried += words[BURIED]
        self.crashed += words[CRASHED]
        self.given_back += words[GIVEN_BACK]
        self.busy_s += words[BUSY_NS] / 1e9
        self.waited_s += words[WAITED_US] / 1e6
        for number in range(BUCKETS):
            self.durations[number] += words[DURATIONS + number]
            self.waits[number] += words[WAITS + number]


@dataclass(slots=True)
class Queue:
    """A queue of a supervisor: its workers, and the counts since the supervisor's start by task."""

    name: str
    wanted: int = 0
    minimum: int = 0
    maximum: int = 0
    ready: int = 0
    serving: int = 0  # ready ones that have a connection to the broker
    busy: int = 0
    exits: dict[str, int] = field(default_factory=dict[str, int])
    tasks: dict[str, Counts] = field(default_factory=dict[str, Counts])
    states: Counter[str] = field(default_factory=Counter[str])  # its workers: starting, idle, limited, busy or stopping
    longest_s: float = 0.0  # how long its oldest running job has run
    most_private_bytes: int = 0  # of one worker, as last read
    reconnects: int = 0

    def note(self, row: WorkerView, now_ns: int) -> None:
        """Count a living worker."""
        is_limited = row.is_limited
        is_busy = (row.job is not None or row.is_torn) and not is_limited
        self.ready += row.state == "ready"
        self.busy += is_busy
        match row.state:
            case "starting":
                self.states["starting"] += 1
            case "ready":
                self.states["limited" if is_limited else "busy" if is_busy else "idle"] += 1
            case _:
                self.states["stopping"] += 1
        if row.job is not None and not is_limited:
            self.longest_s = max(self.longest_s, (now_ns - row.words[pages.JOB_SINCE_NS]) / 1e9)
        self.most_private_bytes = max(self.most_private_bytes, row.words[pages.PRIVATE_BYTES])


@dataclass(frozen=True, slots=True)
class Worker:
    """A worker. Without a readable page only its title says what it does, in ``activity``."""

    process: Process
    queue: str
    activity: str
    state: str | None = None
    job: int | None = None
    task: str | None = None
    since_s: float | None = None  # how long it has had its job
    away_s: float | None = None  # for how long its broker has been away
    done: int | None = None
    retried: int | None = None
    buried: int | None = None
    is_old: bool | None = None  # runs the code from before a reload
    crashed: int | None = None  # how many workers that had its slot before died at a job ...
    restarts: dict[str, int] | None = None  # ... and how they ended, by reason
    progress: tuple[int, int] | None = None  # how much its task has done, and the whole, if the task tells
    limit: str | None = None  # the limit that its job must respect, ...
    limited_s: float | None = None  # ... and for how long it has waited for that, if it does

    @property
    def failed(self) -> int | None:
        return None if self.retried is None or self.buried is None else self.retried + self.buried


@dataclass(frozen=True, slots=True)
class Supervisor:
    """A supervisor. Without a readable page ``found`` and ``facts`` are empty."""

    process: Process
    workers: Sequence[Worker]
    queues: Sequence[Queue]
    found: Found | None = None
    facts: dict[str, Any] = field(default_factory=dict[str, Any])

    @property
    def state(self) -> str | None:
        """The state on the page; without one, only what the title shows."""
        if self.found:
            return self.found.page.state
        return None if is_master(self.process.title) else "reloading"

    @property
    def state_for_s(self) -> float | None:
        page = self.found and self.found.page
        return max(0, page.now_ns - page.header[pages.SINCE_NS]) / 1e9 if page else None

    def serves(self, broker: str) -> bool:
        """Whether its workers use the broker at this address, which may have another name for this machine."""
        return is_same_broker(str(self.facts.get("broker")), broker)

    @property
    def private_bytes(self) -> int | None:
        """The sum of the private memory of its processes; None if one of them cannot be read."""
        return sum(memory.private_bytes for memory in self._memories) if self._memories else None

    @property
    def pss_bytes(self) -> int | None:
        return sum(memory.pss_bytes for memory in self._memories) if self._memories else None

    @property
    def _memories(self) -> list[MemoryUse]:
        """Return the memory of all its processes; an empty list if one of them cannot be read."""
        processes = [self.process, *(worker.process for worker in self.workers)]
        memories = [process.memory for process in processes if process.memory]
        return memories if len(memories) == len(processes) else []


def is_same_broker(one: str, other: str) -> bool:
    """Whether two addresses are those of one broker. No name server is asked: only this machine has known names."""
    if one == other:
        return True
    try:
        first, second = Address.parse(one), Address.parse(other)
    except ConfigError:
        return False
    hosts = first.host.lower(), second.host.lower()
    return first.port == second.port and (hosts[0] == hosts[1] or all(map(_is_this_machine, hosts)))


def _is_this_machine(host: str) -> bool:
    from ipaddress import ip_address

    if host in ("localhost", "ip6-localhost", "ip6-loopback"):
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def find(memory_s: float = math.inf) -> list[Supervisor]:
    """Return the supervisors of all users, by pid. Other users' pages cannot be read, except by root.

    To read the memory of a process, the system walks its page tables: at most ``memory_s`` is spent on that.
    """
    until = time.monotonic() + memory_s
    now, all_titles = uptime_s(), dict(titles())
    ours = [(pid, title) for pid, title in all_titles.items() if title.startswith("flask-backend:")]
    processes = [_look_at(pid, title, now, until) for pid, title in ours]
    known = {process.pid: process for process in processes if process}
    masters = {process.pid: process for process in known.values() if is_master(process.title)}
    # A newly forked child still has its parent's title.
    masters = {pid: master for pid, master in masters.items() if master.parent not in masters}
    found = pages.find()
    parents = {process.parent for process in known.values() if read_worker(process.title)}
    for pid in (parents | set(found)) - set(masters):
        title = all_titles.get(pid, "")
        if (pid in found or _is_reloading(title)) and (master := _look_at(pid, title, now)):
            masters[pid] = master
    for pid in set(masters) - set(found):
        found |= pages.find(pid)
    return [_describe_page(master, found.get(pid), known, now) for pid, master in sorted(masters.items())]


def find_pids() -> list[int]:
    """Return the pids of the supervisors whose pages this user can read; quicker than :func:`find`."""
    return list(pages.find())


def reload_times(broker: str) -> list[float]:
    """Return when the supervisors of a broker last took new code, in seconds since the epoch; of those by this user."""
    times: list[float] = []
    for found in pages.find().values():
        with suppress(ValueError, LookupError, TypeError, AttributeError):  # a page of another user may hold anything
            facts = found.page.facts()
            record: Mapping[str, Any] | None = facts.get("reload")
            if record and not record["has_failed"] and facts["broker"] == broker:
                times.append(float(record["at"]))
    return times


def describe(found: Found, processes: dict[int, Process]) -> Supervisor:
    """Return the supervisor of these pages, with its processes by pid; its own must be among them."""
    return _describe(processes[found.pid], found, processes, uptime_s())


def _is_reloading(title: str) -> bool:
    """Whether a worker's parent is a supervisor that has lost its title: one that has executed its command to reload.

    During the exec, a process has no command line at all.
    """
    return not title or "supervise" in title.split()[1:]


def _look_at(pid: int, title: str, now: float, until: float = math.inf) -> Process | None:
    """Return the facts about a process, unless it has ended; its memory only before ``until``."""
    memory, stat = read_memory(pid) if time.monotonic() < until else None, read_stat(pid)
    if stat is None:
        return None
    rss_bytes = memory.rss_bytes if memory else stat.rss_bytes
    return Process(pid, stat.parent, visible(title), now - stat.started, rss_bytes, memory)


def _describe_page(master: Process, found: Found | None, known: dict[int, Process], now: float) -> Supervisor:
    try:
        return _describe(master, found, known, now)
    except (ValueError, LookupError, TypeError, AttributeError):  # a page of another user may hold anything
        return _describe(master, None, known, now)


def _describe(master: Process, found: Found | None, known: dict[int, Process], now: float) -> Supervisor:
    if found is None:
        workers = _sorted(_workers_by_title(master, known.values()))
        queues = [Queue(name) for name in sorted({worker.queue for worker in workers})]
        return Supervisor(master, workers, queues)
    facts = found.page.facts()
    queues_by_name = count_queues(found, facts, _shown)
    slots: dict[str, dict[str, dict[str, Any]]] = facts.get("slots", {})
    workers_found: list[Worker] = []
    for number, page in enumerate(found.pages):
        limits: dict[str, str] = page.facts().get("limits", {})
        for (name, labels), view in zip(page.labels().items(), page.queues, strict=True):
            for row in view.workers:
                # The process may be a moment younger than the list of titles.
                process = known.get(row.pid) or _look_at(row.pid, "", now)
                if process and process.parent == master.pid:
                    past = slots.get(name, {}).get(str(row.words[pages.SLOT]), {}) if number == 0 else None
                    workers_found.append(_worker(process, name, labels, row, page.now_ns, past, limits.get(name)))
    shown = [queue for queue in queues_by_name.values() if queue.wanted or queue.ready or queue.tasks]
    return Supervisor(master, _sorted(workers_found), shown, found, facts)


def _shown(task: str) -> str:
    return visible(task, MAX_NAME)


def count_queues(found: Found, facts: dict[str, Any], name_of: Callable[[str], str] = str) -> dict[str, Queue]:
    """Return the queues of a supervisor by name, also those that it served only before a reload.

    ``name_of`` returns the name under which a task is counted.
    """
    queues: dict[str, Queue] = {}
    exits: dict[str, dict[str, int]] = facts.get("exits", {})
    for number, page in enumerate(found.pages):
        for (name, labels), view in zip(page.labels().items(), page.queues, strict=True):
            queue = queues.setdefault(name, Queue(name, exits=exits.get(name, {})))
            if number == 0:
                queue.wanted, queue.minimum, queue.maximum = view.wanted, view.minimum, view.maximum
            queue.serving += view.count_serving()
            for row in view.workers:
                queue.note(row, page.now_ns)
            for row in view.workers if number else [view.past, *view.rows]:
                queue.reconnects += row.total(RECONNECTS)
                _count(queue.tasks, [name_of(label) for label in labels], row)
    return queues


def _count(tasks: dict[str, Counts], labels: Sequence[str], row: WorkerView) -> None:
    for label, words in zip(labels, row.label_words(), strict=True):
        if any(words):
            tasks.setdefault(label, Counts()).add(words)


def _worker(  # noqa: PLR0913  # the facts about it
    process: Process,
    queue: str,
    labels: Sequence[str],
    row: WorkerView,
    now_ns: int,
    past: dict[str, Any] | None,
    limit: str | None,
) -> Worker:
    """Describe a worker. ``past`` is that of its slot; None for one that runs old code, which no longer has a slot."""
    words, job = row.words, row.job
    task = visible(labels[words[pages.LABEL_NUMBER]], MAX_NAME) if job and words[pages.LABEL_NUMBER] else None
    since_s = max(0, now_ns - words[pages.JOB_SINCE_NS]) / 1e9 if job else None
    away_ns = words[pages.AWAY_SINCE_NS]
    limited_s = max(0, now_ns - words[pages.LIMITED_SINCE_NS]) / 1e9 if job and row.is_limited else None
    if limited_s is not None:
        activity = f"waits for limit {limit} {limited_s:.0f}s"
    elif job:
        activity = " ".join(filter(None, [task or f"job {job}", f"{since_s:.0f}s", show_progress(row.progress)]))
    elif row.state != "ready":
        activity = row.state
    else:
        activity = "busy" if row.is_torn else "waits for the broker" if away_ns else "idle"
    return Worker(
        process,
        queue,
        activity,
        row.state,
        job,
        task,
        since_s,
        max(0, now_ns - away_ns) / 1e9 if away_ns else None,
        done=row.total(DONE) + row.total(DISCARDED) - words[pages.DONE_BEFORE],
        retried=row.total(RETRIED) - words[pages.RETRIED_BEFORE],
        buried=row.total(BURIED) - words[pages.BURIED_BEFORE],
        is_old=past is None,
        crashed=None if past is None else past.get("crashed", 0),
        restarts=None if past is None else past.get("restarts", {}),
        progress=row.progress,
        limit=limit,
        limited_s=limited_s,
    )


def show_progress(progress: tuple[int, int] | None) -> str:
    return f"{progress[0]}/{progress[1]}" if progress else ""


def _workers_by_title(master: Process, processes: Iterable[Process]) -> Iterator[Worker]:
    for process in processes:
        if process.parent == master.pid and (told := read_worker(process.title)):
            yield Worker(process, told.queue, told.activity)


def _sorted(workers: Iterable[Worker]) -> list[Worker]:
    return sorted(workers, key=lambda worker: (worker.queue, worker.process.pid))


def age_s(at: float) -> float:
    """Return how long ago a time was, in seconds since the epoch."""
    return max(0.0, time.time() - at)
