"""A worker's part in the batches of its jobs, and its sweeps of batches that others have left."""

from __future__ import annotations

import random
import time

from flask_backend.broker import batches
from flask_backend.broker.batch_sweep import SweepingConnection, sweep
from flask_backend.broker.batches import FinishingConnection, Membership
from flask_backend.current import CurrentJob
from flask_backend.errors import BrokerConnectionError, BrokerError
from flask_backend.system.loggers import get_logger

logger = get_logger("flask_backend.batches")

# How often a worker looks for batches that would never end: a callback is late by this much, at most, in seconds. Any
# worker does it, of any queue: the members of such a batch are often gone.
SWEEP_EVERY_S = 300.0


def finish(connection: FinishingConnection, job: CurrentJob) -> None:
    """Count a job as finished in its batch, if it has one, before it is deleted."""
    if (member := Membership.of(job.headers)) is not None:
        batches.finish(connection, member)


def finish_buried(connection: FinishingConnection, job: CurrentJob) -> None:
    """Count a job as finished, before it is buried, if its batch counts buried jobs."""
    member = Membership.of(job.headers)
    if member is not None and member.counts_burial:
        batches.finish(connection, member)


def release_store(connection: FinishingConnection, job: CurrentJob) -> None:
    """Give back what a worker that died while it started a callback may have held on this connection."""
    if (member := Membership.of(job.headers)) is not None:
        batches.release_store(connection, member)


class BatchSweeper:
    """Sweeps batches from time to time; not all workers at once."""

    def __init__(self) -> None:
        self._at = time.monotonic() + random.uniform(0, SWEEP_EVERY_S)

    @property
    def is_due(self) -> bool:
        return time.monotonic() >= self._at

    def sweep(self, connection: SweepingConnection) -> None:
        self._at = time.monotonic() + SWEEP_EVERY_S * random.uniform(0.5, 1)
        try:
            sweep(connection)
        except BrokerConnectionError:
            raise
        except BrokerError as error:  # for example in drain mode
            logger.warning("batches were not swept: %s", error)
