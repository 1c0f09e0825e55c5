"""The tables of the screen: their rows, made of a look at the supervisor and one at its broker, and columns. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from flask_backend.broker.stats import Queue
from flask_backend.cli.output import show_duration, show_seconds, show_size
from flask_backend.operations import supervisors
from flask_backend.operations.console import Rates
from flask_backend.operations.live import Look, QueueLook, Speed
from flask_backend.operations.supervisors import Counts, Worker, show_progress
from flask_backend.system.procfs import MemoryUse

from .tables import Column, Row

R = TypeVar("R", bound=Row)

RED, YELLOW = "31", "33"
UNKNOWN = "-"


@dataclass(frozen=True, slots=True)
class QueueRow:
    """A queue: ``of_supervisor`` is unset for one that only others serve, ``of_broker`` while that does not answer."""

    name: str
    of_supervisor: supervisors.Queue | None
    of_broker: Queue | None
    rates: Rates | None
    next_wait_s: int | None

    @property
    def identity(self) -> object:
        return self.name

    @property
    def style(self) -> str:
        served = self.of_supervisor
        if (served and not served.serving) or (self.of_broker and self.of_broker.is_unwatched):
            return RED
        return YELLOW if self.of_broker and self.of_broker.is_paused else ""


@dataclass(frozen=True, slots=True)
class TaskRow:
    queue: str
    name: str
    counts: Counts
    speed: Speed | None
    style: str = ""

    @property
    def identity(self) -> object:
        return self.queue, self.name


@dataclass(frozen=True, slots=True)
class WorkerRow:
    """A worker, and what it does in words."""

    worker: Worker
    queue: str
    does: str

    @property
    def identity(self) -> object:
        return self.worker.process.pid

    @property
    def memory(self) -> MemoryUse | None:
        return self.worker.process.memory

    @property
    def style(self) -> str:
        return YELLOW if self.worker.away_s is not None else ""


@dataclass(frozen=True, slots=True)
class DeathRow:
    number: int
    ago_s: float
    reason: str
    description: str
    style: str = ""

    @property
    def identity(self) -> object:
        return self.number


def queue_rows(look: Look | None, queues: QueueLook) -> Iterator[QueueRow]:
    """Yield the supervisor's queues, and the others that are known."""
    is_known = queues.error is None
    served = {queue.name: queue for queue in look.supervisor.queues} if look else {}
    for name in dict.fromkeys([*served, *(queues.queues if is_known else ())]):
        of_broker = queues.queues.get(name) if is_known else None
        rates, wait_s = (queues.rates.get(name), queues.next_waits.get(name)) if of_broker else (None, None)
        yield QueueRow(name, served.get(name), of_broker, rates, wait_s)


def worker_rows(look: Look) -> Iterator[WorkerRow]:
    for worker in look.supervisor.workers:
        does = worker.task or (f"job {worker.job}" if worker.job else worker.activity)
        does = f"{does}, waits for limit {worker.limit}" if worker.limited_s is not None else does
        does = f"{does} {show_progress(worker.progress)}" if worker.progress else does
        state = f", {worker.state}" if worker.job and worker.state != "ready" else ""
        yield WorkerRow(worker, worker.queue, f"{does}{state}{', old code' if worker.is_old else ''}")


def task_rows(look: Look) -> Iterator[TaskRow]:
    for queue in look.supervisor.queues:
        for name, counts in queue.tasks.items():
            yield TaskRow(queue.name, name, counts, look.speeds.get((queue.name, name)))


def death_rows(look: Look) -> Iterator[DeathRow]:
    deaths: list[Mapping[str, Any]] = look.supervisor.facts.get("deaths", [])
    for number, death in enumerate(deaths):
        yield DeathRow(number, max(0.0, look.at - death["at"]), str(death["reason"]), str(death["description"]))


# -- cells -----------------------------------------------------------------------------------------------------


def _count(number: int | None) -> str:
    """Return a number in at most six characters."""
    if number is None:
        return UNKNOWN
    for size, unit in ((10**9, "G"), (10**6, "M")):
        if number >= size:
            return f"{number / size:.3g}{unit}" if number < 1000 * size else f"{number // size}{unit}"
    return str(number)


def _rate(rate: float | None) -> str:
    """Return a rate in at most five characters."""
    if rate is None:
        return UNKNOWN
    return f"{rate:.1f}" if 0 < rate < 10 else _count(round(rate)) if rate < 10**5 else f"{rate / 1000:.0f}k"  # noqa: PLR2004  # no decimals from there on


def _seconds(seconds: float | None) -> str:
    """Return a duration in at most six characters."""
    if seconds is None:
        return UNKNOWN
    text = show_seconds(seconds)
    return text if len(text) <= 6 else show_seconds(seconds // 86400 * 86400)  # noqa: PLR2004  # more than 100 days


def _size(size: int | None) -> str:
    return UNKNOWN if size is None else show_size(size)


def _pause(row: QueueRow) -> str:
    if row.of_broker is None or not row.of_broker.is_paused:
        return UNKNOWN
    return "paused" if row.of_broker.is_paused_until_resumed else _seconds(row.of_broker.pause_left_s)


def _workers(row: QueueRow) -> str:
    if row.of_supervisor:
        return f"{row.of_supervisor.serving}/{row.of_supervisor.wanted}"
    return "others" if row.of_broker and row.of_broker.watching else "none"


# -- columns ---------------------------------------------------------------------------------------------------


def _queue(name_of: Callable[[R], str]) -> Column[R]:
    return Column("queue", 12, name_of, name_of, is_number=False, wish=24, keeps_end=True)


def _number(title: str, width: int, value: Callable[[R], Any], show: Callable[[Any], str], rank: int = 0) -> Column[R]:
    return Column(title, width, lambda row: show(value(row)), value, rank=rank)


def _text(title: str, width: int, value: Callable[[R], str], wish: int = 0, *, fills: bool = False) -> Column[R]:
    return Column(title, width, value, value, is_number=False, wish=wish, fills=fills)


_PAUSE: Column[QueueRow] = Column("pause", 6, _pause, lambda row: row.of_broker and row.of_broker.pause_left_s)
_QUEUE_COLUMNS: list[Column[QueueRow]] = [
    _queue(lambda row: row.name),
    _number("ready", 6, lambda row: row.of_broker and row.of_broker.ready, _count),
    _number("reserved", 8, lambda row: row.of_broker and row.of_broker.reserved, _count, 4),
    _number("delayed", 7, lambda row: row.of_broker and row.of_broker.delayed, _count, 3),
    _number("buried", 6, lambda row: row.of_broker and row.of_broker.buried, _count),
    _number("waits", 6, lambda row: row.next_wait_s, _seconds, 1),
    _number("in/s", 5, lambda row: row.rates and row.rates.put, _rate, 2),
    _number("out/s", 5, lambda row: row.rates and row.rates.deleted, _rate, 2),
    Column("workers", 7, _workers, lambda row: row.of_supervisor and row.of_supervisor.serving, rank=1),
    _number("busy", 4, lambda row: row.of_supervisor and row.of_supervisor.busy, _count, 5),
]


def queue_columns(rows: Iterable[QueueRow]) -> list[Column[QueueRow]]:
    """Return the columns; that of pauses only while there is one."""
    if any(row.of_broker and row.of_broker.is_paused for row in rows):
        return [*_QUEUE_COLUMNS[:1], _PAUSE, *_QUEUE_COLUMNS[1:]]
    return _QUEUE_COLUMNS


WORKER_COLUMNS: list[Column[WorkerRow]] = [
    _number("pid", 7, lambda row: row.worker.process.pid, str),
    _queue(lambda row: row.queue),
    _text("does", 16, lambda row: row.does, fills=True),
    # In whole seconds, so that workers with short jobs keep their places.
    _number("for", 6, lambda row: None if row.worker.since_s is None else int(row.worker.since_s), _seconds),
    _number("up", 6, lambda row: row.worker.process.up_s, _seconds, 3),
    _number("done", 7, lambda row: row.worker.done, _count),
    _number("failed", 6, lambda row: row.worker.failed, _count),
    _number("buried", 6, lambda row: row.worker.buried, _count, 6),
    _number("private", 8, lambda row: row.memory and row.memory.private_bytes, _size, 2),
    _number("PSS", 8, lambda row: row.memory and row.memory.pss_bytes, _size, 7),
]

TASK_COLUMNS: list[Column[TaskRow]] = [
    _queue(lambda row: row.queue),
    _text("task", 12, lambda row: row.name, 24),
    _number("done", 7, lambda row: row.counts.done, _count),
    _number("done/s", 6, lambda row: row.speed and row.speed.done, _rate),
    _number("failed", 6, lambda row: row.counts.failed, _count),
    _number("retried", 7, lambda row: row.counts.retried, _count, 2),
    _number("buried", 6, lambda row: row.counts.buried, _count),
    _number("crashed", 7, lambda row: row.counts.crashed, _count),
    _number("mean", 8, lambda row: row.counts.mean_s, show_duration),
    _number("wait", 8, lambda row: row.counts.mean_wait_s, show_duration, 3),
]

DEATH_COLUMNS: list[Column[DeathRow]] = [
    _number("ago", 6, lambda row: row.ago_s, _seconds),
    _text("reason", 8, lambda row: row.reason),
    _text("death", 12, lambda row: row.description, fills=True),
]
