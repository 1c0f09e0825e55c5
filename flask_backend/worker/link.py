"""A worker's connection to the broker, and what follows when it breaks."""

from __future__ import annotations

import random
import select
import time

from flask_backend.broker import batches
from flask_backend.broker.connection import Connection
from flask_backend.broker.pipeline import Pipeline
from flask_backend.broker.wire import ReservedJob
from flask_backend.config import Settings
from flask_backend.errors import BrokerConnectionError, BrokerError, JobNotFoundError, MessageDecodeError
from flask_backend.message import decode
from flask_backend.registry import Handlers
from flask_backend.system.loggers import get_logger

from . import wording
from .execution import read_call
from .heartbeat import RECLAIM_EVERY_S, WorkerLease
from .host import UNBOUNDED_NS, Host
from .stopping import StopSignals

logger = get_logger("flask_backend.worker")

# Reserves are finite, so that a client whose host vanished does not swallow jobs for long, and a frozen server is
# noticed. Asking again costs an idle worker about 0.3 ms of CPU.
RESERVE_S = 5
# The delay before the next attempt to connect: it doubles, with jitter.
RECONNECT_MIN_S = 0.1
RECONNECT_MAX_S = 5.0
# After a restart on its binlog the broker has the jobs in flight ready again, at the head of their queue. Before it
# reserves, each worker gives the others this much time to take back their own jobs.
RECLAIM_PATIENCE_S = 3.0


class Link:
    """The connection in use, with its pipeline; a new one replaces it when it breaks.

    ``silent_ns`` is how long the worker may wait for a broker that does not answer: the timeout for sending a reserve,
    and again for its reply. The worker sets ``jobs_settled``, the number of its jobs when the last replies were sound.
    """

    def __init__(self, settings: Settings, handlers: Handlers, host: Host, stop: StopSignals) -> None:
        self._settings = settings
        self._handlers = handlers
        self._host = host
        self._stop = stop
        self._backoff = Backoff()
        self._pipeline: Pipeline | None = None
        self._poll: select.poll | None = None  # for that connection
        self._undeleted: list[ReservedJob] = []  # finished while their connection broke
        self.silent_ns = int(2 * settings.timeout_s * 1e9)
        self.jobs_settled = 0

    def connected(self) -> Pipeline:
        """Return the pipeline in use, or connect. Raises :exc:`BrokerConnectionError`."""
        # The resolver and the network decide how long this takes: a worker that waits is not stuck.
        self._host.live(UNBOUNDED_NS)
        pipeline = self._usable()
        if self._backoff.is_away:
            logger.info(wording.BROKER_BACK, self._handlers.queue, self._settings.address)
            self._host.show_broker(is_away=False)
            if pipeline.connection.has_old_jobs(self._handlers.queue, self._backoff.end()):
                self._stop.wait(RECLAIM_PATIENCE_S)
        return pipeline

    def wait_after(self, error: BrokerError) -> None:
        """Give up the connection, which gives back its jobs, and wait for a while or until a stop is requested."""
        if self._pipeline is not None:
            self._disconnect(self._pipeline)
        if not self._backoff.is_away:  # one warning for each outage
            logger.warning(wording.BROKER_AWAY, self._handlers.queue, error)
            self._host.show_broker(is_away=True)
        most_s = RECLAIM_EVERY_S if self._undeleted else RECONNECT_MAX_S
        self._stop.wait(self._backoff.next(most_s, self.jobs_settled))

    def replacing(self, pipeline: Pipeline) -> Pipeline:
        """Return the pipeline that has replaced this one: see :meth:`take_over`."""
        return self._pipeline or pipeline

    def receive(self, pipeline: Pipeline) -> list[ReservedJob]:
        """Wait for the replies in flight; return the jobs that they contain.

        It waits for the socket and the signals together, since a signal does not end a blocking read.
        """
        soon = False
        connection = pipeline.connection
        while connection.is_awaiting and not self._stop.requested:
            is_owed = bool(pipeline.pending_deletes)  # this reply comes at once; the one to the reserve may follow
            soon |= is_owed
            if not (is_owed and connection.receive()):  # on a busy host it is there before we look
                self._wait_and_receive(connection, is_owed=is_owed, soon=soon)
            for job in pipeline.pop_expired():
                label = read_call(self._handlers, job.body).label
                logger.warning(wording.OUTLIVED, job.id, label)
        return pipeline.take_jobs()

    def _wait_and_receive(self, connection: Connection, *, is_owed: bool, soon: bool) -> None:
        patience_s = self._settings.timeout_s + (0 if is_owed else RESERVE_S)
        if self._stop.wait(patience_s, self._poll, soon=soon):
            connection.receive()
        elif not self._stop.requested:
            raise BrokerConnectionError(f"Beanstalkd at {self._settings.address} does not answer")

    def open(self) -> Connection:
        """Return a new connection, which this link does not use yet."""
        return Connection(self._settings.address, self._settings.timeout_s, watch=self._handlers.queue)

    def take_over(self, lease: WorkerLease, connection: Connection) -> bool:
        """Switch to ``connection`` if it can reserve the running task's job again; return whether it could.

        Runs in a thread of the heartbeat, which keeps the task from using the connection at the same time.
        """
        if not (_has_own_id(lease.job) and connection.reserve_again(lease.job)):
            return False
        self._disconnect(lease.pipeline)
        lease.pipeline = Pipeline(connection)
        self._use(lease.pipeline)
        return True

    def close(self) -> None:
        """Close the connection, after a last attempt to delete the jobs that finished while it broke."""
        if self._undeleted:
            try:
                self._usable()
            except BrokerError as error:
                for job in self._undeleted:
                    logger.warning(wording.NOT_DELETED, job.id, error)
        if self._pipeline is not None:
            self._pipeline.connection.close()

    def _usable(self) -> Pipeline:
        if self._pipeline is None or self._pipeline.connection.fileno() < 0:
            self._use(pipeline := Pipeline(self.open()))
            return pipeline
        return self._pipeline

    def _use(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline
        self._poll = self._stop.poll_with(pipeline.connection)
        self._host.lend(pipeline.connection.fileno())
        self._delete_finished(pipeline.connection)

    def _disconnect(self, pipeline: Pipeline) -> None:
        pipeline.connection.close()
        self._undeleted += pipeline.pop_pending_deletes()
        self._pipeline = None

    def _delete_finished(self, connection: Connection) -> None:
        """Delete the jobs whose tasks finished while their connection broke.

        Job ids may restart at 1 with the server, so only a body with an id of its own identifies a job.
        """
        while self._undeleted:
            job = self._undeleted[0]
            problem = "its message has no id of its own" if not _has_own_id(job) else None
            try:
                if problem is None and connection.peek([job.id]).get(job.id) == job.body:
                    problem = "another worker holds it"
                    batches.finish_each(connection, [job.body])
                    connection.delete(job.id)
                    problem = None
            except JobNotFoundError:
                pass  # deleted, or gone with the server
            del self._undeleted[0]
            if problem:
                logger.warning(wording.FINISHED_ELSEWHERE, job.id, problem)


def _has_own_id(job: ReservedJob) -> bool:
    try:
        return bool(decode(job.body).headers.get("id"))
    except MessageDecodeError:
        return False


class Backoff:
    """Delays that double, with jitter, during outages of the broker.

    They go on doubling if the next outage begins within ``RECONNECT_MAX_S`` and no job was settled in between: a server
    that accepts and breaks each connection, even after it has handed out a job, causes as few attempts and log lines as
    an unreachable one.
    """

    def __init__(self) -> None:
        self.is_away = False
        self._tries = 0
        self._jobs_settled = 0
        self._began = 0.0
        self._ended = 0.0

    def end(self) -> float:
        """Record that the broker is back; return how long the outage lasted, in seconds."""
        self.is_away = False
        self._ended = time.monotonic()
        return self._ended - self._began

    def next(self, most_s: float, jobs_settled: int) -> float:
        """Return the seconds to wait before the next attempt, at most ``most_s``."""
        now = time.monotonic()
        if not self.is_away:
            self.is_away, self._began = True, now
            if jobs_settled != self._jobs_settled or now - self._ended > RECONNECT_MAX_S:
                self._tries, self._jobs_settled = 0, jobs_settled
        delay_s = min(most_s, RECONNECT_MIN_S * 2.0 ** min(self._tries, 16))
        self._tries += 1
        return delay_s * random.uniform(0.5, 1.0)
