"""The state of the queues on the broker, within a time limit, whatever the broker and the resolver of names do."""

from __future__ import annotations

import threading
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from flask_backend.config import Settings
from flask_backend.errors import BrokerError
from flask_backend.operations.console import Console
from flask_backend.operations.schedules import ScheduledQueue, Schedules
from flask_backend.system.loggers import get_logger

logger = get_logger("flask_backend.metrics")

# How long a scrape waits for the broker.
WITHIN_S = 2.0
# Scrapes that follow so soon get the same answer: otherwise some clients at once would wait for each other.
FRESH_S = 1.0


@dataclass(frozen=True, slots=True)
class QueueState:
    """A queue on the broker. ``next_wait_s`` is None if the broker cannot tell how long its next job has waited."""

    name: str
    ready: int = 0
    reserved: int = 0
    delayed: int = 0
    buried: int = 0
    watchers: int = 0
    paused_s: int = 0
    next_wait_s: float | None = 0.0


@dataclass(frozen=True, slots=True)
class Answer:
    """What the broker has said. ``queues`` is None if it has not answered.

    ``scheduled`` are the queues with periodic tasks of the app, and those tasks.
    """

    server: str
    queues: list[QueueState] | None
    scheduled: Sequence[ScheduledQueue] = ()


class QueueReader:
    """Asks the broker in a thread, one at a time: nothing else bounds the time that a lookup of its name takes."""

    def __init__(
        self, settings: Settings, names: Iterable[str], periodic: Mapping[str, Collection[str]] | None = None
    ) -> None:
        """Read the queues ``names``, and the periodic tasks by name of those queues that have some."""
        self._settings = replace(settings, timeout_s=min(settings.timeout_s, WITHIN_S))
        self._names = sorted(names)
        self._periodic = periodic or {}
        self._server = str(settings.address).removeprefix("btq://")
        self._thread: threading.Thread | None = None
        self._found: Answer | None = None
        self._answer = Answer(self._server, None)
        self._answered_at = float("-inf")

    def ask(self) -> Answer:
        """Return the state of all queues, if the broker answers within the time for it."""
        if time.monotonic() - self._answered_at >= FRESH_S:
            self._answer = self._ask() or Answer(self._server, None)
            self._answered_at = time.monotonic()
        return self._answer

    def _ask(self) -> Answer | None:
        if self._thread is None or not self._thread.is_alive():
            self._found = None
            self._thread = threading.Thread(target=self._read, name="flask-backend-queues", daemon=True)
            self._thread.start()
        self._thread.join(WITHIN_S)
        return None if self._thread.is_alive() else self._found

    def _read(self) -> None:
        try:
            queues = read_queues(self._settings, self._names)
            self._found = Answer(self._server, queues, read_schedules(self._settings, self._periodic))
        except BrokerError as error:
            logger.debug("cannot ask the broker for metrics: %s", error)


def read_queues(settings: Settings, names: Iterable[str]) -> list[QueueState]:
    """Return the state of these queues; raise :exc:`BrokerError`."""
    states: list[QueueState] = []
    with Console(settings) as console:
        queues = {queue.name: queue for queue in console.find_queues(names)}
        heads = console.next_ready_of(name for name, queue in queues.items() if queue.ready)
        for name in names:
            if (queue := queues.get(name)) is None:  # a queue exists only while it has jobs or a watcher
                states.append(QueueState(name))
                continue
            head = heads.get(name)
            states.append(
                QueueState(
                    name,
                    queue.ready,
                    queue.reserved,
                    queue.delayed,
                    queue.buried,
                    queue.watching,
                    queue.pause_left_s,
                    (head.waits_s if head else None) if queue.ready else 0.0,
                )
            )
    return states


def read_schedules(settings: Settings, periodic: Mapping[str, Collection[str]]) -> list[ScheduledQueue]:
    """Return the state of the periodic tasks with these names, by queue; raise :exc:`BrokerError`.

    A removed task stays in its token, and nothing would change it any more: it is left out.
    """
    if not periodic:
        return []
    with Schedules(settings) as schedules:
        return [
            replace(queue, schedules=[each for each in queue.schedules if each.name in periodic[queue.name]])
            for queue in schedules.queues(periodic)
        ]
