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
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import ParamSpec, TypeVar

import greenstalk

from .config import Address, Settings
from .errors import BrokerConnectionError, BrokerError, JobNotFoundError, JobTooBigError
from .names import check_queue_name
from .options import PutOptions
from .retry import Attempts

P = ParamSpec("P")
R = TypeVar("R")

logger = logging.getLogger("flask_backend.broker")

# Unread replies fill the buffers of both sides: this many commands at most are on the way in a pipeline.
PIPELINE_JOBS = 500

# The server read something else than we meant to say: what follows on the stream cannot be trusted.
_OUT_OF_STEP = {"BAD_FORMAT", "UNKNOWN_COMMAND", "EXPECTED_CRLF"}
_WITH_DATA = {"OK", "FOUND", "RESERVED"}
# greenstalk asserts what a peer sent and indexes what may be empty: all these mean a broken stream.
_GONE = "the job is gone, or no longer held by this connection"
_BROKEN = (OSError, AssertionError, ValueError, greenstalk.Error)

_REFUSALS: dict[type[greenstalk.Error], str] = {
    greenstalk.DrainingError: "the server is in drain mode and takes no new jobs",
    greenstalk.OutOfMemoryError: "the server is out of memory, or out of room for its binlog",
    greenstalk.InternalError: "the server reports an internal error",
    greenstalk.DeadlineSoonError: "the server reports a reserved job that nobody touches",
}
_REFUSED: tuple[type[greenstalk.Error], ...] = tuple(_REFUSALS)


# A tube without jobs, since the protocol has every connection watch one.
NOWHERE = "flask-backend.nowhere"

Stats = dict[str, int | str]


@dataclass(frozen=True, slots=True)
class Reply:
    """What the server answered to one command: a status word, further words, and the data that some replies carry."""

    status: str
    words: tuple[str, ...] = ()
    data: bytes = b""

    @property
    def stats(self) -> Stats:
        """The data of a reply to a ``stats`` command: YAML of one level, numbers, and some names."""
        pairs = (line.split(": ", 1) for line in self.data.decode("ascii").splitlines() if ": " in line)
        # A tube may be named as a number.
        return {
            key: int(value) if value.isdecimal() and key not in ("tube", "name") else value.strip('"')
            for key, value in pairs
        }


@dataclass(frozen=True, slots=True)
class ReservedJob:
    """A job that this connection holds."""

    id: int
    body: bytes


@dataclass(frozen=True, slots=True)
class JobCounters:
    """What the server knows of a job: its priority, time to run and age in seconds, and how its attempts ended."""

    priority: int
    ttr_s: int
    age_s: int
    attempts: Attempts

    @classmethod
    def from_stats(cls, stats: Stats) -> JobCounters:
        number = {key: int(stats[key]) for key in ("pri", "ttr", "age", "releases", "buries")}
        attempts = Attempts(releases=number["releases"], buries=number["buries"])
        return cls(number["pri"], number["ttr"], number["age"], attempts)


@dataclass(frozen=True, slots=True)
class HeldJob:
    """A job that was found to be held by a connection."""

    id: int
    counters: JobCounters


class Connection:
    """One connection to the server: opened at once, used by one thread at a time, closed for good on any doubt."""

    def __init__(self, settings: Settings, *, watch: str | None = None, sock: socket.socket | None = None) -> None:
        """Connect, unless there is a socket already, and watch one queue and no other; without ``watch``, none.

        Raises :exc:`BrokerConnectionError` after ``settings.timeout_s`` seconds at most for each address that the
        host's name has.
        """
        self.address = settings.address
        self._timeout_s = settings.timeout_s
        self._used = greenstalk.DEFAULT_TUBE
        self._pid = os.getpid()
        self._received = bytearray()
        self._max_job_size: int | None = None
        self._unread = 0  # replies that came too late for who asked, to be thrown away
        self._socket = sock or _open_socket(settings.address, settings.timeout_s)
        _open_connections.add(self)
        self._client = self._call(greenstalk.Client, self._socket, encoding=None)
        if sock is None:
            self._watch_only(check_queue_name(watch) if watch is not None else NOWHERE)

    @classmethod
    def adopt(cls, fd: int, settings: Settings) -> Connection:
        """Go on with the connection of a process that is dead. Call :meth:`find_held` first."""
        sock = socket.socket(fileno=fd)
        sock.settimeout(settings.timeout_s)
        connection = cls(settings, sock=sock)
        connection._used = ""  # whatever its owner has used last
        return connection

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
        return not self._is_readable(0)

    def _is_readable(self, wait_s: float) -> bool:
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        return bool(poll.poll(wait_s * 1000))

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

    def put(self, queue: str, body: bytes, options: PutOptions) -> int:
        """Put one job and return its id.

        Raises :exc:`JobTooBigError`, another :exc:`BrokerError` if the server refuses, or
        :exc:`BrokerConnectionError`; after the last it is open whether the server has the job.
        """
        self._use(queue)
        try:
            return self._call(self._client.put, body, options.priority, options.delay_s, options.ttr_s)
        except greenstalk.BuriedError as error:
            return self._stored_buried(queue, error.id)
        except greenstalk.JobTooBigError as error:
            raise self._too_big(body) from error

    def put_many(self, queue: str, bodies: list[bytes], options: PutOptions, results: list[int | BrokerError]) -> None:
        """Put jobs in one go; add for each its id to ``results``, or why the server refused it.

        At most ``PIPELINE_JOBS``, or both sides may wait for the other to read. If the connection breaks there are
        fewer results: of the other jobs it is open.
        """
        self._use(queue)
        head = b"put %d %d %d" % (options.priority, options.delay_s, options.ttr_s)
        pipeline = b"".join(b"%b %d\r\n%b\r\n" % (head, len(body), body) for body in bodies)
        replies: list[bytes] = []
        try:
            self._call(self._exchange, pipeline, len(bodies), replies)
        finally:
            for body, reply in zip(bodies, replies, strict=False):
                results.append(self._put_result(queue, body, reply))

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
        [reply] = self.ask([b"stats-job %d\r\n" % job_id])
        if reply.status != "OK":
            raise JobNotFoundError(_GONE)
        return JobCounters.from_stats(reply.stats)

    def counters_within(self, job_id: int, wait_s: float) -> JobCounters | None:
        """Return the counters, or None if the server does not answer in time; the connection stays usable."""
        if self._unread and not self._is_readable(0):
            return None  # silent as before
        return self._call(self._counters_within, job_id, wait_s)

    def _counters_within(self, job_id: int, wait_s: float) -> JobCounters | None:
        self._socket.sendall(b"stats-job %d\r\n" % job_id)
        if not self._is_readable(wait_s):
            self._unread += 1
            return None
        reply = self._read_reply()
        return JobCounters.from_stats(reply.stats) if reply.status == "OK" else None

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
        # The second command is there to be recognized: no worker sends it, and its reply is the last, whatever comes.
        self._socket.sendall(b"stats-job %d\r\nlist-tubes-watched\r\n" % job_id)
        found: HeldJob | None = None
        while not (reply := self._read_reply()).data.startswith(b"---\n- "):
            found = None  # the last one counts: those before answer what the owner has asked
            if reply.status == "OK":
                stats = reply.stats
                if stats.get("id") == job_id and stats.get("state") == "reserved":
                    found = HeldJob(job_id, JobCounters.from_stats(stats))
            elif reply.status not in _STALE:
                raise greenstalk.UnknownResponseError(reply.status.encode(), [])
        return found

    # -- for those who look at what is there -----------------------------------------------------------------

    def ask(self, commands: Sequence[bytes]) -> list[Reply]:
        """Send commands, line breaks included, many at a time; return the reply to each.

        For every command but ``reserve`` without a timeout. A refusal is a reply as any; raises
        :exc:`BrokerConnectionError` when a reply shows that the server has read something else than was meant.
        """
        return self._call(self._ask, commands)

    def _ask(self, commands: Sequence[bytes]) -> list[Reply]:
        replies: list[Reply] = []
        for start in range(0, len(commands), PIPELINE_JOBS):
            batch = commands[start : start + PIPELINE_JOBS]
            self._socket.sendall(b"".join(batch))
            replies += [self._read_reply() for _ in batch]
        return replies

    def _read_reply(self) -> Reply:
        status, *words = self._read_line().decode("ascii").split()
        if status in _OUT_OF_STEP:
            raise greenstalk.UnknownResponseError(status.encode(), [])
        data = self._read_exactly(int(words[-1]) + 2)[:-2] if status in _WITH_DATA else b""
        return Reply(status, tuple(words), data)

    # -- inner workings --------------------------------------------------------------------------------------

    def _call(self, command: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Run one command to its reply; close the connection unless the reply is a plain one."""
        if self.fileno() < 0:
            raise BrokerConnectionError(f"the connection to Beanstalkd at {self.address} is closed")
        try:
            while self._unread:
                self._read_reply()
                self._unread -= 1
            return command(*args, **kwargs)
        except (greenstalk.BuriedError, greenstalk.JobTooBigError):
            raise
        except greenstalk.NotFoundError as error:
            raise JobNotFoundError(_GONE) from error
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

    def _watch_only(self, tube: str) -> None:
        # Every connection begins by watching `default`, and would count there as a worker.
        if tube != greenstalk.DEFAULT_TUBE:
            self.ask([b"watch %b\r\n" % tube.encode(), b"ignore default\r\n"])

    def _use(self, queue: str) -> None:
        if queue != self._used:
            self._call(self._client.use, check_queue_name(queue))
            self._used = queue

    def _exchange(self, commands: bytes, count: int, replies: list[bytes]) -> None:
        self._socket.sendall(commands)
        for _ in range(count):
            replies.append(self._read_line())  # noqa: PERF401  # one by one: those before an error count

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
        if self._max_job_size is None:
            self._max_job_size = self._call(self._client.stats)["max-job-size"]
        limit = self._max_job_size
        return JobTooBigError(
            f"the job has {len(body)} bytes, but Beanstalkd at {self.address} takes at most {limit} "
            "(its option -z); pass a reference to the data, for example a row's id or a file's name"
        )


# What a dead worker may have left unread: replies to its last command.
_STALE = {"DELETED", "RELEASED", "BURIED", "TOUCHED", "NOT_FOUND", "TIMED_OUT", "USING", "INSERTED"}


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
