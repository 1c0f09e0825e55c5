"""What follows when a task that uses a cursor ends."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import cast

from flask_backend.broker import cursors
from flask_backend.broker.cursors import CursorConnection, SweepingConnection
from flask_backend.current import CurrentJob
from flask_backend.errors import BrokerError, TaskInterrupted

SWEEP_EVERY_S = 3600.0


def without_group(error: BaseException) -> BaseException:
    """Return the interruption in place of a group of only interruptions, such as one of ``asyncio.TaskGroup``."""
    found, unseen = error, [error]
    while unseen:  # a group may be nested too deeply for recursion
        found = unseen.pop()
        if issubclass(type(found), BaseExceptionGroup):  # not isinstance, which also consults the exception
            unseen += cast("BaseExceptionGroup[BaseException]", found).exceptions
        elif type(found) is not TaskInterrupted:
            return error
    return found


def is_left(job: CurrentJob, error: BaseException) -> bool:
    """Whether the task was left at a checkpoint: not if its own code raises that exception."""
    return type(error) is TaskInterrupted and job.checkpoints is not None and job.checkpoints.has_left


def has_cursor(job: CurrentJob, connection: CursorConnection) -> bool:
    """Whether an earlier run of the job has saved a cursor: the job is to continue there."""
    return cursors.load(connection, job.cursor_owner) is not None


def save_newest(job: CurrentJob) -> None:
    """Save the newest cursor of a task that has failed, if the broker is there."""
    if job.checkpoints is not None:
        with suppress(BrokerError):
            job.checkpoints.save()


def drop_cursor(job: CurrentJob, connection: CursorConnection) -> None:
    """Delete the cursor of a job that has left its queue. If the connection breaks before, a sweep does it."""
    if job.checkpoints is not None and job.checkpoints.is_kept:
        cursors.drop(connection, job.checkpoints.owner.tube)


class Sweeper:
    """Sweeps cursors without jobs, from workers whose tasks use cursors."""

    def __init__(self) -> None:
        self._at = 0.0

    def sweep(self, connection: SweepingConnection) -> None:
        now = time.monotonic()
        if now >= self._at:
            self._at = now + SWEEP_EVERY_S
            cursors.sweep(connection)
