"""A connection like a worker's, in a test that waits."""

from __future__ import annotations

from flask_backend.broker.connection import Connection
from flask_backend.broker.pipeline import Pipeline
from flask_backend.broker.wire import ReservedJob


def reserve(connection: Connection, wait_s: int = 1) -> ReservedJob | None:
    """Reserve one job and wait for the answer; None if no answer comes in time."""
    pipeline = Pipeline(connection)
    pipeline.reserve(wait_s)
    return reserved(pipeline)


def reserved(pipeline: Pipeline) -> ReservedJob | None:
    """Wait for the answer to a reserve of one job; None if no answer comes in time."""
    pipeline.connection.receive_all()
    return next(iter(pipeline.take_jobs()), None)
