"""Find queues, jobs and failures at the broker, and report missing ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from flask_backend.operations.bodies import GONE

if TYPE_CHECKING:
    from flask_backend.broker.stats import JobRecord, Queue
    from flask_backend.operations.console import Console, Failures
    from flask_backend.stories import Story


class JobGoneError(click.ClickException):
    """The job does not exist on the server."""

    def __init__(self, job_id: int) -> None:
        super().__init__(f"job {job_id} {GONE}")


def find_story(console: Console, record: JobRecord) -> Story | None:
    """Return the story of a job, if it is buried and has one."""
    if record.state != "buried":
        return None
    stories = console.failures(record.queue).stories
    return next(console.read_stories(stored for stored in stories if stored.job == record.id), None)


def find_queue(console: Console, name: str) -> Queue:
    found = console.queue(name)
    if found is None:
        raise click.ClickException(no_such_queue(console, name))
    return found


def no_such_queue(console: Console, name: str) -> str:
    return f"queue {name} does not exist at {console.address}: it has no jobs and no clients"


def find_failures(console: Console, queue: str | None, limit: int | None = None) -> list[Failures]:
    """Return the failures of a queue, or of all, with at most the newest ``limit`` stories of each."""
    if queue is None:
        return console.all_failures(limit)
    found = console.failures(queue, limit)
    return [] if found.is_empty else [found]


def nothing_buried(console: Console, queue: str | None) -> str:
    if queue is None:
        return f"no buried jobs at {console.address}"
    if console.queue(queue) is None:
        return f"no buried jobs in {queue}: {no_such_queue(console, queue)}"
    return f"no buried jobs in {queue}"
