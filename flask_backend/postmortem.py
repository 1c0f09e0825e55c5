"""What becomes of a job that took its worker along: settled on the dead worker's own connection.

Runs in a short-lived process of its own, which has inherited the connection. As long as it is open the server keeps the
job reserved, so that no other worker can take it before it is settled.
"""

from __future__ import annotations

import logging
import random

from .broker import Connection
from .config import Settings
from .ending import Ending
from .errors import BrokerConnectionError, BrokerError
from .retry import Bury, Release, after_crash

logger = logging.getLogger("flask_backend.task")


def settle(settings: Settings, fd: int, job_id: int, *, crashes: int, story: str) -> Ending | None:
    """Release or bury the job that a dead worker held; return None if there was nothing to settle.

    ``crashes`` is how often the job has taken a worker along, this time included; ``story`` tells how.
    Any doubt about what is on the connection ends in its being closed, which gives the job back as it was.
    """
    connection: Connection | None = None
    try:
        connection = Connection.adopt(fd, settings)
        job = connection.find_held(job_id)
        if job is None:
            logger.debug("job %d was settled before its worker died", job_id)
            return None
        match after_crash(job.counters.attempts, crashes, random.random):
            case Release(delay_s):
                connection.release(job.id, job.counters.priority, delay_s)
                logger.warning("job %d has taken its worker along (%s), next try in %d s", job_id, story, delay_s)
                return Ending.RETRIED
            case Bury(reason):
                connection.bury(job.id, job.counters.priority)
                logger.error("job %d is buried: %s (%s)", job_id, reason, story)
                return Ending.BURIED
    except BrokerConnectionError as error:
        logger.debug("job %d goes back as it was: %s", job_id, error)
    except BrokerError as error:
        logger.warning("job %d could not be settled after its worker's death: %s", job_id, error)
    finally:
        if connection is not None:
            connection.close()
    return None
