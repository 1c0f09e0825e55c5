"""The log lines of a worker. Pure."""

from __future__ import annotations

import logging

from flask_backend.current import CurrentJob
from flask_backend.decisions import Bury, RetryLater, TaskDecision
from flask_backend.retry import Attempts, BuryJob, DiscardJob, ReleaseJob, Retry, reason_of
from flask_backend.tracebacks import name_of

# -- the worker --------------------------------------------------------------------------------------------------

READY = "ready: %s"
HOOK_FAILED = "a before_first_task hook of %s failed"
HOOK_PATCHED = "a before_first_task hook of %s: %s"
HOOK_WAITS = "%s: a before_first_task hook needs the broker: %s; trying again"
ORPHANED = "the supervisor is gone: draining"
# What has changed them, and the changes.
SIGNALS_CHANGED = (
    "%s has changed the signals of this worker: %s. The worker has restored those it needs to stop and to enforce time "
    "limits; use atexit to run code when the worker ends"
)
LOOP_FAILED = "shutting down the event loop failed"
LOOP_CANCELS = "cancelling background tasks that are still pending at the end: %s"
LOOP_TASK_FAILED = "background task %s failed while it was cancelled"
LOOP_TASKS_STUCK = "background tasks have not ended %g s after they were cancelled: %s"

LIMIT_LOST = "lost the token of limit %s while job %d (%s) runs: more tasks than allowed may run: %s"
WAIT_ENDED = "job %d (%s) goes back: the worker is to stop while it %s"
LEFT = "job %d (%s) is left at its checkpoint, and goes on in another worker"

# -- the connection ----------------------------------------------------------------------------------------------

BROKER_AWAY = "%s: %s; trying again"
BROKER_BACK = "%s: back at Beanstalkd at %s"
CONNECTION_LOST = "lost the connection to Beanstalkd while job %d (%s) runs: trying to get the job back"
HELD_AGAIN = "job %d (%s) is held again"
LOST = "lost the reservation of job %d (%s)%s: %s"
RUNS_ON = ", whose task goes on and may run twice"
OUTLIVED = "job %d (%s) outlived its reservation and may run twice"
FINISHED_ELSEWHERE = "job %d finished while the connection was lost, and may run twice: %s"
NOT_DELETED = "job %d has finished but cannot be deleted, and will run twice: %s"

# -- jobs --------------------------------------------------------------------------------------------------------

STUCK = "job %d (%s) did not end at its time limit: leaving"
EXPIRED = "task %s of %s expired %.1f s before it could start (job %d), deleted"
UNDECODABLE = "job %d of %s can never run; buried unchanged: %s"
NOT_BURIED = "job %d of %s can never run, and is not buried: %s (%s)"
NO_STORY = "cannot store the story of the buried job %d of %s: %s"
CRASHED = "job %d has crashed its worker (%s), next try in %d s"
CRASHED_OFTEN = "job %d is buried: %s (%s)"
WITHOUT_POLICY = "settling job %d without its retry policy"
NOT_SETTLED = "job %d could not be settled after its worker died: %s"
GOES_BACK = "job %d goes back as it was: %s"
WAS_SETTLED = "job %d was settled before its worker died"
RECEIVERS_HANG = "receivers of the signals about job %d, which crashed its worker, take longer than %g s"

# The task, its queue, what happened, the job, the number of the attempt, what follows.
FAILED = "task %s of %s %s (job %d, %s), %s"


def describe_failure(  # noqa: PLR0913  # what is known of an attempt
    job: CurrentJob,
    retry: Retry,
    error: BaseException,
    action: ReleaseJob | BuryJob | DiscardJob | None,
    *,
    is_lost: bool,
    is_refused: bool,
) -> tuple[int, tuple[object, ...]]:
    """Return the level of the line about an attempt that did not succeed, and the arguments of ``FAILED``."""
    kind = type(error)  # not isinstance, which also consults the exception
    what = _describe_decision(error) if issubclass(kind, TaskDecision) else "failed"
    number = _number(job.known_attempts, retry)
    level, then = logging.ERROR, "the broker gives it to another worker"
    match action:
        case ReleaseJob(delay_s):
            level = logging.INFO if issubclass(kind, RetryLater) else logging.ERROR
            then = f"next try in {delay_s} s"
        case BuryJob(reason):
            is_wish = issubclass(kind, Bury)
            level, then = (logging.WARNING, "buried") if is_wish else (logging.ERROR, f"buried: {reason}")
        case DiscardJob():
            level, then = logging.WARNING, "deleted"
        case None if is_lost:
            then = "its reservation was lost"
        case None if is_refused:
            # Beanstalkd 1.12 has taken it out of the reserved ones by then.
            then = "the broker refuses to retry or bury it, and may not hand it out until it is restarted"
        case None:
            pass
    return level, (job.endpoint, job.queue, what, job.id, number, then)


def _number(attempts: Attempts | None, retry: Retry) -> str:
    if attempts is None:
        return "attempt unknown"
    allowed = retry.allowed(attempts)
    return f"attempt {attempts.number}" + (f" of {allowed}" if allowed else "")


def _describe_decision(decision: BaseException) -> str:
    is_later = issubclass(type(decision), RetryLater)
    asked = "asks to be retried later" if is_later else f"decided {name_of(decision).rpartition('.')[2]}"
    return f"{asked}: {reason}" if (reason := reason_of(decision)) else asked
