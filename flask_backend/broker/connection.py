"""Connections to Beanstalkd: its commands, and its errors in our words. The only module that knows greenstalk.

Two rules keep a reply from ever being read for the wrong command. Whatever interrupts a command, be it an error
of the network or an exception of a signal handler, closes the connection: only a plain reply leaves it usable.
And a connection belongs to one process: a fork closes the child's copy at once, since a forgotten copy would keep
a dead worker's job reserved.
"""

from __future__ import annotations

import os
import select
import socket
import time
import weakref
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, NoReturn, ParamSpec, TypeVar

import greenstalk

from flask_backend.config import Address
from flask_backend.errors import BrokerConnectionError, BrokerError, JobNotFoundError, JobTooBigError
from flask_backend.names import check_queue_name
from flask_backend.options import DEFAULT_PRIORITY, PutOptions
from flask_backend.system.loggers import get_logger

from .stats import JobCounters, JobRecord, Queue
from .wire import (
    OutOfStepError,
    Puts,
    Replies,
    Reply,
    ReplyReceiver,
    ReservedJob,
    Stats,
    Wire,
    is_reply,
    show_stranger,
)

P = ParamSpec("P")
R = TypeVar("R")

logger = get_logger("flask_backend.broker")

# Unread replies fill the buffers of both sides: this many commands at most are on the way in a pipeline.
PIPELINE_JOBS = 500

_JOB_GONE = "the job is gone, or no longer held by this connection"

# What poll(2) reports of a socket whose other end is closed; the first one, which comes at once, only on Linux.
_HANG_UP = getattr(select, "POLLRDHUP", 0) | select.POLLHUP | select.POLLERR

_REFUSALS: dict[type[greenstalk.Error], str] = {
    greenstalk.DrainingError: "the server is in drain mode and takes no new jobs",
    greenstalk.OutOfMemoryError: "the server is out of memory, or out of room for its binlog",
    greenstalk.InternalError: "the server reports an internal error",
    greenstalk.DeadlineSoonError: "the server reports a reserved job that nobody touches",
}

# So much of a server's first answer is looked at, to see whether it is Beanstalkd.
_LOOKED_AT_BYTES = 100

# A tube without jobs, since the protocol has every connection watch one.
IDLE_TUBE = "flask-backend.nowhere"

_USE_DEFAULT = b"use default\r\n"


@dataclass(frozen=True, slots=True)
class ReservedState:
    """A job that was found to be held by a connection."""

    id: int
    counters: JobCounters


@dataclass(slots=True)
class PendingPuts:
    """Jobs that were sent, and what the server has answered so far: to the puts, and to a ``use`` before them."""

    connection: Connection
    queue: str
    bodies: list[bytes]
    puts: Puts = field(default_factory=Puts)
    use: Replies = field(default_factory=Replies)

    def receive(self, results: list[int | BrokerError]) -> None:
        """Wait for the answers, see :meth:`Connection.receive_results`."""
        self.connection.receive_results(self, results)


class Connection:
    """One connection to the server: opened at once, used by one thread at a time, closed for good on any doubt."""

    def __init__(
        self, address: Address, timeout_s: float, *, watch: str | None = None, sock: _Socket | None = None
    ) -> None:
        """Connect, unless there is a socket already, and watch one queue and no other; without ``watch``, none.

        Raises :exc:`BrokerConnectionError` after ``timeout_s`` seconds at most for each address that the host's name
        has.
        """
        self.address = address
        self._timeout_s = timeout_s
        self._used: str | None = greenstalk.DEFAULT_TUBE
        self._pid = os.getpid()
        self._max_job_size: int | None = None
        self._socket = sock or _open_socket(address, timeout_s)
        self.wire = self._socket.wire
        self._timed_out_last_time = False  # when it had so much time as a log line may wait
        _open_connections.add(self)
        self._client = self._call(greenstalk.Client, self._socket, encoding=None)
        if sock is None:
            self.guard(self._watch_only, check_queue_name(watch) if watch is not None else IDLE_TUBE)

    @classmethod
    def adopt(cls, fd: int, address: Address, timeout_s: float) -> Connection:
        """Go on with the connection of a process that is dead. Call :meth:`recover_reserved` first."""
        sock = _Socket(fd, timeout_s)
        connection = cls(address, timeout_s, sock=sock)
        connection._used = None  # whatever its owner has used last
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
        return self.is_awaiting or not self.wire.is_readable(0)

    def close(self) -> None:
        """Close; the server gives back every job that this connection holds. More than once is harmless."""
        with suppress(OSError):  # it is closed, or the server has closed it
            self._socket.shutdown(socket.SHUT_RDWR)  # for the duplicate, too, that a supervisor may have
        self.wire.close()
        self._socket.close()

    def abandon(self) -> None:
        """Close this process's copy of a descriptor that another process goes on using."""
        if self.fileno() >= 0:
            self.wire.close()
            os.close(self._socket.detach())

    # -- for producers ---------------------------------------------------------------------------------------

    def put(self, queue: str, body: bytes, options: PutOptions) -> int:
        """Put one job and return its id.

        Raises :exc:`JobTooBigError`, another :exc:`BrokerError` if the server refuses, or
        :exc:`BrokerConnectionError`; after the last it is open whether the server has the job.
        """
        results: list[int | BrokerError] = []
        self.receive_results(self.send_puts(queue, [body], options), results)
        if isinstance(results[0], BrokerError):
            raise results[0]
        return results[0]

    def send_puts(self, queue: str, bodies: list[bytes], options: PutOptions) -> PendingPuts:
        """Send jobs in one go, with the ``use`` of their tube if need be. Then call :meth:`receive_results`.

        At most ``PIPELINE_JOBS``, or both sides may wait for the other to read.
        """
        self.receive_all()
        pending = PendingPuts(self, queue, bodies)
        head = b"put %d %d %d" % (options.priority, options.delay_s, options.ttr_s)
        commands = [b"%b %d\r\n%b\r\n" % (head, len(body), body) for body in bodies]
        takers: list[ReplyReceiver] = [pending.puts] * len(bodies)
        if queue != self._used:
            commands.insert(0, b"use %b\r\n" % check_queue_name(queue).encode())
            takers.insert(0, pending.use)
        self._used = queue
        self.guard(self.wire.send, b"".join(commands), *takers)
        return pending

    def receive_results(self, pending: PendingPuts, results: list[int | BrokerError]) -> None:
        """Wait for the answers to puts; add for each its job's id to ``results``, or why the server refused it.

        If the connection breaks there are fewer results: of the other jobs it is open.
        """
        answers = pending.puts.answers
        try:
            self.receive_all()
        finally:
            if pending.use and pending.use[0].status != "USING":
                # Refused for want of memory: what was put all the same is in another queue.
                self._used = None
                self.ask([b"delete %d\r\n" % answer for answer in answers if isinstance(answer, int)])
                answers = [pending.use[0]] * len(answers)
            for body, answer in zip(pending.bodies, answers, strict=False):
                results.append(answer if isinstance(answer, int) else self._refusal(pending.queue, body, answer))

    def _refusal(self, queue: str, body: bytes, reply: Reply) -> int | BrokerError:
        match reply.status:
            case "BURIED":
                job_id = int(reply.words[0])
                logger.error(
                    "job %d of %s is stored but buried, since the server is short of memory: kick it", job_id, queue
                )
                return job_id
            case "JOB_TOO_BIG":
                return self._too_big(body)
            case status if (error := greenstalk.ERROR_RESPONSES.get(status.encode())) in _REFUSALS:
                return BrokerError(f"Beanstalkd at {self.address} refuses: {_REFUSALS[error]}")
            case status:
                self.close()
                raise BrokerConnectionError(f"Beanstalkd at {self.address} answered a put with {status}")

    # -- for whoever holds a job, or waits for one -----------------------------------------------------------

    @property
    def is_awaiting(self) -> bool:
        """Whether replies are on their way."""
        return self.wire.is_awaiting

    @property
    def is_cut(self) -> bool:
        """Whether the other end has closed the connection. Safe to ask while another thread uses it."""
        if (fd := self.fileno()) < 0:
            return True
        poll = select.poll()
        poll.register(fd, _HANG_UP)
        return bool(poll.poll(0))

    def prefetch_stats(self, job_id: int) -> Replies:
        """Ask for the statistics of a job, for :meth:`counters_within` to have them soon."""
        replies = Replies()
        self.guard(self.wire.send, b"stats-job %d\r\n" % job_id, replies)
        return replies

    def receive(self) -> None:
        """Take in the replies that have come. Call it when :meth:`fileno` is readable."""
        try:
            self.wire.receive()
        except BaseException as error:
            self.fail(error)

    def receive_all(self) -> None:
        """Wait for all replies that are on their way."""
        self.guard(self.wire.receive_all)

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
            raise JobNotFoundError(_JOB_GONE)
        return JobCounters.from_stats(reply.stats)

    def counters_within(self, job_id: int, wait_s: float, asked: Replies | None = None) -> JobCounters | None:
        """Return the counters, or None if the server does not answer in time; the connection stays usable.

        ``asked`` is what :meth:`prefetch_stats` has returned for the job.
        """
        deadline = time.monotonic() + wait_s
        if self._timed_out_last_time and not self.wire.is_readable(0):
            return None  # as before
        if asked is None:
            asked = self.prefetch_stats(job_id)
        while not asked:
            self._timed_out_last_time = not self.wire.is_readable(max(0.0, deadline - time.monotonic()))
            if self._timed_out_last_time:
                return None
            self.receive()
        return JobCounters.from_stats(asked[0].stats) if asked[0].status == "OK" else None

    def reserve_again(self, job: ReservedJob) -> bool:
        """Reserve the very job that a connection which broke has held; return False if it is gone or taken."""
        [found] = self.ask([b"peek %d\r\n" % job.id])
        if found.status != "FOUND" or found.data != job.body:
            return False  # ids may start again at 1 when the server does: another job has this one
        [reply] = self.ask([b"reserve-job %d\r\n" % job.id])
        return reply.status == "RESERVED"

    def has_old_jobs(self, queue: str, within_s: float) -> bool:
        """Whether the server started within the last ``within_s`` seconds and already has jobs for this queue."""
        found = self.stats_tube([queue])
        return int(self.stats()["uptime"]) <= within_s and bool(found) and found[0].ready > 0

    # -- for the heirs of a worker ---------------------------------------------------------------------------

    def recover_reserved(self, job_id: int) -> ReservedState | None:
        """Find the job that the connection's dead owner held; None if it is gone, or no longer held.

        Replies to what the owner said last may come first: a touch, a delete. They are told from our own, which is
        the only one with the job's statistics; anything else raises :exc:`BrokerConnectionError`.
        """
        return self._call(self._recover_reserved, job_id)

    def _recover_reserved(self, job_id: int) -> ReservedState | None:
        # The second command is there to be recognized: no worker sends it, and its reply is the last, whatever comes.
        self._socket.sendall(b"stats-job %d\r\nlist-tubes-watched\r\n" % job_id)
        found: ReservedState | None = None
        while not (reply := self.wire.read()).data.startswith(b"---\n- "):
            found = None  # the last one counts: those before answer what the owner has asked
            if reply.status == "OK":
                stats = reply.stats
                if stats.get("id") == job_id and stats.get("state") == "reserved":
                    found = ReservedState(job_id, JobCounters.from_stats(stats))
            elif reply.status not in _STALE_REPLIES:
                raise OutOfStepError(f"it answered {reply.status}")
        return found

    # -- for commands that look at queues and jobs -----------------------------------------------------------

    def stats(self) -> Stats:
        """Return the server's own statistics."""
        [reply] = self.ask([b"stats\r\n"])
        return reply.stats

    def list_tubes(self) -> list[str]:
        """Return the names of all tubes that exist, but for the one that idle connections of ours watch."""
        [reply] = self.ask([b"list-tubes\r\n"])
        lines = reply.data.decode("ascii").splitlines()
        names = (line[2:].strip('"') for line in lines if line.startswith("- "))
        return [name for name in names if name != IDLE_TUBE]

    def stats_tube(self, names: Iterable[str]) -> list[Queue]:
        """Return those of these queues that exist."""
        replies = self.ask([b"stats-tube %b\r\n" % check_queue_name(name).encode() for name in names])
        return [Queue.from_stats(reply.stats) for reply in replies if reply.status == "OK"]

    def stats_job(self, ids: Iterable[int]) -> list[JobRecord]:
        """Return those of these jobs that exist."""
        return [JobRecord.from_stats(reply.stats) for reply in self._stats_job(ids) if reply.status == "OK"]

    def find_jobs(self, ids: Iterable[int], queues: Collection[str], states: Collection[str]) -> list[JobRecord]:
        """Return those of these jobs that are in one of ``queues`` and in one of ``states``."""
        # Later servers quote names. Parsing takes most of the time where there are many jobs of others.
        tubes = {f"tube: {quote}{name}{quote}".encode() for name in queues for quote in ("", '"')}
        wanted = {f"state: {quote}{state}{quote}".encode() for state in states for quote in ("", '"')}

        def is_wanted(reply: Reply) -> bool:
            lines = reply.data.split(b"\n", 4)  # ---, id, tube, state, and the rest
            return len(lines) > 4 and lines[2] in tubes and lines[3] in wanted  # noqa: PLR2004

        return [JobRecord.from_stats(reply.stats) for reply in self._stats_job(ids) if is_wanted(reply)]

    def _stats_job(self, ids: Iterable[int]) -> list[Reply]:
        return self.ask([b"stats-job %d\r\n" % job_id for job_id in ids])

    def peek(self, ids: Iterable[int]) -> dict[int, bytes]:
        """Return the bodies of those of these jobs that exist."""
        replies = self.ask([b"peek %d\r\n" % job_id for job_id in ids])
        return {int(reply.words[0]): reply.data for reply in replies if reply.status == "FOUND"}

    def find(self, job_id: int) -> tuple[JobRecord, bytes] | None:
        """Return a job and its body; None if it does not exist."""
        stats, found = self.ask([b"stats-job %d\r\n" % job_id, b"peek %d\r\n" % job_id])
        if stats.status != "OK" or found.status != "FOUND":
            return None
        return JobRecord.from_stats(stats.stats), found.data

    def peek_ready(self, queues: Iterable[str]) -> dict[str, int]:
        """Return the id of the next ready job of each of these queues that has one."""
        return self._peek_first(b"peek-ready\r\n", queues)

    def peek_buried(self, queues: Iterable[str]) -> dict[str, int]:
        """Return the id of the job that has been buried for longest, of each of these queues that has one."""
        return self._peek_first(b"peek-buried\r\n", queues)

    def _peek_first(self, command: bytes, queues: Iterable[str]) -> dict[str, int]:
        names = list(queues)
        pairs = (each for name in names for each in (b"use %b\r\n" % check_queue_name(name).encode(), command))
        # A queue that is used does not go away: ours may be the last connection that keeps it.
        replies = self.ask([*pairs, _USE_DEFAULT])
        self._used = greenstalk.DEFAULT_TUBE
        found = zip(names, replies[1::2], strict=False)
        return {name: int(reply.words[0]) for name, reply in found if reply.status == "FOUND"}

    def kick_job(self, ids: Iterable[int]) -> list[int]:
        """Make buried or delayed jobs ready; return those that were."""
        return self._do_each(b"kick-job %d\r\n", ids, "KICKED")

    def delete_each(self, ids: Iterable[int]) -> list[int]:
        """Delete jobs that no other connection holds; return those that existed."""
        return self._do_each(b"delete %d\r\n", ids, "DELETED")

    def _do_each(self, command: bytes, ids: Iterable[int], done: str) -> list[int]:
        wanted = list(ids)
        replies = self.ask([command % job_id for job_id in wanted])
        return [job_id for job_id, reply in zip(wanted, replies, strict=True) if reply.status == done]

    def pause_tube(self, queue: str, seconds: int) -> bool:
        """Pause a queue, or end its pause with 0; return whether it exists."""
        [reply] = self.ask([b"pause-tube %b %d\r\n" % (check_queue_name(queue).encode(), seconds)])
        return reply.status == "PAUSED"

    def reserve_ready(self, count: int) -> list[ReservedJob]:
        """Reserve up to ``count`` jobs that are ready now."""
        replies = self.ask([b"reserve-with-timeout 0\r\n"] * count)
        return [ReservedJob(int(reply.words[0]), reply.data) for reply in replies if reply.status == "RESERVED"]

    def probe_last_id(self, tube: str) -> int:
        """Return the id of the newest job, found by putting a job into ``tube`` and deleting it.

        Where the server refuses puts it is the number of jobs since its start: with a binlog that starts again at a
        restart, and ids do not.
        """
        put = b"put %d 0 1 0\r\n\r\n" % DEFAULT_PRIORITY
        _, probe, _ = self.ask([b"use %b\r\n" % tube.encode(), put, _USE_DEFAULT])
        self._used = greenstalk.DEFAULT_TUBE
        if probe.status not in ("INSERTED", "BURIED"):
            return int(self.stats()["total-jobs"])
        probe_id = int(probe.words[0])
        self.delete_each([probe_id])
        return probe_id - 1

    def quit(self) -> None:
        """Have the server end the connection: when this returns, it has given back all jobs that were held."""
        with suppress(BrokerConnectionError):
            self.ask([b"quit\r\n"])
        self.close()

    def ask(self, commands: Sequence[bytes]) -> list[Reply]:
        """Send commands, line breaks included, many at a time; return the reply to each.

        For every command but ``reserve`` without a timeout. A refusal is a reply as any; raises
        :exc:`BrokerConnectionError` when a reply shows that the server has read something else than was meant.
        """
        replies = Replies()
        for start in range(0, len(commands), PIPELINE_JOBS):
            self._call(self._exchange, commands[start : start + PIPELINE_JOBS], replies)
        return replies

    # -- inner workings --------------------------------------------------------------------------------------

    def _call(self, command: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Run one command to its reply, after all that are awaited have come."""
        self.receive_all()
        result = self.guard(command, *args, **kwargs)
        self.guard(self.wire.check_in_step)
        return result

    def guard(self, action: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Do something on the connection; close it unless that ends well, or with a plain reply of the server.

        What is done for every job, in :class:`Pipeline` and :meth:`receive`, calls :meth:`fail` itself.
        """
        try:
            return action(*args, **kwargs)
        except BaseException as error:
            self.fail(error)

    def fail(self, error: BaseException) -> NoReturn:
        """Close the connection unless ``error`` is a plain reply of the server; raise it in our words."""
        match error:
            case greenstalk.BuriedError():
                raise error
            case greenstalk.NotFoundError():
                raise JobNotFoundError(_JOB_GONE) from error
            case greenstalk.Error() if type(error) in _REFUSALS:
                raise BrokerError(f"Beanstalkd at {self.address} refuses: {_REFUSALS[type(error)]}") from error
            case BrokerError():
                self.close()
                raise error
            case OSError() | AssertionError() | ValueError() | greenstalk.Error():
                # greenstalk asserts what a peer sent and indexes what may be empty: all these mean a broken stream.
                was_open = self.fileno() >= 0
                self.close()
                told = f"lost the connection to Beanstalkd at {self.address}: {_reason(error, self._timeout_s)}"
                closed = f"the connection to Beanstalkd at {self.address} is closed"
                raise BrokerConnectionError(told if was_open else closed) from error
            case _:
                # Interrupted in the middle: the reply may come when another command waits for its own. A duplicate that
                # a supervisor has stays open: if this ends the worker, its job is settled there.
                self.abandon()
                raise error

    def _watch_only(self, tube: str) -> None:
        """Begin the conversation, in a way to which only Beanstalkd has the right answers."""
        # Every connection begins by watching `default`, and would count there as a worker.
        commands = [b"watch %b\r\n" % tube.encode()]
        if tube != greenstalk.DEFAULT_TUBE:
            commands.append(b"ignore default\r\n")
        replies = Replies()
        try:
            self.wire.send(b"".join(commands), *[replies] * len(commands))
            begin = self._socket.recv(_LOOKED_AT_BYTES, socket.MSG_PEEK)
        except OSError as error:
            raise _cannot_connect(self.address, _reason(error, self._timeout_s)) from error
        if not begin:
            raise _cannot_connect(self.address, "the server closed the connection without an answer")
        if not is_reply(begin):
            raise BrokerConnectionError(
                f"the server at {self.address} is not Beanstalkd: it answers {show_stranger(begin)}; "
                "check BACKEND_CONNECTION_URI"
            )
        self.wire.receive_all()
        for reply in replies:
            if reply.status != "WATCHING":
                raise BrokerError(f"Beanstalkd at {self.address} refuses to watch {tube}: it answers {reply.status}")

    def _exchange(self, commands: Sequence[bytes], replies: Replies) -> None:
        """Send commands in one go and wait for the replies; those that came before an error are kept."""
        self.wire.send(b"".join(commands), *[replies] * len(commands))
        self.wire.receive_all()

    def _too_big(self, body: bytes) -> JobTooBigError:
        if self._max_job_size is None:
            self._max_job_size = self._call(self._client.stats)["max-job-size"]
        limit = self._max_job_size
        return JobTooBigError(
            f"the job has {len(body)} bytes, but Beanstalkd at {self.address} takes at most {limit} "
            "(its option -z); pass a reference to the data, for example a row's id or a file's name"
        )


# What a dead worker may have left unread: replies to its last command.
_STALE_REPLIES = {"DELETED", "RELEASED", "BURIED", "TOUCHED", "NOT_FOUND", "TIMED_OUT", "USING", "INSERTED"}


class _Socket(socket.socket):
    """A connected socket that greenstalk reads from by the same buffer, deadline and close as we do."""

    def __init__(self, fd: int, timeout_s: float) -> None:
        super().__init__(fileno=fd)
        self.settimeout(timeout_s)
        self.wire = Wire(self)

    def makefile(self, *_args: Any, **_options: Any) -> Any:
        return _Reader(self.wire)


@dataclass(frozen=True, slots=True)
class _Reader:
    """What greenstalk asks of a file for reading."""

    wire: Wire

    def readline(self) -> bytes:
        return self.wire.read_line()

    def read(self, size: int) -> bytes:
        return self.wire.read_data(size)

    def close(self) -> None:
        """Leave that to the connection."""


def _open_socket(address: Address, timeout_s: float) -> _Socket:
    try:
        sock = _Socket(socket.create_connection((address.host, address.port), timeout_s).detach(), timeout_s)
    except (OSError, UnicodeError) as error:  # the latter for a name that cannot be encoded
        raise _cannot_connect(address, _reason(error, timeout_s)) from error
    # Commands are small and each waits for its reply: Nagle's algorithm would add 40 ms to some.
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    # For a peer that vanished: the system's own default is two hours.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (("TCP_KEEPIDLE", 15), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, option):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
    return sock


def _cannot_connect(address: Address, reason: str) -> BrokerConnectionError:
    return BrokerConnectionError(
        f"cannot connect to Beanstalkd at {address}: {reason}; check that it runs, and BACKEND_CONNECTION_URI"
    )


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
