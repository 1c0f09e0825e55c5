"""Ask the broker what the queues need, for a supervisor whose pools grow and shrink."""

from __future__ import annotations

from collections.abc import Mapping

from flask_backend.broker.connection import Connection
from flask_backend.broker.stats import Queue
from flask_backend.config import Settings
from flask_backend.errors import BrokerError
from flask_backend.limit import Limit
from flask_backend.names import limit_tube
from flask_backend.supervisor import Demand

# A broker that takes longer is asked again: the answer would be old.
MAX_TIMEOUT_S = 2.0


class QueueReader:
    """Reads the demand for each queue, on one connection that it keeps. For use in one process."""

    def __init__(self, settings: Settings, queues: Mapping[str, Limit | None]) -> None:
        """Prepare. ``queues`` have the limits of their tasks, if any."""
        self._address = settings.address
        self._timeout_s = min(settings.timeout_s, MAX_TIMEOUT_S)
        self._limits = queues
        self._tubes = {limit_tube(limit.name) for limit in queues.values() if limit}
        self._connection: Connection | None = None

    def __call__(self) -> dict[str, Demand] | None:
        """Return the demand for each queue, or None if the broker does not answer."""
        try:
            if self._connection is None or not self._connection.is_usable:
                self._connection = Connection(self._address, self._timeout_s)
            found = {queue.name: queue for queue in self._connection.stats_tube([*self._limits, *self._tubes])}
        except BrokerError:
            if self._connection is not None:
                self._connection.close()
            return None
        return {name: self._demand(found.get(name), limit, found) for name, limit in self._limits.items()}

    @staticmethod
    def _demand(queue: Queue | None, limit: Limit | None, found: Mapping[str, Queue]) -> Demand:
        if queue is None:  # without jobs and without workers it does not exist
            return Demand(ready=0, waiting=0)
        tokens = found.get(limit_tube(limit.name)) if limit else None
        return Demand(queue.ready, queue.waiting, queue.is_paused or (tokens is not None and tokens.waiting > 0))
