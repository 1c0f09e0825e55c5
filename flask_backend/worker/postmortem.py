"""Settling a job that crashed its worker, on the dead worker's own connection.

This runs in a short-lived process that has inherited the connection. While the connection is open, the server keeps the
job reserved, so that no other worker can take it before it is settled.
"""

from __future__ import annotations

import logging
import random

from flask_backend.broker.connection import Connection, ReservedState
from flask_backend.config import Settings
from flask_backend.deaths import Death
from flask_backend.errors import BrokerConnectionError, BrokerError, MessageDecodeError
from flask_backend.message import scheduled_at
from flask_backend.outcome import Ending
from flask_backend.registry import Handlers
from flask_backend.retry import MAX_CRASHES, BuryJob, ReleaseJob, after_crash
from flask_backend.stories import Story, here_and_now
from flask_backend.system.loggers import get_logger
from flask_backend.tracebacks import log_failure, told

from .execution import Call, read_call
from .settlement import bury, task_logger

logger = get_logger("flask_backend.worker")

# The delay if the retry policy fails to give one, in seconds.
PLAIN_DELAY_S = 60


def settle(settings: Settings, handlers: Handlers, fd: int, death: Death, crashes: int) -> Ending | None:
    """Release or bury the job that a dead worker held; return how, if it had to be settled.

    ``crashes`` is how often the job has crashed a worker, including this time. If the state of the connection is in
    doubt, it is closed, which gives the job back unchanged.
    """
    if death.activity is None:
        return None
    job_id = death.activity.job_id
    connection: Connection | None = None
    try:
        connection = Connection.adopt(fd, settings.address, settings.timeout_s)
        job = connection.recover_reserved(job_id)
        if job is None:
            logger.debug("job %d was settled before its worker died", job_id)
            return None
        try:
            return _settle(connection, settings, handlers, job, death, crashes)
        except BrokerError:
            raise
        except Exception as error:  # raised by the task's own policy, or out of memory
            log_failure(logger, logging.ERROR, "settling job %d without its retry policy", job_id, error=error)
            return _settle_plainly(connection, job, crashes)
    except BrokerConnectionError as error:
        logger.debug("job %d goes back as it was: %s", job_id, error)
    except BrokerError as error:
        logger.warning("job %d could not be settled after its worker died: %s", job_id, error)
    finally:
        if connection is not None:
            connection.close()
    return None


def _settle(  # noqa: PLR0913
    connection: Connection, settings: Settings, handlers: Handlers, job: ReservedState, death: Death, crashes: int
) -> Ending:
    call = _read(handlers, connection.peek([job.id]).get(job.id, b""))
    label = call.label if call else None
    retry = (call.retry if call else None) or settings.retry
    attempts = job.counters.attempts
    facts = {"job_id": job.id, "queue": handlers.queue, "attempt": attempts.number, "task": label}
    match after_crash(retry, attempts, crashes, random.random):
        case ReleaseJob(delay_s):
            connection.release(job.id, job.counters.priority, delay_s)
            message = "job %d has crashed its worker (%s), next try in %d s"
            log_failure(task_logger, logging.WARNING, message, job.id, death, delay_s, extra=facts)
            return Ending.RETRIED
        case BuryJob(reason):
            note = Story(
                job=job.id,
                queue=handlers.queue,
                reason=reason,
                endpoint=label,
                call=told(lambda: str(call), f"{label}(…)") if call else None,
                message=str(death),
                attempts=attempts.number,
                allowed=retry.allowed(attempts),
                scheduled_at=scheduled_at(call.headers) if call else None,
                ran_s=death.activity.running_s if death.activity else None,
                death=death.as_dict(),
                **here_and_now(),
            )
            bury(connection, note, job.counters.priority)
            message = "job %d is buried: %s (%s)"
            log_failure(task_logger, logging.ERROR, message, job.id, reason, death, extra=facts)
            return Ending.BURIED


def _settle_plainly(connection: Connection, job: ReservedState, crashes: int) -> Ending:
    """Release or bury a job without code that can fail: its crash must count before the next worker gets it."""
    if crashes >= MAX_CRASHES:
        connection.bury(job.id, job.counters.priority)
        return Ending.BURIED
    connection.release(job.id, job.counters.priority, PLAIN_DELAY_S)
    return Ending.RETRIED


def _read(handlers: Handlers, body: bytes) -> Call | None:
    """Return the job's call, unless it cannot be read here: reading it may have crashed the worker."""
    try:
        return read_call(handlers, body)
    except (MessageDecodeError, MemoryError):
        return None
