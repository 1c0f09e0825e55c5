"""The producer: puts jobs, one or many, on the connection of the calling thread."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from flask_backend.bulk import BulkOutcome
from flask_backend.config import Settings
from flask_backend.errors import (
    BackendError,
    BrokerConnectionError,
    BrokerError,
    JobNotFoundError,
    JobTooBigError,
)
from flask_backend.message import has_uid
from flask_backend.options import DEFAULTS, Options

from . import batches, cursors
from .batches import Outgoing, SendingConnection, Sent, SentPuts, When
from .connection import PIPELINE_JOBS, Connection
from .cursors import CursorConnection, Owner
from .stats import JobRecord

T = TypeVar("T")

# The bodies of some items, by index, or the errors of encoding them.
Chunk = dict[int, bytes | BackendError]

# Bytes to collect before sending, which bounds our memory.
_PIPELINE_BYTES = 1 << 20


class PutConnection(CursorConnection, SendingConnection, Protocol):
    """The part of its connection that a producer uses."""

    def delete(self, job_id: int) -> None: ...


@dataclass(slots=True)
class _Sent:
    """A chunk that is in flight."""

    chunk: Chunk
    pending: SentPuts | None = None
    failure: BrokerConnectionError | None = None
    is_settled: bool = False


class Producer:
    """Puts jobs, from any thread and after any fork: each thread has its own connection, opened when needed."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.uri = str(settings.broker)
        self._plain = DEFAULTS.resolve(settings.ttr_s)  # for most calls
        self._local = threading.local()

    def put(self, queue: str, body: bytes, options: Options) -> int:
        """Put one job, see :meth:`Connection.put`.

        A connection that broke since the last put is replaced first. If it breaks during a put, the caller gets the
        error: the server may have the job, and a second put could run it twice.
        """
        resolved = self._plain if options is DEFAULTS else options.resolve(self.settings.ttr_s)
        return self.connection().put(queue, body, resolved)

    def put_many(
        self, queue: str, items: Iterable[T], encode: Callable[[int, T], bytes], options: Options
    ) -> BulkOutcome:
        """Put a job for each item, in order and in large batches; return the outcome of each.

        ``encode`` makes the body from an item and its index. An invalid item is refused and the others are still sent;
        an error of the server ends the batch. An error of ``items`` itself is raised, with a note.
        """
        outcome = BulkOutcome()
        source = enumerate(items)
        sent: _Sent | None = None
        try:
            while outcome.failure is None:
                chunk = _next_chunk(source, encode)  # while the server handles the previous one
                if sent is not None:
                    self._settle(sent, outcome)
                if not chunk or outcome.failure is not None:
                    break
                sent = _Sent(chunk)
                self._send(sent, queue, options, outcome)
        except BaseException as error:
            if sent is not None:
                self._settle(sent, outcome)
            error.add_note(f"of the items before it: {outcome}")
            raise
        return outcome

    def _send(self, sent: _Sent, queue: str, options: Options, outcome: BulkOutcome) -> None:
        """Send the items of a chunk that could be encoded; record a failure if the server cannot be reached."""
        bodies = [body for body in sent.chunk.values() if isinstance(body, bytes)]
        try:
            connection = self.connection()
        except BrokerConnectionError as error:
            outcome.failure, outcome.unsent_from = error, min(sent.chunk)
            return
        if bodies:
            try:
                sent.pending = connection.send_puts(queue, bodies, options.resolve(self.settings.ttr_s))
            except BrokerConnectionError as error:
                sent.failure = error

    def _settle(self, sent: _Sent, outcome: BulkOutcome) -> None:
        """Record the outcome of a chunk that was sent, once.

        An exception of a signal handler may come while this waits for the replies: then call it again.
        """
        if sent.is_settled:
            return
        end = max(sent.chunk) + 1
        results: list[int | BrokerError] = []
        try:
            if sent.failure is not None:
                raise sent.failure
            if sent.pending is not None:
                sent.pending.collect(results)
        except BrokerConnectionError as error:
            outcome.failure, outcome.unsent_from = error, end
        sent.is_settled = True
        first = results[0] if len(results) == len(sent.chunk) else None
        if isinstance(first, int) and results == list(range(first, first + len(results))):  # nearly always
            outcome.accepted.add(min(sent.chunk), first, len(results))
            return
        answers = iter(results)
        for index, body in sent.chunk.items():
            match body if isinstance(body, BackendError) else next(answers, None):
                case int(job_id):
                    outcome.accepted.add(index, job_id)
                case None:
                    outcome.unknown.add(index)
                case refusal:
                    outcome.refuse(index, refusal)
                    if isinstance(refusal, BrokerError) and not isinstance(refusal, JobTooBigError):
                        outcome.failure, outcome.unsent_from = refusal, end

    def send_batch(self, batch: str, when: When, members: Sequence[Outgoing], callback: Outgoing) -> Sent:
        """Send a batch, see :func:`batches.send`."""
        return batches.send(self.connection(), batch, when, members, callback)

    def state(self, queue: str, job_id: int, uid: str | None) -> str | None:
        """Return the server's name for the state of a job, if the job exists.

        Ids may restart at 1 with the server, so a job in another queue, or with another ``uid``, is a different job.
        """
        found = self._find(queue, job_id, uid)
        return found and found[0].state

    def _find(self, queue: str, job_id: int, uid: str | None) -> tuple[JobRecord, bytes] | None:
        match self.connection().find(job_id):
            case record, body if record.queue == queue and (uid is None or has_uid(body, uid)):
                return record, body
            case _:
                return None

    def cancel(self, queue: str, job_id: int, uid: str | None) -> bool:
        """Delete a job unless a worker holds it; return whether it was deleted."""
        found = self._find(queue, job_id, uid)
        if found is None or found[0].state == "reserved":
            return False
        try:
            self.connection().delete(job_id)
        except JobNotFoundError:  # a worker was faster
            return False
        cursors.drop(self.connection(), Owner(job_id, queue, uid).tube)
        batches.finish_each(self.connection(), [found[1]])
        return True

    def runs_elsewhere(self) -> bool:
        """Whether jobs may run while the calling thread waits."""
        return True

    def connection(self) -> PutConnection:
        """Return this thread's connection, and open a new one if necessary."""
        connection: Connection | None = getattr(self._local, "connection", None)
        if connection is None or not connection.is_usable:
            if connection is not None:
                connection.close()
            connection = self._local.connection = Connection(self.settings.address, self.settings.timeout_s)
        return connection


def _next_chunk(source: Iterator[tuple[int, T]], encode: Callable[[int, T], bytes]) -> Chunk:
    """Encode items until there are enough to send."""
    chunk: Chunk = {}
    size = 0
    for index, item in source:
        try:
            body = chunk[index] = encode(index, item)
            size += len(body)
        except BackendError as error:
            chunk[index] = error
        if len(chunk) == PIPELINE_JOBS or size >= _PIPELINE_BYTES:
            break
    return chunk
