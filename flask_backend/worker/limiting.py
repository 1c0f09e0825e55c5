"""A worker's wait for a token of a limit, on a connection of its own.

The supervisor has no duplicate of this connection: the token of a dead worker is free at once, while its job stays
reserved until it is settled.
"""

from __future__ import annotations

import random
import select
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from flask_backend.broker import limits
from flask_backend.broker.connection import Connection
from flask_backend.broker.limits import Registry
from flask_backend.broker.pipeline import Pipeline
from flask_backend.config import Settings
from flask_backend.errors import BrokerConnectionError, BrokerError
from flask_backend.limit import Limit
from flask_backend.names import limit_tube
from flask_backend.options import DEFAULT_PRIORITY
from flask_backend.system.loggers import get_logger

from . import wording
from .heartbeat import TOUCHES_PER_TTR, WorkerLease
from .host import Host
from .link import RESERVE_S
from .stopping import StopSignals

logger = get_logger("flask_backend.worker")

# How long a worker waits before it looks whether all tokens still exist: a random time between these.
CENSUS_AFTER_S = (5.0, 10.0)


@dataclass(slots=True, eq=False)
class Token:
    """A token that this worker holds, until it is spent or given back."""

    connection: Connection
    id: int
    limit: str
    per: int | None
    touch_at: float
    is_held: bool = True

    def spend(self) -> None:
        """Start a task: a token of a rate becomes free again after the time of its limit. Raises :exc:`BrokerError`."""
        if self.per is not None:
            self.is_held = False
            self.connection.release(self.id, DEFAULT_PRIORITY, self.per)

    def give_back(self) -> None:
        """Free the token, if it is still held: for the next task, at once."""
        if self.is_held:
            self.is_held = False
            with suppress(BrokerError):  # it was lost before, or the connection breaks, which frees it
                self.connection.release(self.id, DEFAULT_PRIORITY, 0)

    def touch_if_due(self, now: float, lease: WorkerLease) -> None:
        """Keep the token while the task runs. Runs in the heartbeat's thread."""
        if not self.is_held or now < self.touch_at:
            return
        self.touch_at = now + limits.TOKEN_TTR_S / TOUCHES_PER_TTR
        try:
            self.connection.touch(self.id)
        except BrokerError as error:
            self.is_held = False
            logger.warning(wording.LIMIT_LOST, self.limit, lease.job.id, lease.label, error)


class Limiter:
    """Takes tokens of one limit for the jobs of one worker."""

    def __init__(self, settings: Settings, limit: Limit, host: Host, stop: StopSignals) -> None:
        self._settings = settings
        self._limit = limit
        self._host = host
        self._stop = stop
        self._pipeline: Pipeline | None = None
        self._poll: select.poll | None = None  # for that connection
        self._census_at = 0.0
        self._silent_ns = int((2 * settings.timeout_s + RESERVE_S) * 1e9)

    @property
    def waits_for(self) -> str:
        """What a worker that waits shows."""
        return f"waits for limit {self._limit.name}"

    def take(self, lease: WorkerLease, is_stopping: Callable[[], bool]) -> Token | None:
        """Wait for a token; return None if the worker is to stop, or has lost its job.

        After a wait the host shows it until its caller ends that. Raises :exc:`BrokerError` if one of the two
        connections breaks.
        """
        pipeline = self._connected()
        wait_s = 0
        try:
            while not is_stopping() and not lease.is_lost:
                self._check_held(lease)
                self._host.live(self._silent_ns)
                token_id = self._reserve(pipeline, wait_s)
                if token_id is not None:
                    token = self._check(pipeline.connection, token_id)
                    if token and not is_stopping():
                        return token
                    if token:
                        token.give_back()
                elif time.monotonic() >= self._census_at:
                    self._look_after_tokens(pipeline.connection)
                elif not wait_s:
                    wait_s = RESERVE_S
                    self._host.show_limit(is_waiting=True)
        except BaseException:  # raised again; the connection may hold a token
            pipeline.connection.close()
            raise
        if pipeline.is_reserving:  # a token may be on its way
            pipeline.connection.close()
        return None

    def _check_held(self, lease: WorkerLease) -> None:
        if lease.is_cut:
            raise BrokerConnectionError(f"lost the connection to Beanstalkd at {self._settings.address}")

    def _connected(self) -> Pipeline:
        if self._pipeline is None or not self._pipeline.connection.is_usable:
            self._host.live(self._silent_ns)
            tube = limit_tube(self._limit.name)
            connection = Connection(self._settings.address, self._settings.timeout_s, watch=tube)
            self._poll = self._stop.poll_with(connection)
            self._pipeline = Pipeline(connection)
            self._census_at = 0.0  # perhaps the server has lost its memory
        return self._pipeline

    def _reserve(self, pipeline: Pipeline, wait_s: int) -> int | None:
        """Reserve a token within some seconds; return its id, or None without one, or if the worker is to stop."""
        pipeline.reserve(wait_s)
        connection = pipeline.connection
        while connection.is_awaiting and not self._stop.requested:
            if self._stop.wait(self._settings.timeout_s + wait_s, self._poll, soon=not wait_s):
                connection.receive()
            elif not self._stop.requested:
                raise BrokerConnectionError(f"Beanstalkd at {self._settings.address} does not answer")
        jobs = pipeline.take_jobs()
        return jobs[0].id if jobs else None

    def _check(self, connection: Connection, token_id: int) -> Token | None:
        """Return a reserved token, unless it does not count: then delete it."""
        current = limits.load(connection, self._limit.name)
        if current is None or current.is_outdated_by(self._limit):
            current = self._look_after_tokens(connection) or current
        if current is None or token_id not in current.ids:
            connection.delete_each([token_id])
            return None
        touch_at = time.monotonic() + limits.TOKEN_TTR_S / TOUCHES_PER_TTR
        return Token(connection, token_id, self._limit.name, current.per, touch_at)

    def _look_after_tokens(self, connection: Connection) -> Registry | None:
        self._census_at = time.monotonic() + random.uniform(*CENSUS_AFTER_S)
        return limits.census(connection, self._limit)
