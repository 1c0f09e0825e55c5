"""Puts jobs, one or many, on the connection of the calling thread."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from .broker import PIPELINE_JOBS, Connection
from .bulk import Outcome
from .config import Settings
from .errors import (
    BackendError,
    BrokerConnectionError,
    BrokerError,
    JobNotFoundError,
    JobTooBigError,
    MessageDecodeError,
)
from .message import decode
from .names import check_queue_name
from .options import Options

T = TypeVar("T")

# The bodies of some items, by index, or why there is none.
Chunk = dict[int, bytes | BackendError]

# So many bytes are collected before they are sent, which bounds our own memory.
_PIPELINE_BYTES = 1 << 20


class Producer:
    """Puts jobs, from any thread and after any fork: each thread has its own connection, opened when needed."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._local = threading.local()

    def put(self, queue: str, body: bytes, options: Options) -> int:
        """Put one job, see :meth:`Connection.put`.

        A connection that broke since the last put is replaced first. One that breaks in the middle is an error for
        the caller to see: the server may have the job, and a second put could run it twice.
        """
        check_queue_name(queue)
        return self.connection().put(queue, body, options.resolve(self.settings.ttr_s))

    def put_many(self, queue: str, items: Iterable[T], encode: Callable[[int, T], bytes], options: Options) -> Outcome:
        """Put a job for each item, in order and in large steps; return what became of each.

        ``encode`` makes the body from an item and its index. An item that is at fault itself is refused and the others
        go on; what is the server's fault ends it. An error of ``items`` itself is raised, with a note.
        """
        check_queue_name(queue)
        outcome = Outcome()
        source = enumerate(items)
        try:
            while chunk := _next_chunk(source, encode):
                if not self._put_chunk(queue, chunk, options, outcome):
                    break
        except BaseException as error:
            error.add_note(f"of the items before it: {outcome}")
            raise
        return outcome

    def _put_chunk(self, queue: str, chunk: Chunk, options: Options, outcome: Outcome) -> bool:
        """Put what could be encoded; return whether to go on."""
        bodies = {index: body for index, body in chunk.items() if isinstance(body, bytes)}
        end = max(chunk) + 1
        results: list[int | BrokerError] = []
        try:
            connection = self.connection()
        except BrokerConnectionError as error:
            outcome.failure, outcome.unsent_from = error, min(chunk)
            return False
        try:
            if bodies:
                connection.put_many(queue, list(bodies.values()), options.resolve(self.settings.ttr_s), results)
        except BrokerConnectionError as error:
            outcome.failure, outcome.unsent_from = error, end
        answers = iter(results)
        for index, body in chunk.items():
            match body if isinstance(body, BackendError) else next(answers, None):
                case int(job_id):
                    outcome.accepted.add(index, job_id)
                case None:
                    outcome.unknown.add(index)
                case refusal:
                    outcome.refuse(index, refusal)
                    if isinstance(refusal, BrokerError) and not isinstance(refusal, JobTooBigError):
                        outcome.failure, outcome.unsent_from = refusal, end
        return outcome.failure is None

    def state(self, queue: str, job_id: int, uid: str | None) -> str | None:
        """Return the state of a job, as the server names it; None if it is gone.

        Ids may start again at 1 when the server does, so a job of another queue, or of another ``uid``, is another job.
        """
        stats, found = self.connection().ask([b"stats-job %d\r\n" % job_id, b"peek %d\r\n" % job_id])
        if stats.status != "OK" or stats.stats["tube"] != queue or not (uid is None or _has_uid(found.data, uid)):
            return None
        return str(stats.stats["state"])

    def cancel(self, queue: str, job_id: int, uid: str | None) -> bool:
        """Delete a job that no worker holds; return whether it was there to be deleted."""
        if self.state(queue, job_id, uid) in (None, "reserved"):
            return False
        try:
            self.connection().delete(job_id)
        except JobNotFoundError:  # a worker was faster
            return False
        return True

    def connection(self) -> Connection:
        """Return this thread's connection, opened anew if need be."""
        connection: Connection | None = getattr(self._local, "connection", None)
        if connection is None or not connection.is_usable:
            if connection is not None:
                connection.close()
            connection = self._local.connection = Connection(self.settings)
        return connection


def _has_uid(body: bytes, uid: str) -> bool:
    try:
        return decode(body).headers.get("id") == uid
    except MessageDecodeError:
        return False


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
