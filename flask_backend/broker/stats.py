"""Statistics of queues and jobs: the replies to the server's ``stats`` commands as values."""

from __future__ import annotations

import re
from dataclasses import dataclass

from flask_backend.durations import MAX_SECONDS
from flask_backend.names import check_queue_name
from flask_backend.retry import Attempts

from .wire import Stats, number

_STATES = {"ready", "reserved", "delayed", "buried"}

# A pause that lasts until a person ends it: the protocol's longest, 136 years.
UNTIL_RESUMED_S = MAX_SECONDS


def stat(stats: Stats, key: str) -> int:
    """Return a number of the statistics; raise :exc:`LookupError` or :exc:`ValueError` without one."""
    value = stats[key]
    return value if isinstance(value, int) else number(value)


# The counters of a job, where Beanstalkd writes them. 19 digits are below the largest number of :func:`number`.
_COUNTERS = re.compile(
    rb"\npri: (\d{1,19})\nage: (\d{1,19})\ndelay: \d+\nttr: (\d{1,19})\n(?:.+\n){4}"
    rb"releases: (\d{1,19})\nburies: (\d{1,19})\n"
)


@dataclass(frozen=True, slots=True)
class JobCounters:
    """The server's counters of a job: its priority, TTR and age in seconds, and how its attempts ended."""

    priority: int
    ttr_s: int
    age_s: int
    attempts: Attempts

    @classmethod
    def find(cls, data: bytes) -> JobCounters | None:
        """Return the counters in the data of a reply, or None if it does not have the form of Beanstalkd's.

        Takes a third of the time of :meth:`from_stats`: a worker needs them for each job that logs a line.
        """
        found = _COUNTERS.search(data)
        if found is None:
            return None
        priority, age_s, ttr_s, releases, buries = map(int, found.groups())
        return cls(priority, ttr_s, age_s, Attempts(releases, buries))

    @classmethod
    def from_stats(cls, stats: Stats) -> JobCounters:
        number = {key: stat(stats, key) for key in ("pri", "ttr", "age", "releases", "buries")}
        attempts = Attempts(releases=number["releases"], buries=number["buries"])
        return cls(number["pri"], number["ttr"], number["age"], attempts)


@dataclass(frozen=True, slots=True)
class Server:
    """The server's statistics of itself; ``connections`` has the asking one too.

    ``id`` is new with each start of the server; empty for one before 1.5.
    """

    id: str
    version: str
    up_s: int
    connections: int
    is_draining: bool

    @classmethod
    def from_stats(cls, stats: Stats) -> Server:
        return cls(
            id=str(stats.get("id", "")),
            version=str(stats["version"]),
            up_s=stat(stats, "uptime"),
            connections=stat(stats, "current-connections"),
            is_draining=stats.get("draining") == "true",
        )


@dataclass(frozen=True, slots=True)
class JobRecord:
    """The server's statistics of a job. Times are in seconds; ``state`` is ready, reserved, delayed or buried.

    ``delay_s`` is the one of its put or last release. ``time_left_s`` counts down to its end, or to that of the TTR.
    """

    id: int
    queue: str
    state: str
    priority: int
    age_s: int
    delay_s: int
    ttr_s: int
    time_left_s: int
    reserves: int
    timeouts: int
    releases: int
    buries: int
    kicks: int

    @classmethod
    def from_stats(cls, stats: Stats) -> JobRecord:
        if stats["state"] not in _STATES:
            raise ValueError(f"{stats['state']!r} is not a state")
        return cls(
            id=stat(stats, "id"),
            queue=check_queue_name(str(stats["tube"])),
            state=str(stats["state"]),
            priority=stat(stats, "pri"),
            age_s=stat(stats, "age"),
            delay_s=stat(stats, "delay"),
            ttr_s=stat(stats, "ttr"),
            time_left_s=stat(stats, "time-left"),
            reserves=stat(stats, "reserves"),
            timeouts=stat(stats, "timeouts"),
            releases=stat(stats, "releases"),
            buries=stat(stats, "buries"),
            kicks=stat(stats, "kicks"),
        )

    @property
    def attempts(self) -> Attempts:
        """The attempts so far; ``number`` is the attempt that runs now, or the next one."""
        return Attempts(self.releases, self.buries)

    @property
    def waits_s(self) -> int | None:
        """How long a ready job has been due; None if the server cannot tell.

        It knows when the job was put and its delay, but not when it came back from an attempt, or was kicked.
        """
        return max(0, self.age_s - self.delay_s) if self.reserves == self.kicks == 0 else None


@dataclass(frozen=True, slots=True)
class Queue:
    """The server's statistics of a queue. Times are in seconds.

    ``put`` and ``deleted`` count since the creation of the queue. ``watching`` is the number of connections that would
    take a job of it, and ``waiting`` the number that wait for one now.
    """

    name: str
    ready: int
    reserved: int
    delayed: int
    buried: int
    watching: int
    waiting: int
    put: int
    deleted: int
    pause_left_s: int

    @classmethod
    def from_stats(cls, stats: Stats) -> Queue:
        return cls(
            name=check_queue_name(str(stats["name"])),
            ready=stat(stats, "current-jobs-ready"),
            reserved=stat(stats, "current-jobs-reserved"),
            delayed=stat(stats, "current-jobs-delayed"),
            buried=stat(stats, "current-jobs-buried"),
            watching=stat(stats, "current-watching"),
            waiting=stat(stats, "current-waiting"),
            put=stat(stats, "total-jobs"),
            deleted=stat(stats, "cmd-delete"),
            pause_left_s=stat(stats, "pause-time-left"),
        )

    @property
    def jobs(self) -> int:
        return self.ready + self.reserved + self.delayed + self.buried

    @property
    def is_unwatched(self) -> bool:
        """Whether jobs are ready and no connection watches the queue."""
        return self.ready > 0 and self.watching == 0

    @property
    def is_paused(self) -> bool:
        return self.pause_left_s > 0

    @property
    def is_paused_until_resumed(self) -> bool:
        return self.pause_left_s > UNTIL_RESUMED_S // 2
