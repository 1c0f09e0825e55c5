"""Settling a job that crashed its worker, on the dead worker's own connection.

This runs in a short-lived process that has inherited the connection. While the connection is open, the server keeps the
job reserved, so that no other worker can take it before it is settled.
"""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flask import Flask

from flask_backend.broker.connection import Connection, ReservedState
from flask_backend.broker.stats import JobCounters
from flask_backend.config import Settings
from flask_backend.current import CurrentJob
from flask_backend.deaths import Death
from flask_backend.errors import (
    BrokerConnectionError,
    BrokerError,
    JobNotFoundError,
    MessageDecodeError,
    WorkerDiedError,
)
from flask_backend.message import expires_at, scheduled_at
from flask_backend.outcome import Ending
from flask_backend.registry import Handlers
from flask_backend.retry import BuryJob, ReleaseJob, Retry, after_crash
from flask_backend.stories import Story, here_and_now
from flask_backend.system.loggers import get_logger
from flask_backend.tracebacks import log_failure, told
from flask_backend.tracing import Processing, flush, watched

from . import wording
from .batches import finish_buried, release_store
from .execution import Call, read_call
from .outcomes import Outcome, announce_failure
from .settlement import StoryWriter, bury, task_logger

logger = get_logger("flask_backend.worker")

# How long the receivers of signals may take: in a thread, so that one that hangs does not undo the settlement.
RECEIVERS_S = 5.0
# In place of a retry policy that fails.
PLAIN_RETRY = Retry(max_retries=None, min_backoff=60, max_backoff=60, jitter=0)


@dataclass(frozen=True, slots=True)
class Settled:
    """A job that was settled after its worker died."""

    job: CurrentJob
    outcome: Outcome

    @property
    def ending(self) -> Ending | None:
        return self.outcome.ending


@dataclass(frozen=True, slots=True)
class _FormerLease:
    """The known facts of a job whose reservation has ended."""

    job_id: int
    known: JobCounters

    def counters(self) -> JobCounters:
        return self.known

    def counters_within(self, wait_s: float) -> JobCounters:  # noqa: ARG002  # they are known
        return self.known

    def touch(self) -> None:
        raise JobNotFoundError(f"job {self.job_id} is no longer held: its worker died")

    def progress(self, done: int, total: int) -> None:
        pass

    def keeping(self) -> None:
        return None

    def is_leaving(self) -> bool:
        return False


def settle(settings: Settings, handlers: Handlers, fd: int, death: Death, crashes: int) -> Settled | None:
    """Release or bury the job that a dead worker held, if it has to be settled; close the connection in any case.

    ``crashes`` is how often the job has crashed a worker, including this time. If the state of the connection is in
    doubt, it is closed, which gives the job back unchanged.
    """
    if death.activity is None:
        return None
    job_id = death.activity.job_id
    connection: Connection | None = None
    try:
        connection = Connection.adopt(fd, settings.address, settings.timeout_s)
        reserved = connection.recover_reserved(job_id)
        if reserved is None:
            logger.debug(wording.WAS_SETTLED, job_id)
            return None
        try:
            return _settle(connection, settings, handlers, reserved, death, crashes)
        except BrokerError:
            raise
        except Exception as error:  # raised by the task's own policy, or out of memory
            log_failure(logger, logging.ERROR, wording.WITHOUT_POLICY, job_id, error=error)
            job = _job_of(handlers, reserved, death.activity.label, {}, settings.retry)
            return Settled(job, _settle_plainly(connection, reserved, crashes))
    except BrokerConnectionError as error:
        logger.debug(wording.GOES_BACK, job_id, error)
    except BrokerError as error:
        logger.warning(wording.NOT_SETTLED, job_id, error)
    finally:
        if connection is not None:
            connection.close()
    return None


def announce_crash(app: Flask, settings: Settings, settled: Settled, death: Death) -> None:
    """Send the signals about a settled job whose worker died, and what tracers have to send: the process ends then."""
    error = WorkerDiedError(str(death), death.as_dict())
    ran_s = death.activity.running_s if death.activity else 0.0

    def send() -> None:
        with watched(Processing(settled.job, settings.broker, ran_s=ran_s)):
            announce_failure(app, settled.job, settled.outcome, error, ran_s)

    receiving = threading.Thread(target=send, name="flask-backend-signals", daemon=True)
    receiving.start()
    receiving.join(RECEIVERS_S)
    if receiving.is_alive():
        logger.warning(wording.RECEIVERS_HANG, settled.job.id, RECEIVERS_S)
    flush()


def _settle(  # noqa: PLR0913
    connection: Connection, settings: Settings, handlers: Handlers, reserved: ReservedState, death: Death, crashes: int
) -> Settled:
    call = _read(handlers, connection.peek([reserved.id]).get(reserved.id, b""))
    retry = (call.retry if call else None) or settings.retry
    job = _job_of(handlers, reserved, call.label if call else "", call.headers if call else {}, retry)
    attempts, priority = reserved.counters.attempts, reserved.counters.priority
    facts = {"job_id": job.id, "queue": job.queue, "attempt": attempts.number, "task": job.endpoint or None}
    match action := after_crash(retry, attempts, crashes, random.random):
        case ReleaseJob(delay_s):
            connection.release(job.id, priority, delay_s)
            log_failure(task_logger, logging.WARNING, wording.CRASHED, job.id, death, delay_s, extra=facts)
        case BuryJob(reason):
            release_store(connection, job)
            finish_buried(connection, job)
            note = Story(
                job=job.id,
                queue=job.queue,
                reason=reason,
                endpoint=job.endpoint or None,
                call=told(lambda: call.show(settings.mask), f"{job.endpoint}(…)") if call else None,
                message=str(death),
                attempts=attempts.number,
                allowed=retry.allowed(attempts),
                scheduled_at=scheduled_at(job.headers),
                expires_at=expires_at(job.headers),
                ran_s=death.activity.running_s if death.activity else None,
                death=death.as_dict(),
                **here_and_now(),
            )
            bury(connection, note, priority, StoryWriter(settings.mask))
            log_failure(task_logger, logging.ERROR, wording.CRASHED_OFTEN, job.id, reason, death, extra=facts)
    return Settled(job, Outcome(action))


def _settle_plainly(connection: Connection, reserved: ReservedState, crashes: int) -> Outcome:
    """Release or bury a job without code of the app: its crash must count before the next worker gets it."""
    action = after_crash(PLAIN_RETRY, reserved.counters.attempts, crashes, random.random)
    match action:
        case ReleaseJob(delay_s):
            connection.release(reserved.id, reserved.counters.priority, delay_s)
        case BuryJob():
            connection.bury(reserved.id, reserved.counters.priority)
    return Outcome(action)


def _job_of(
    handlers: Handlers, reserved: ReservedState, endpoint: str, headers: Mapping[str, Any], retry: Retry
) -> CurrentJob:
    lease = _FormerLease(reserved.id, reserved.counters)
    job = CurrentJob(reserved.id, handlers.queue, endpoint, headers, retry, lease)
    job.learn(reserved.counters)
    return job


def _read(handlers: Handlers, body: bytes) -> Call | None:
    """Return the job's call, unless it cannot be read here: reading it may have crashed the worker."""
    try:
        return read_call(handlers, body)
    except (MessageDecodeError, MemoryError):
        return None
