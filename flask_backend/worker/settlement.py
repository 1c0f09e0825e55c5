"""Settling a job that failed: release it, delete it, or bury it and store its story."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

from flask_backend.broker.stats import JobCounters, Queue
from flask_backend.broker.wire import ReservedJob
from flask_backend.decisions import Bury, RetryLater, TaskDecision
from flask_backend.errors import (
    BrokerConnectionError,
    BrokerError,
    JobNotFoundError,
    JobTooBigError,
    MessageDecodeError,
)
from flask_backend.message import scheduled_at
from flask_backend.names import failures_tube
from flask_backend.options import PutOptions
from flask_backend.outcome import Ending
from flask_backend.retry import Attempts, BuryJob, DiscardJob, ReleaseJob, Retry, after_failure, reason_of
from flask_backend.stories import MAX_WHOLE, NOTE_TTR_S, Story, here_and_now, tell_exception
from flask_backend.system.loggers import get_logger
from flask_backend.tracebacks import log_failure, name_of, told

from .execution import Call

# A separate logger, so that error trackers can distinguish the failures of tasks from ours.
task_logger = get_logger("flask_backend.task")


class SettlingConnection(Protocol):
    """The commands that settling needs on the connection that holds the job."""

    def counters(self, job_id: int) -> JobCounters: ...
    def stats_tube(self, names: Iterable[str]) -> list[Queue]: ...
    def put(self, queue: str, body: bytes, options: PutOptions) -> int: ...
    def release(self, job_id: int, priority: int, delay_s: int) -> None: ...
    def bury(self, job_id: int, priority: int) -> None: ...
    def delete(self, job_id: int) -> None: ...


@dataclass(frozen=True, slots=True)
class Attempt:
    """A finished call of a job, which ran for ``ran_s`` seconds, and its retry policy."""

    queue: str
    job: ReservedJob
    call: Call
    retry: Retry
    ran_s: float


def settle_failure(connection: SettlingConnection, attempt: Attempt, error: BaseException) -> Ending | None:
    """Release, bury or delete a job as its retry policy or the task itself decides, and always log the failure.

    Returns None if the connection had lost the job.
    """
    job, retry = attempt.job, attempt.retry
    which, then, level = "attempt unknown", "the broker gives it to another worker", logging.ERROR
    kind = type(error)  # not isinstance, which also consults the exception
    facts: dict[str, Any] = {"task": attempt.call.label, "job_id": job.id, "queue": attempt.queue, "attempt": None}
    try:
        counters = connection.counters(job.id)
        facts["attempt"] = counters.attempts.number
        which = _number(counters.attempts, retry)
        match after_failure(retry, counters.attempts, error, random.random):
            case ReleaseJob(delay_s):
                connection.release(job.id, counters.priority, delay_s)
                then = f"next try in {delay_s} s"
                level = logging.INFO if issubclass(kind, RetryLater) else logging.ERROR
                return Ending.RETRIED
            case BuryJob(reason):
                bury(connection, _tell(attempt, counters.attempts, reason, error), counters.priority)
                is_wish = issubclass(kind, Bury)
                then, level = ("buried", logging.WARNING) if is_wish else (f"buried: {reason}", logging.ERROR)
                return Ending.BURIED
            case DiscardJob(reason):
                connection.delete(job.id)
                then, level = "deleted", logging.WARNING
                return Ending.DONE
    except JobNotFoundError:
        then = "its reservation was lost"
        return None
    finally:  # log the failure even without a broker
        is_decided = issubclass(kind, TaskDecision)
        log_failure(
            task_logger,
            level,
            "task %s of %s %s (job %d, %s), %s",
            attempt.call.label,
            attempt.queue,
            _what(error) if is_decided else "failed",
            job.id,
            which,
            then,
            error=None if is_decided else error,
            extra=facts,
        )


def bury_undecodable(connection: SettlingConnection, queue: str, job: ReservedJob, error: MessageDecodeError) -> Ending:
    """Bury a job that no version of the app can run."""
    log_failure(
        task_logger,
        logging.ERROR,
        "job %d of %s can never run; buried unchanged: %s",
        job.id,
        queue,
        error,
        extra={"job_id": job.id, "queue": queue},
    )
    counters = connection.counters(job.id)
    note = Story(
        job=job.id,
        queue=queue,
        reason=f"it can never run: {error}",
        attempts=counters.attempts.number,
        **here_and_now(),
    )
    bury(connection, note, counters.priority)
    return Ending.BURIED


def bury(connection: SettlingConnection, note: Story, priority: int) -> None:
    """Bury the note's job, which ``connection`` holds.

    The note is written first: a crash in between leaves a stale note instead of a job without one. The job is buried
    even if the broker refuses the note, for example because it is short of memory.
    """
    try:
        _keep(connection, note)
    except BrokerConnectionError:
        raise
    except BrokerError as error:
        message = "cannot store the story of the buried job %d of %s: %s"
        log_failure(task_logger, logging.WARNING, message, note.job, note.queue, error)
    connection.bury(note.job, priority)


def _keep(connection: SettlingConnection, note: Story) -> None:
    tube = failures_tube(note.queue)
    # A reader of the stories holds them reserved.
    if sum(kept.ready + kept.reserved for kept in connection.stats_tube([tube])) >= MAX_WHOLE:
        note = note.shortened()
    options = PutOptions(note.priority, 0, NOTE_TTR_S)
    try:
        connection.put(tube, note.encode(), options)
    except JobTooBigError:
        connection.put(tube, note.shortened().encode(), options)


def _tell(attempt: Attempt, attempts: Attempts, reason: str, error: BaseException) -> Story:
    label = attempt.call.label
    return Story(
        job=attempt.job.id,
        queue=attempt.queue,
        reason=reason,
        endpoint=label,
        call=told(lambda: str(attempt.call), f"{label}(…)"),  # the task may have changed its arguments
        attempts=attempts.number,
        allowed=attempt.retry.allowed(attempts),
        scheduled_at=scheduled_at(attempt.call.headers),
        ran_s=round(attempt.ran_s, 3),
        **here_and_now(),
        **tell_exception(error),
    )


def _number(attempts: Attempts, retry: Retry) -> str:
    allowed = retry.allowed(attempts)
    return f"attempt {attempts.number}" + (f" of {allowed}" if allowed else "")


def _what(decision: BaseException) -> str:
    """Return the wording for a decision of the task itself."""
    is_later = issubclass(type(decision), RetryLater)
    asked = "asks to be retried later" if is_later else f"decided {name_of(decision).rpartition('.')[2]}"
    return f"{asked}: {reason}" if (reason := reason_of(decision)) else asked
