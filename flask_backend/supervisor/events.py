"""Events for the app, sent in a short-lived helper and never in the process that forks.

A receiver is code of the app. In the supervisor, one that blocks would stop the loop, and one that starts a thread
would break every later fork. In a helper it can do neither: a failure there affects neither the workers nor the
supervisor. An event may be lost; this is logged.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from flask_backend.deaths import Exit
from flask_backend.system.exits import ExitCode
from flask_backend.system.loggers import get_logger
from flask_backend.system.titles import show_helper

from . import wording
from .helpers import Helper, Helpers
from .process import AcceptSignals

logger = get_logger("flask_backend.supervisor")

# The time that the receivers get for all events of one helper. Then it is killed.
DEADLINE_S = 10.0
# How many events one helper sends: each has half a second at least.
MAX_BATCH = 20
# How many events wait for a helper. Further ones are lost.
MAX_PENDING = 1000


class EventName(StrEnum):
    WORKER_EXITED = "worker_exited"
    SUPERVISOR_READY = "supervisor_ready"  # at the start, when each queue has its first workers ready
    SUPERVISOR_RELOADED = "supervisor_reloaded"  # the same for the new code after a reload


@dataclass(frozen=True, slots=True)
class Event:
    """Something that has happened, as a plain value.

    ``description`` is in words, as in the log. ``facts`` are for programs, and JSON can carry them. Each event has
    ``supervisor_pid`` and ``generation``, the number of reloads so far. WORKER_EXITED has those of
    :meth:`Death.as_dict`, ``is_old`` (it ran the code from before a reload) and ``was_given_back`` (it was stopped,
    and its job, if any, returned to the queue). The others have ``queues``, the number of workers of each queue.
    """

    name: EventName
    description: str
    facts: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class EventSink:
    """The way of events to the app: the composition root connects it.

    ``wants`` returns whether the app has a receiver for an event. It runs in the supervisor's loop, so it must be quick
    and must not call code of the app.

    ``send`` passes one event to the receivers. It runs in a helper process, one event after another. It may block,
    raise or end the process: the helper is killed after DEADLINE_S seconds, and each exception is logged. The helper
    calls ``finish`` at its end, then ``os._exit``, after ``logging.shutdown``: it waits for no thread and runs no exit
    handler.
    """

    wants: Callable[[EventName], bool]
    send: Callable[[Event], None]
    finish: Callable[[], None] = lambda: None


class Events:
    """The events that wait for a helper, and the helper that sends some of them. There is one at a time."""

    def __init__(self, sink: EventSink | None, helpers: Helpers, clock: Callable[[], float]) -> None:
        self._sink = sink
        self._helpers = helpers
        self._clock = clock
        self._pending: deque[Event] = deque()
        self._sender: Helper | None = None
        self._lost = 0

    @property
    def pending(self) -> list[Event]:
        return list(self._pending)

    def note(self, name: EventName, description: str, facts: Mapping[str, Any]) -> None:
        """Have an event sent soon, if the app has a receiver for it."""
        if self._sink is not None and self._sink.wants(name):
            self.add([Event(name, description, facts)])

    def add(self, events: Iterable[Event]) -> None:
        """Have these events sent soon."""
        for event in events:
            if len(self._pending) < MAX_PENDING:
                self._pending.append(event)
            else:
                self._lost += 1

    def send(self, by: float = math.inf) -> None:
        """Send pending events in a helper, unless one is running. Those still pending at the time ``by`` are lost."""
        if self._sender is None and (self._pending or self._lost):
            self._start_sender(min(DEADLINE_S, by - self._clock()))

    def _start_sender(self, within_s: float) -> None:
        if within_s <= 0:
            self._lost += len(self._pending)
            self._pending.clear()
        if self._lost:
            logger.warning(wording.EVENTS_LOST, self._lost)
            self._lost = 0
        if batch := [self._pending.popleft() for _ in range(min(MAX_BATCH, len(self._pending)))]:
            self._start(batch, within_s)

    def _start(self, batch: list[Event], within_s: float) -> None:
        assert self._sink is not None  # noqa: S101  # our own invariant: without a sink there is no event
        sink, sent = self._sink, wording.some_events([event.name for event in batch])

        def main(accept_signals: AcceptSignals) -> int:
            accept_signals()
            show_helper(f"sends {sent}")
            for event in batch:
                self._send_one(sink, event)
            sink.finish()
            return ExitCode.OK

        def end(exit_: Exit) -> None:
            self._end(sent, exit_)

        try:
            self._sender = self._helpers.start(f"the process that sends {sent}", main, end, within_s=within_s)
        except OSError as error:
            logger.warning(wording.CANNOT_FORK_SENDER, sent, error)

    def _send_one(self, sink: EventSink, event: Event) -> None:
        try:
            sink.send(event)
        except BaseException:  # also SystemExit: the other events are still to be sent
            logger.exception(wording.RECEIVER_FAILED, event.name)

    def _end(self, sent: str, exit_: Exit) -> None:
        is_overdue = self._sender is not None and self._sender.is_overdue
        self._sender = None
        if exit_.status != ExitCode.OK:
            logger.warning(wording.EVENTS_NOT_SENT, sent, wording.end_of_sender(exit_, is_overdue=is_overdue))
