"""Look at a supervisor, and at the queues of its broker, again and again, at little cost.

A look at the supervisor reads its status page and /proc. A thread asks the broker, at most once a second; its last
answer is available at any time, with the error if the broker does not answer.
"""

from __future__ import annotations

import dataclasses
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from flask_backend.broker.stats import Queue
from flask_backend.config import Settings
from flask_backend.errors import BackendError, BrokerConnectionError
from flask_backend.system import page as pages
from flask_backend.system.procfs import MemoryUse, read_memory, read_stat, uptime_s

from .console import Console, Rates, measure_rates
from .supervisors import Counts, Process, Supervisor, describe

# How often the broker is asked.
EVERY_S = 1.0
# How long it may take to answer: only the thread waits.
TIMEOUT_S = 2.0
# Rates are measured over this time, in seconds.
WINDOW_S = 5.0
# To read the memory of a process, the system walks its page tables: so much time is spent on it at one look. The first
# look takes more, so that it is complete for most supervisors.
MEMORY_S, FIRST_MEMORY_S = 0.02, 0.2

T = TypeVar("T")
# The name of a queue, and of one of its tasks or None for all.
Work = tuple[str, str | None]


@dataclass(frozen=True, slots=True)
class Speed:
    """Jobs per second: those done, and the attempts that failed."""

    done: float = 0.0
    failed: float = 0.0


@dataclass(frozen=True, slots=True)
class Look:
    """A supervisor at one moment. ``speeds`` has the speed of each task, by queue and task, and of each whole queue."""

    supervisor: Supervisor
    speeds: Mapping[Work, Speed]
    at: float = field(default_factory=time.time)  # in seconds since the epoch

    @property
    def speed(self) -> Speed:
        """The speed of all queues."""
        of_queues = [speed for (_, task), speed in self.speeds.items() if task is None]
        return Speed(sum(speed.done for speed in of_queues), sum(speed.failed for speed in of_queues))


class SupervisorWatch:
    """Looks at the supervisor with a given pid."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._memories: dict[int, tuple[float, MemoryUse | None]] = {}
        self._past: deque[tuple[float, Mapping[Work, tuple[int, int]]]] = deque()

    def look(self) -> Look | None:
        """Return what the supervisor does now, or None if it has ended."""
        found = pages.find(self.pid).get(self.pid)
        if found is None:
            return None
        up_s = uptime_s()
        pids = [self.pid, *(row.pid for page in found.pages for queue in page.queues for row in queue.workers)]
        self._read_memories(pids)
        processes = {pid: process for pid in pids if (process := self._process(pid, up_s))}
        if self.pid not in processes:
            return None
        supervisor = describe(found, processes)
        return Look(supervisor, self._measure(supervisor))

    def _process(self, pid: int, up_s: float) -> Process | None:
        stat = read_stat(pid)
        if stat is None:
            return None
        _, memory = self._memories.get(pid, (0.0, None))
        return Process(pid, stat.parent, "", max(0.0, up_s - stat.started), stat.rss_bytes, memory)

    def _read_memories(self, pids: Iterable[int]) -> None:
        """Read the memory of the processes whose last reading is oldest, for a short time."""
        until = time.monotonic() + (MEMORY_S if self._memories else FIRST_MEMORY_S)
        known = {pid: self._memories.get(pid, (float("-inf"), None)) for pid in pids}
        for pid in sorted(known, key=lambda pid: known[pid][0]):
            known[pid] = time.monotonic(), read_memory(pid)
            if time.monotonic() > until:
                break
        self._memories = known

    def _measure(self, supervisor: Supervisor) -> Mapping[Work, Speed]:
        now, counts = time.monotonic(), dict(_count(supervisor))
        while len(self._past) > 1 and now - self._past[1][0] >= WINDOW_S:
            self._past.popleft()
        speeds: dict[Work, Speed] = {}
        if self._past and now > (began := self._past[0][0]):
            before = self._past[0][1]
            for key, (done, failed) in counts.items():
                done_before, failed_before = before.get(key, (0, 0))
                seconds = now - began
                speeds[key] = Speed(max(0, done - done_before) / seconds, max(0, failed - failed_before) / seconds)
        self._past.append((now, counts))
        return speeds


def _count(supervisor: Supervisor) -> Iterable[tuple[Work, tuple[int, int]]]:
    for queue in supervisor.queues:
        yield (queue.name, None), _ends(*queue.tasks.values())
        for task, counts in queue.tasks.items():
            yield (queue.name, task), _ends(counts)


def _ends(*counts: Counts) -> tuple[int, int]:
    return sum(each.done for each in counts), sum(each.failed for each in counts)


@dataclass(frozen=True, slots=True)
class QueueLook:
    """The queues at the last answer of the broker, and for how long it has not answered, if so.

    ``next_waits`` are in seconds, see :meth:`Console.next_waits`. Times are on the monotonic clock.
    """

    queues: Mapping[str, Queue] = field(default_factory=dict[str, Queue])
    rates: Mapping[str, Rates] = field(default_factory=dict[str, Rates])
    next_waits: Mapping[str, int] = field(default_factory=dict[str, int])
    answered_at: float | None = None
    error: str | None = None
    away_since: float | None = None


class QueueWatch:
    """A thread that asks a broker for its queues again and again, and acts on them on request."""

    def __init__(self, settings: Settings, on_change: Callable[[], None]) -> None:
        """Prepare. ``on_change`` is called in the thread whenever :attr:`latest` has changed."""
        self.address = str(settings.address)
        self.latest = QueueLook()
        self.names: Iterable[str] | None = ()  # the queues to ask for, or None for all
        self._settings = dataclasses.replace(settings, timeout_s=min(settings.timeout_s, TIMEOUT_S))
        self._on_change = on_change
        self._is_stopped = False
        self._requests: SimpleQueue[_Request] = SimpleQueue()
        self._past: deque[tuple[float, Mapping[str, Queue]]] = deque()

    def start(self) -> None:
        threading.Thread(target=self._run, name="flask-backend-queues", daemon=True).start()

    def ask(self, act: Callable[[Console], T], take: Callable[[T | BackendError], None]) -> None:
        """Call ``act`` in the thread, then ``take`` with its result or its error."""
        self._requests.put(_Request(act, take))

    def stop(self) -> None:
        """Let the thread end, within a second or when the broker has answered."""
        self._is_stopped = True

    def _run(self) -> None:
        while not self._is_stopped:
            try:
                with Console(self._settings) as console:
                    self._serve(console)
            except BackendError as error:
                last = self.latest
                away_since = last.away_since or time.monotonic()
                self.latest = dataclasses.replace(last, error=str(error), away_since=away_since)
                self._past.clear()
                self._on_change()
                if request := self._next_request(EVERY_S):
                    request.take(error)

    def _serve(self, console: Console) -> None:
        while not self._is_stopped:
            self._look(console)
            until = time.monotonic() + EVERY_S
            while request := self._next_request(until - time.monotonic()):
                request.serve(console)

    def _next_request(self, wait_s: float) -> _Request | None:
        try:
            return self._requests.get(timeout=max(0.0, wait_s))
        except Empty:
            return None

    def _look(self, console: Console) -> None:
        names = self.names
        found = {queue.name: queue for queue in (console.queues() if names is None else console.find_queues(names))}
        next_waits = console.next_waits(found.values())
        now = time.monotonic()
        while len(self._past) > 1 and now - self._past[1][0] >= WINDOW_S:
            self._past.popleft()
        rates: Mapping[str, Rates] = {}
        if self._past:
            began, before = self._past[0]
            known = [queue for queue in found.values() if queue.name in before]
            rates = measure_rates(before.values(), known, now - began)
        self._past.append((now, found))
        self.latest = QueueLook(found, rates, next_waits, now)
        self._on_change()


@dataclass(frozen=True, slots=True)
class _Request:
    act: Callable[[Console], Any]
    take: Callable[[Any], None]

    def serve(self, console: Console) -> None:
        try:
            result = self.act(console)
        except BrokerConnectionError as error:
            self.take(error)
            raise
        except BackendError as error:
            self.take(error)
        else:
            self.take(result)
