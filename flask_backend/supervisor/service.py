"""A service: a helper that lives as long as the supervisor: it serves metrics, or schedules periodic tasks.

The helper is replaced when it dies, and no breaker counts that. One that serves a listening socket does so during a
drain too, and ends after the last worker. The supervisor owns that socket, but does not accept connections. The socket
crosses a reload: until the helper of the new image runs, they wait in its backlog.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from flask_backend.deaths import Exit
from flask_backend.system.loggers import get_logger
from flask_backend.system.titles import show_helper

from . import wording
from .helpers import Helper, Helpers
from .links import Links
from .process import AcceptSignals, Processes

logger = get_logger("flask_backend.supervisor")

# The least time between the starts of two helpers. It doubles up to the second, while they die sooner than that.
START_EVERY_S = 1.0
MOST_EVERY_S = 30.0
# How long the helper of an earlier image may still take to finish its answers.
STOP_S = 5.0


@dataclass(frozen=True, slots=True)
class Service:
    """What the composition root has prepared.

    ``activity`` is what the helper does, in words: "serves metrics". ``serve`` is the life of the helper: it gets its
    supervisor's lifeline, handles TERM, and returns its exit code. ``key`` identifies the socket ``fd``, if it has one,
    to the next image, and ``close`` closes the socket for good. ``most_every_s`` is the longest delay of a restart.
    """

    activity: str
    serve: Callable[[AcceptSignals, int], int]
    key: str = ""
    fd: int | None = None
    close: Callable[[], None] = lambda: None
    most_every_s: float = MOST_EVERY_S


@dataclass(frozen=True, slots=True)
class OldService:
    """A service that is handed over, and the pid of its helper, if there is one."""

    key: str
    fd: int | None
    pid: int | None


class ServiceHelper:
    """Keeps the helper of a service running, if there is a service."""

    def __init__(
        self,
        service: Service | None,
        helpers: Helpers,
        links: Links,
        processes: Processes,
        clock: Callable[[], float],
    ) -> None:
        self._service = service
        self._helpers = helpers
        self._links = links
        self._processes = processes
        self._clock = clock
        self._helper: Helper | None = None
        self._started = self._not_before = -math.inf
        self._every_s = START_EVERY_S
        self._is_stopping = False

    @property
    def pid(self) -> int | None:
        """The pid of the helper, if it runs."""
        return self._helper.pid if self._helper else None

    def keep(self) -> None:
        """Start a helper if it is missing and need not wait."""
        if self._service and not (self._helper or self._is_stopping) and self._clock() >= self._not_before:
            self._start(self._service)

    def next_at(self) -> float:
        """Return when the next helper may be started, if it is missing."""
        return self._not_before if self._service and not (self._helper or self._is_stopping) else math.inf

    def stop(self) -> None:
        """Ask the helper to finish, for good."""
        if not self._is_stopping:
            self._is_stopping = True
            if self._helper:
                self._ask_to_end(self._helper.pid)

    def close(self) -> None:
        """Close the socket: the supervisor ends."""
        if self._service:
            self._service.close()

    def hand_over(self) -> OldService | None:
        if self._service is None:
            return None
        return OldService(self._service.key, self._service.fd, self.pid)

    def adopt(self, old: OldService) -> None:
        """Let the helper of an earlier image finish. The composition root has taken over the socket."""
        if old.pid is not None:
            self._helpers.adopt(old.pid, self._clock() + STOP_S)
            self._ask_to_end(old.pid)

    def _start(self, service: Service) -> None:
        self._started = self._clock()
        self._not_before = self._started + self._every_s

        def main(accept_signals: AcceptSignals) -> int:
            show_helper(service.activity)
            return service.serve(accept_signals, self._links.lifeline.read_end)

        try:
            self._helper = self._helpers.start(
                f"the process that {service.activity}", main, self._end, keeps_service=service.fd is not None
            )
        except OSError as error:
            logger.warning(wording.CANNOT_FORK_SERVICE, service.activity, error)

    def _end(self, exit_: Exit) -> None:
        self._helper = None
        if not self._is_stopping and self._service:
            now = self._clock()
            delay_s = max(0.0, self._not_before - now)
            most_every_s = self._service.most_every_s
            lived_long = now - self._started >= most_every_s
            self._every_s = START_EVERY_S if lived_long else min(2 * self._every_s, most_every_s)
            logger.warning(wording.SERVICE_ENDED, self._service.activity, exit_, wording.replaced_in(delay_s))

    def _ask_to_end(self, pid: int) -> None:
        with suppress(ProcessLookupError):
            self._processes.drain(pid)
