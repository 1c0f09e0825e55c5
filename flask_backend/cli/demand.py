"""Ask the broker what the queues need, for a supervisor whose pools grow and shrink."""

from __future__ import annotations

from collections.abc import Sequence

from flask_backend.broker.connection import Connection
from flask_backend.config import Settings
from flask_backend.errors import BrokerError
from flask_backend.supervisor import Demand

# A broker that takes longer is asked again: the answer would be old.
MAX_TIMEOUT_S = 2.0


class QueueReader:
    """Reads the demand for each queue, on one connection that it keeps. For use in one process."""

    def __init__(self, settings: Settings, queues: Sequence[str]) -> None:
        self._address = settings.address
        self._timeout_s = min(settings.timeout_s, MAX_TIMEOUT_S)
        self._queues = queues
        self._connection: Connection | None = None

    def __call__(self) -> dict[str, Demand] | None:
        """Return the demand for each queue, or None if the broker does not answer."""
        try:
            if self._connection is None or not self._connection.is_usable:
                self._connection = Connection(self._address, self._timeout_s)
            found = self._connection.stats_tube(self._queues)
        except BrokerError:
            if self._connection is not None:
                self._connection.close()
            return None
        # A queue without jobs and without workers does not exist.
        nothing = dict.fromkeys(self._queues, Demand(ready=0, waiting=0))
        return nothing | {queue.name: Demand(queue.ready, queue.waiting, queue.is_paused) for queue in found}
