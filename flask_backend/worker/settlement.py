"""Settling a job that failed: release it, delete it, or bury it and store its story."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Iterable
from typing import Protocol

from flask_backend.broker.batches import FinishingConnection
from flask_backend.broker.stats import JobCounters, Queue
from flask_backend.current import CurrentJob
from flask_backend.decisions import TaskDecision
from flask_backend.errors import (
    BrokerConnectionError,
    BrokerError,
    JobNotFoundError,
    JobTooBigError,
    MessageDecodeError,
)
from flask_backend.masking import Mask
from flask_backend.message import expires_at, scheduled_at
from flask_backend.names import failures_tube
from flask_backend.options import PutOptions
from flask_backend.retry import Attempts, BuryJob, DiscardJob, ReleaseJob, after_failure
from flask_backend.stories import MAX_WHOLE, NOTE_TTR_S, WHOLE_AGAIN_S, Story, here_and_now, tell_exception
from flask_backend.system.loggers import get_logger
from flask_backend.tracebacks import log_failure, told

from . import wording
from .batches import finish, finish_buried
from .outcomes import Attempt, Outcome

# The endpoints and kinds of failures that a worker remembers at most.
_MOST_KINDS = 200
# A separate logger, so that error trackers can distinguish the failures of tasks from ours.
task_logger = get_logger("flask_backend.task")


class SettlingConnection(FinishingConnection, Protocol):
    """The commands that settling needs on the connection that holds the job."""

    def counters(self, job_id: int) -> JobCounters: ...
    def stats_tube(self, names: Iterable[str]) -> list[Queue]: ...
    def bury(self, job_id: int, priority: int) -> None: ...
    def delete(self, job_id: int) -> None: ...


class StoryWriter:
    """Writes the stories of one worker, without secret values, and remembers which of them were whole."""

    def __init__(self, mask: Mask, clock: Callable[[], float] = time.monotonic) -> None:
        self.mask = mask
        self._clock = clock
        # When the last whole story of an endpoint and a kind was written, the oldest first.
        self._whole_at: dict[tuple[str | None, str], float] = {}

    def write(self, connection: SettlingConnection, note: Story) -> None:
        """Put the note beside the job that it is about. Raises :exc:`BrokerError`."""
        tube = failures_tube(note.queue)
        # A reader of the stories holds them reserved.
        kept = sum(each.ready + each.reserved for each in connection.stats_tube([tube]))
        if not self._is_first(note) and kept >= MAX_WHOLE:
            note = note.shortened()
        options = PutOptions(note.priority, 0, NOTE_TTR_S)
        try:
            connection.put(tube, note.encode(), options)
        except JobTooBigError:
            connection.put(tube, note.shortened().encode(), options)

    def _is_first(self, note: Story) -> bool:
        """Whether a story is the first of its endpoint and kind for some time."""
        now = self._clock()
        while self._whole_at and next(iter(self._whole_at.values())) + WHOLE_AGAIN_S <= now:
            del self._whole_at[next(iter(self._whole_at))]
        key = note.endpoint, note.kind
        if key in self._whole_at or len(self._whole_at) >= _MOST_KINDS:
            return False
        self._whole_at[key] = now
        return True


def settle_failure(
    connection: SettlingConnection, attempt: Attempt, error: BaseException, stories: StoryWriter
) -> Outcome:
    """Release, bury or delete a job as its retry policy or the task itself decides, and always log the failure."""
    outcome = Outcome()
    try:
        outcome = _settle(connection, attempt, error, stories)
    except JobNotFoundError:
        outcome = Outcome(is_lost=True)
    except BrokerConnectionError:
        raise
    except BrokerError:
        outcome = Outcome(is_refused=True)
        raise
    finally:  # log the failure even without a broker
        _log(attempt, outcome, error)
    return outcome


def _settle(connection: SettlingConnection, attempt: Attempt, error: BaseException, stories: StoryWriter) -> Outcome:
    job = attempt.job
    counters = connection.counters(job.id)
    job.learn(counters)
    match action := after_failure(attempt.retry, counters.attempts, error, random.random):
        case ReleaseJob(delay_s):
            connection.release(job.id, counters.priority, delay_s)
        case BuryJob(reason):
            finish_buried(connection, job)
            bury(connection, _tell(attempt, counters.attempts, reason, error, stories.mask), counters.priority, stories)
        case DiscardJob():
            finish(connection, job)
            connection.delete(job.id)
    return Outcome(action)


def _log(attempt: Attempt, outcome: Outcome, error: BaseException) -> None:
    job = attempt.job
    level, arguments = wording.describe_failure(
        job, attempt.retry, error, outcome.action, is_lost=outcome.is_lost, is_refused=outcome.is_refused
    )
    log_failure(
        task_logger,
        level,
        wording.FAILED,
        *arguments,
        error=None if issubclass(type(error), TaskDecision) else error,
        extra={
            "task": job.endpoint,
            "job_id": job.id,
            "queue": job.queue,
            "attempt": job.known_attempts.number if job.known_attempts else None,
        },
    )


def log_expiry(job: CurrentJob, now: float) -> None:
    """Log that a job is deleted because it had expired at ``now``, in seconds since the epoch."""
    facts = {"task": job.endpoint, "job_id": job.id, "queue": job.queue}
    late_s = now - (expires_at(job.headers) or now)
    task_logger.info(wording.EXPIRED, job.endpoint, job.queue, late_s, job.id, extra=facts)


def bury_undecodable(
    connection: SettlingConnection, job: CurrentJob, error: MessageDecodeError, stories: StoryWriter
) -> Outcome:
    """Bury a job that no version of the app can run."""
    extra = {"job_id": job.id, "queue": job.queue}
    reason = f"it can never run: {error}"
    try:
        counters = connection.counters(job.id)
        job.learn(counters)
        note = Story(job=job.id, queue=job.queue, reason=reason, attempts=counters.attempts.number, **here_and_now())
        bury(connection, note, counters.priority, stories)
    except BrokerError as failure:
        log_failure(task_logger, logging.ERROR, wording.NOT_BURIED, job.id, job.queue, error, failure, extra=extra)
        raise
    log_failure(task_logger, logging.ERROR, wording.UNDECODABLE, job.id, job.queue, error, extra=extra)
    return Outcome(BuryJob(reason))


def bury(connection: SettlingConnection, note: Story, priority: int, stories: StoryWriter) -> None:
    """Bury the note's job, which ``connection`` holds.

    The note is written first: a crash in between leaves a stale note instead of a job without one. The job is buried
    even if the broker refuses the note, for example because it is short of memory.
    """
    try:
        stories.write(connection, note)
    except BrokerConnectionError:
        raise
    except BrokerError as error:
        log_failure(task_logger, logging.WARNING, wording.NO_STORY, note.job, note.queue, error)
    connection.bury(note.job, priority)


def _tell(attempt: Attempt, attempts: Attempts, reason: str, error: BaseException, mask: Mask) -> Story:
    job = attempt.job
    return Story(
        job=job.id,
        queue=job.queue,
        reason=reason,
        endpoint=job.endpoint,
        call=told(lambda: attempt.call.show(mask), f"{job.endpoint}(…)"),  # the task may have changed its arguments
        attempts=attempts.number,
        allowed=attempt.retry.allowed(attempts),
        scheduled_at=scheduled_at(job.headers),
        expires_at=expires_at(job.headers),
        ran_s=round(attempt.ran_s, 3),
        **here_and_now(),
        **tell_exception(error),
    )
