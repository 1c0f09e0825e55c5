"""Retry or delete all jobs of a queue in one state, one after the other, at most so many at once.

The protocol shows the first job of a state only. Jobs that are buried later come last, so the first ``count`` buried
jobs are the ones that a person has seen counted.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from .console import Console

# How many jobs one step takes at most, and for how long in seconds: a person waits for its answer.
STEP = 10_000
STEP_S = 5.0


def retry_buried(console: Console, queue: str, count: int) -> list[int]:
    """Kick the ``count`` jobs that were buried first, or as many as one step takes; return their ids."""
    done = _step(lambda: console.next_buried(queue), console.kick_each, count)
    console.failures(queue, STEP)  # deletes the stories of jobs that are not buried any longer
    return done


def delete_buried(console: Console, queue: str, count: int) -> list[int]:
    """Delete the ``count`` jobs that were buried first, or as many as one step takes; return their ids."""
    done = _step(lambda: console.next_buried(queue), console.delete_each, count)
    console.failures(queue, STEP)
    return done


def delete_ready(console: Console, queue: str, count: int, newest: int) -> list[int]:
    """Delete the ``count`` ready jobs that come next, or as many as one step takes; return their ids.

    It ends at a job that is newer than ``newest``: that was put after the person had seen the count.
    """

    def find() -> int | None:
        job_id = console.next_ready(queue)
        return job_id if job_id is not None and job_id <= newest else None

    return _step(find, console.delete_each, count)


def _step(find: Callable[[], int | None], act: Callable[[Iterable[int]], list[int]], count: int) -> list[int]:
    done: list[int] = []
    until = time.monotonic() + STEP_S
    last = None
    while len(done) < min(count, STEP) and time.monotonic() < until:
        job_id = find()
        if job_id is None or job_id == last:  # the last one was taken, or the server refuses
            break
        last = job_id
        done += act([job_id])
    return done
