"""What becomes of a job that took its worker along: settled on the dead worker's own connection.

Runs in a short-lived process of its own, which has inherited the connection. As long as it is open the server keeps the
job reserved, so that no other worker can take it before it is settled.
"""

from __future__ import annotations

import random

from .broker import Connection, HeldJob
from .config import Settings
from .ending import Ending
from .errors import BrokerConnectionError, BrokerError, MessageDecodeError
from .execution import Call, read_call
from .extension import Handlers
from .loggers import get_logger
from .message import scheduled_at
from .notes import Note, here_and_now
from .retry import Buried, Released, after_crash
from .settlement import bury, task_logger
from .supervisor import Death

logger = get_logger("flask_backend.worker")


def settle(settings: Settings, handlers: Handlers, fd: int, death: Death, crashes: int) -> Ending | None:
    """Release or bury the job that a dead worker held; return None if there was nothing to settle.

    ``crashes`` is how often the job has taken a worker along, this time included. Any doubt about what is on the
    connection ends in its being closed, which gives the job back as it was.
    """
    if death.activity is None:
        return None
    job_id = death.activity.job_id
    connection: Connection | None = None
    try:
        connection = Connection.adopt(fd, settings)
        job = connection.find_held(job_id)
        if job is None:
            logger.debug("job %d was settled before its worker died", job_id)
            return None
        return _settle(connection, settings, handlers, job, death, crashes)
    except BrokerConnectionError as error:
        logger.debug("job %d goes back as it was: %s", job_id, error)
    except BrokerError as error:
        logger.warning("job %d could not be settled after its worker's death: %s", job_id, error)
    finally:
        if connection is not None:
            connection.close()
    return None


def _settle(  # noqa: PLR0913
    connection: Connection, settings: Settings, handlers: Handlers, job: HeldJob, death: Death, crashes: int
) -> Ending:
    call = _read(handlers, connection.peek(job.id))
    retry = (call.retry if call else None) or settings.retry
    attempts = job.counters.attempts
    told = {"job_id": job.id, "queue": handlers.queue, "attempt": attempts.number, "task": call.label if call else None}
    match after_crash(retry, attempts, crashes, random.random):
        case Released(delay_s):
            connection.release(job.id, job.counters.priority, delay_s)
            task_logger.warning(
                "job %d has taken its worker along (%s), next try in %d s", job.id, death, delay_s, extra=told
            )
            return Ending.RETRIED
        case Buried(reason):
            note = Note(
                job=job.id,
                queue=handlers.queue,
                reason=reason,
                endpoint=call.label if call else None,
                call=str(call) if call else None,
                message=str(death),
                attempts=attempts.number,
                allowed=retry.allowed(attempts),
                scheduled_at=scheduled_at(call.headers) if call else None,
                ran_s=death.activity.running_s if death.activity else None,
                death=death.as_dict(),
                **here_and_now(),
            )
            bury(connection, note, job.counters.priority)
            task_logger.error("job %d is buried: %s (%s)", job.id, reason, death, extra=told)
            return Ending.BURIED


def _read(handlers: Handlers, body: bytes) -> Call | None:
    try:
        return read_call(handlers, body)
    except MessageDecodeError:
        return None
