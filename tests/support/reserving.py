"""A connection as a worker's, in a test that waits."""

from __future__ import annotations

from flask_backend.broker.connection import Connection
from flask_backend.broker.wire import ReservedJob


def reserved(connection: Connection) -> ReservedJob | None:
    """Wait for the answer to a reserve of one job; None if there was none in time."""
    connection.receive_all()
    return next(iter(connection.take_jobs()), None)
