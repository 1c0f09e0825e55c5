"""Connections to Beanstalkd. The only module that knows greenstalk, sockets and the protocol.

Two rules keep a reply from ever being read for the wrong command. Whatever interrupts a command, be it an error
of the network or an exception of a signal handler, closes the connection: only a plain reply leaves it usable.
And a connection belongs to one process: a fork closes the child's copy at once, since a forgotten copy would keep
a dead worker's job reserved.
"""

from __future__ import annotations

import logging
import os
import select
import socket
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from typing import ParamSpec, TypeVar, cast

import greenstalk

from .config import Address, Settings
from .errors import BackendError, BrokerConnectionError, BrokerError, JobNotFoundError, JobTooBigError
from .names import check_queue_name
from .retry import Attempts

P = ParamSpec("P")
R = TypeVar("R")

logger = logging.getLogger("flask_backend.broker")

# greenstalk's default, in the middle of what the protocol calls urgent (below 1024) and its end (2**32 - 1).
PRIORITY = greenstalk.DEFAULT_PRIORITY
# Unread replies fill the buffers of both sides: this many puts at most are on the way in a pipeline, ...
PIPELINE_JOBS = 500
# ... and this many bytes are collected before they are sent, which bounds our own memory.
PIPELINE_BYTES = 1 << 20

# The server read something else than we meant to say: what follows on the stream cannot be trusted.
_OUT_OF_STEP = (greenstalk.BadFormatError, greenstalk.UnknownCommandError, greenstalk.ExpectedCrlfError)
# greenstalk asserts what a peer sent and indexes what may be empty: all these mean a broken stream.
_BROKEN = (OSError, AssertionError, ValueError, greenstalk.Error)

_REFUSALS: dict[type[greenstalk.Error], str] = {
    greenstalk.DrainingError: "the server is in drain mode and takes no new jobs",
    greenstalk.OutOfMemoryError: "the server is out of memory, or out of room for its binlog",
    greenstalk.InternalError: "the server reports an internal error",
    greenstalk.DeadlineSoonError: "the server reports a reserved job that nobody touches",
}
_REFUSED: tuple[type[greenstalk.Error], ...] = tuple(_REFUSALS)


@dataclass(frozen=True, slots=True)
class ReservedJob:
    """A job that this connection holds."""

    id: int
    body: bytes


@dataclass(frozen=True, slots=True)
class JobCounters:
    """What the server knows of a job: its priority, its time to run in seconds, and how its attempts ended."""

    priority: int
    ttr_s: int
    attempts: Attempts

    @classmethod
    def from_stats(cls, stats: greenstalk.StatsJob) -> JobCounters:
        return cls(stats["pri"], stats["ttr"], Attempts(releases=stats["releases"], buries=stats["buries"]))


@dataclass(frozen=True, slots=True)
class HeldJob:
    """A job that was found to be held by a connection."""

    id: int
    counters: JobCounters


class Connection:
    """One connection to the server: opened at once, used by one thread at a time, closed for good on any doubt."""

    def __init__(self, settings: Settings, *, watch: str | None = None, sock: socket.socket | None = None) -> None:
        """Connect, unless there is a socket already, and watch one queue and no other.

        Raises :exc:`BrokerConnectionError` after ``settings.timeout_s`` seconds at most for each address that the
        host's name has.
        """
        self.address = settings.address
        self._timeout_s = settings.timeout_s
        self._used = greenstalk.DEFAULT_TUBE
        self._pid = os.getpid()
        self._received = bytearray()
        self._socket = sock or _open_socket(settings.address, settings.timeout_s)
        _open_connections.add(self)
        self._client = self._call(greenstalk.Client, self._socket, encoding=None)
        if watch is not None:
            self._call(self._client.watch, check_queue_name(watch))
            self._call(self._client.ignore, greenstalk.DEFAULT_TUBE)

    @classmethod
    def adopt(cls, fd: int, settings: Settings) -> Connection:
        """Go on with the connection of a process that is dead. Call :meth:`find_held` first."""
        sock = socket.socket(fileno=fd)
        sock.settimeout(settings.timeout_s)
        return cls(settings, sock=sock)

    def __del__(self) -> None:
        if hasattr(self, "_socket"):  # a thread has ended, and its connection with it
            self.close()

    def fileno(self) -> int:
        """Return the socket's descriptor, to wait for a reply; -1 once closed."""
        return self._socket.fileno()

    @property
    def is_usable(self) -> bool:
        """Whether a command may be sent: open, ours, and in step (nothing to read between commands, not even EOF)."""
        if self.fileno() < 0:
            return False
        if self._pid != os.getpid():  # forked by C code that runs no Python hooks, as uWSGI does
            self.abandon()
            return False
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        return not poll.poll(0)

    def close(self) -> None:
        """Close; the server gives back every job that this connection holds. More than once is harmless."""
        with suppress(OSError):  # it is closed, or the server has closed it
            self._socket.shutdown(socket.SHUT_RDWR)  # for the duplicate, too, that a supervisor may have
        self._socket.close()
        if hasattr(self, "_client"):
            self._client.close()

    def abandon(self) -> None:
        """Close this process's copy of a descriptor that another process goes on using."""
        if self.fileno() >= 0:
            os.close(self._socket.detach())

    # -- for producers ---------------------------------------------------------------------------------------

    def put(self, queue: str, body: bytes, ttr_s: int) -> int:
        """Put one job and return its id.

        Raises :exc:`JobTooBigError`, another :exc:`BrokerError` if the server refuses, or
        :exc:`BrokerConnectionError`; after the last it is open whether the server has the job.
        """
        self._use(queue)
        try:
            return self._call(self._client.put, body, PRIORITY, 0, ttr_s)
        except greenstalk.BuriedError as error:
            return self._stored_buried(queue, error.id)
        except greenstalk.JobTooBigError as error:
            raise self._too_big(body) from error

    def put_many(self, queue: str, bodies: list[bytes], ttr_s: int) -> list[int | BrokerError]:
        """Put jobs in one go; return for each its id, or why the server refused it.

        At most ``PIPELINE_JOBS``, or both sides may wait for the other to read.
        """
        self._use(queue)
        pipeline = b"".join(b"put %d 0 %d %d\r\n%b\r\n" % (PRIORITY, ttr_s, len(body), body) for body in bodies)
        replies = self._call(self._exchange, pipeline, len(bodies))
        return [self._put_result(queue, body, reply) for body, reply in zip(bodies, replies, strict=True)]

    # -- for workers -----------------------------------------------------------------------------------------

    def send_reserve(self, wait_s: int) -> None:
        """Ask for a job. Wait for :meth:`fileno` to be readable, then call :meth:`read_reserved`, and nothing between.

        ``wait_s`` is finite, so that a waiter whose host vanished cannot swallow jobs for long.
        """
        self._call(self._socket.sendall, b"reserve-with-timeout %d\r\n" % wait_s)

    def read_reserved(self) -> ReservedJob | None:
        """Read the answer to :meth:`send_reserve`: a job, or None if there was none in time."""
        return self._call(self._read_reserved)

    def delete(self, job_id: int) -> None:
        self._call(self._client.delete, job_id)

    def release(self, job_id: int, priority: int, delay_s: int) -> None:
        try:
            self._call(self._client.release, greenstalk.Job(job_id, b""), priority, delay_s)
        except greenstalk.BuriedError:
            logger.warning("the server had no memory to release job %d and buried it", job_id)

    def bury(self, job_id: int, priority: int) -> None:
        self._call(self._client.bury, greenstalk.Job(job_id, b""), priority)

    def touch(self, job_id: int) -> None:
        """Have the job's time to run start again."""
        self._call(self._client.touch, greenstalk.Job(job_id, b""))

    def counters(self, job_id: int) -> JobCounters:
        return JobCounters.from_stats(self._call(self._client.stats_job, job_id))

    def peek(self, job_id: int) -> bytes:
        return self._call(self._client.peek, job_id).body

    # -- for the heirs of a worker ---------------------------------------------------------------------------

    def find_held(self, job_id: int) -> HeldJob | None:
        """Find the job that the connection's dead owner held; None if it is gone, or no longer held.

        Replies to what the owner said last may come first: a touch, a delete. They are told from our own, which is
        the only one with the job's statistics; anything else raises :exc:`BrokerConnectionError`.
        """
        return self._call(self._find_held, job_id)

    def _find_held(self, job_id: int) -> HeldJob | None:
        # The second command is there to be recognized: its reply is the last, whatever the first one's may be.
        self._socket.sendall(b"stats-job %d\r\nlist-tube-used\r\n" % job_id)
        found: HeldJob | None = None
        while not (line := self._read_line()).startswith(b"USING "):
            status, _, rest = line.partition(b" ")
            if status == b"OK":
                stats = _parse_stats(self._read_exactly(int(rest) + 2))
                if stats.get("id") == job_id and stats.get("state") == "reserved":
                    found = HeldJob(job_id, JobCounters.from_stats(stats))
            elif line not in _STALE:
                raise greenstalk.UnknownResponseError(status, [rest])
        return found

    # -- inner workings --------------------------------------------------------------------------------------

    def _call(self, command: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Run one command to its reply; close the connection unless the reply is a plain one."""
        if self.fileno() < 0:
            raise BrokerConnectionError(f"the connection to Beanstalkd at {self.address} is closed")
        try:
            return command(*args, **kwargs)
        except (greenstalk.BuriedError, greenstalk.JobTooBigError):
            raise
        except greenstalk.NotFoundError as error:
            raise JobNotFoundError("the job is gone, or no longer held by this connection") from error
        except _REFUSED as error:
            raise BrokerError(f"Beanstalkd at {self.address} refuses: {_REFUSALS[type(error)]}") from error
        except _BROKEN as error:
            self.close()
            raise BrokerConnectionError(
                f"lost the connection to Beanstalkd at {self.address}: {_reason(error, self._timeout_s)}"
            ) from error
        except BaseException:
            self.close()  # interrupted in the middle: the reply may come when another command waits for its own
            raise

    def _use(self, queue: str) -> None:
        if queue != self._used:
            self._call(self._client.use, check_queue_name(queue))
            self._used = queue

    def _exchange(self, commands: bytes, replies: int) -> list[bytes]:
        self._socket.sendall(commands)
        return [self._read_line() for _ in range(replies)]

    def _put_result(self, queue: str, body: bytes, reply: bytes) -> int | BrokerError:
        status, _, rest = reply.partition(b" ")
        if status == b"INSERTED":
            return int(rest)
        if status == b"BURIED":
            return self._stored_buried(queue, int(rest))
        if status == b"JOB_TOO_BIG":
            return self._too_big(body)
        error = greenstalk.ERROR_RESPONSES.get(status)
        if error in _REFUSALS:
            return BrokerError(f"Beanstalkd at {self.address} refuses: {_REFUSALS[error]}")
        self.close()
        raise BrokerConnectionError(f"Beanstalkd at {self.address} answered a put with {reply!r}")

    def _read_reserved(self) -> ReservedJob | None:
        status, *values = self._read_line().split()
        if status == b"TIMED_OUT":
            return None
        if status != b"RESERVED":
            # DEADLINE_SOON too: it means that this connection holds a job that it has forgotten.
            raise greenstalk.UnknownResponseError(status, values)
        job_id, size = map(int, values)
        # Its last two bytes should be a line break, but a server that was killed may have a job in its binlog of which
        # the end was not written: an error here would have each worker fail on it in turn, for ever. Whoever decodes
        # the body will say what it is.
        body = self._read_exactly(size + 2)
        if self._received:
            raise ConnectionError("more was sent than one job")
        return ReservedJob(job_id, body[:-2])

    def _read_line(self) -> bytes:
        while (end := self._received.find(b"\r\n")) < 0:
            self._receive()
        line = bytes(self._received[:end])
        del self._received[: end + 2]
        return line

    def _read_exactly(self, size: int) -> bytes:
        while len(self._received) < size:
            self._receive()
        data = bytes(self._received[:size])
        del self._received[:size]
        return data

    def _receive(self) -> None:
        data = self._socket.recv(1 << 16)
        if not data:
            raise ConnectionError("the server closed the connection")
        self._received += data

    def _stored_buried(self, queue: str, job_id: int | None) -> int:
        logger.error("job %s of %s is stored but buried, since the server is short of memory: kick it", job_id, queue)
        return job_id or 0

    def _too_big(self, body: bytes) -> JobTooBigError:
        limit = self._call(self._client.stats)["max-job-size"]
        return JobTooBigError(
            f"the job has {len(body)} bytes, but Beanstalkd at {self.address} takes at most {limit} "
            "(its option -z); pass a reference to the data, for example a row's id or a file's name"
        )


# What a dead worker may have left unread: replies to its last command.
_STALE = {b"DELETED", b"RELEASED", b"BURIED", b"TOUCHED", b"NOT_FOUND", b"TIMED_OUT"}


def _parse_stats(data: bytes) -> greenstalk.StatsJob:
    """Read the statistics of a job: YAML of one level, numbers but for two names."""
    pairs = (line.split(": ", 1) for line in data.decode("ascii").splitlines() if ": " in line)
    return cast(
        "greenstalk.StatsJob", {key: int(value) if value.isdecimal() else value.strip('"') for key, value in pairs}
    )


class Producer:
    """Puts jobs, from any thread and after any fork: each thread has its own connection, opened when needed."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._local = threading.local()

    def put(self, queue: str, body: bytes) -> int:
        """Put one job, see :meth:`Connection.put`.

        A connection that broke since the last put is replaced first. One that breaks in the middle is an error for
        the caller to see: the server may have the job, and a second put could run it twice.
        """
        return self._connection().put(check_queue_name(queue), body, self.settings.ttr_s)

    def put_many(self, queue: str, bodies: Iterable[bytes]) -> Iterator[int]:
        """Put jobs and yield their ids, in order and in large steps."""
        check_queue_name(queue)
        remaining = iter(bodies)
        accepted = 0
        while True:
            chunk: list[bytes] = []
            try:
                _fill(chunk, remaining)
                results = self._connection().put_many(queue, chunk, self.settings.ttr_s) if chunk else []
            except BackendError as error:
                error.add_note(
                    f"{accepted} items were accepted before; of the {len(chunk)} items from index {accepted} on "
                    "it is open"
                    if isinstance(error, BrokerConnectionError)
                    else f"{accepted} items were accepted; index {accepted + len(chunk)} is at fault"
                )
                raise
            if not results:
                return
            for result in results:
                if isinstance(result, BrokerError):
                    refused = [i for i, r in enumerate(results, start=accepted) if isinstance(r, BrokerError)]
                    result.add_note(f"refused: index {refused}; accepted: the others before {accepted + len(results)}")
                    raise result
                yield result
            accepted += len(results)

    def _connection(self) -> Connection:
        connection: Connection | None = getattr(self._local, "connection", None)
        if connection is None or not connection.is_usable:
            if connection is not None:
                connection.close()
            connection = self._local.connection = Connection(self.settings)
        return connection


def _fill(chunk: list[bytes], bodies: Iterator[bytes]) -> None:
    size = 0
    for body in islice(bodies, PIPELINE_JOBS):
        chunk.append(body)
        size += len(body)
        if size >= PIPELINE_BYTES:
            return


def _open_socket(address: Address, timeout_s: float) -> socket.socket:
    try:
        sock = socket.create_connection((address.host, address.port), timeout_s)
    except OSError as error:
        raise BrokerConnectionError(
            f"cannot connect to Beanstalkd at {address}: {_reason(error, timeout_s)}; "
            "check that it runs, and BACKEND_CONNECTION_URI"
        ) from error
    # Commands are small and each waits for its reply: Nagle's algorithm would add 40 ms to some.
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    # For a peer that vanished: the system's own default is two hours.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (("TCP_KEEPIDLE", 15), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, option):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
    return sock


def _reason(error: BaseException, timeout_s: float) -> str:
    if isinstance(error, TimeoutError):
        return f"no answer within {timeout_s:g} s"
    if isinstance(error, OSError):
        return error.strerror or str(error)
    return f"unexpected reply ({type(error).__name__})"


# The one state of this module: what a newborn child process must close.
_open_connections: weakref.WeakSet[Connection] = weakref.WeakSet()


def _abandon_inherited() -> None:
    for connection in list(_open_connections):
        connection.abandon()
    _open_connections.clear()


os.register_at_fork(after_in_child=_abandon_inherited)
