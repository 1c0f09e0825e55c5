"""Connections to Beanstalkd: its commands, with errors translated to ours. The only module that uses greenstalk.

Two rules ensure that no reply is read for the wrong command. First, any interruption of a command, by a network error
or by an exception of a signal handler, closes the connection: only a complete reply leaves it usable. Second, a
connection belongs to one process: a fork closes the child's copy at once, since a forgotten copy would keep a dead
worker's job reserved.
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

from .stats import JobCounters, JobRecord, Queue, Server, stat
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
    number,
    show,
    show_stranger,
)

P = ParamSpec("P")
R = TypeVar("R")

logger = get_logger("flask_backend.broker")

# The maximum number of commands in flight in a pipeline: unread replies fill the buffers of both sides.
PIPELINE_JOBS = 500

_JOB_GONE = "the job is gone, or no longer held by this connection"

# The events of poll(2) for a socket whose other end is closed; only Linux has the first, which comes at once.
_HANG_UP = getattr(select, "POLLRDHUP", 0) | select.POLLHUP | select.POLLERR

_REFUSALS: dict[type[greenstalk.Error], str] = {
    greenstalk.DrainingError: "the server is in drain mode and takes no new jobs",
    greenstalk.OutOfMemoryError: "the server is out of memory, or out of room for its binlog",
    greenstalk.InternalError: "the server reports an internal error",
    greenstalk.DeadlineSoonError: "the server reports a reserved job that is about to expire",
}

# The bytes of a server's first answer that are checked, to find out whether it is Beanstalkd.
_LOOKED_AT_BYTES = 100

# A tube without jobs: the protocol requires every connection to watch one.
IDLE_TUBE = "flask-backend.nowhere"

_USE_DEFAULT = b"use default\r\n"


@dataclass(frozen=True, slots=True)
class ReservedState:
    """A job that a connection was found to hold."""

    id: int
    counters: JobCounters


@dataclass(slots=True)
class PendingPuts:
    """Jobs that were sent, and the replies so far: to the puts, and to a ``use`` before them if it was refused.

    ``used`` are the tubes that were to be used before them, one after the other.
    """

    connection: Connection
    queue: str
    bodies: list[bytes]
    puts: Puts = field(default_factory=Puts)
    use_refusal: Reply | None = None
    used: list[str] = field(default_factory=list[str])

    def receive(self, words: list[bytes], data: bytes) -> None:
        """Receive the reply to a ``use``.

        Only now the connection is known to use the tube. If the sender recorded it, an exception of a signal handler
        between that and the write would leave the record wrong, and later jobs would go into another queue.
        """
        used = self.used.pop(0)
        if words[0] == b"USING":
            self.connection.used = used
        else:
            self.use_refusal = Reply.of(words, data)

    def collect(self, results: list[int | BrokerError]) -> None:
        """Wait for the replies, see :meth:`Connection.receive_results`."""
        self.connection.receive_results(self, results)


class Connection:
    """One connection to the server: opened at once, used by one thread at a time, closed for good after any error."""

    def __init__(
        self, address: Address, timeout_s: float, *, watch: str | None = None, sock: _Socket | None = None
    ) -> None:
        """Connect, unless ``sock`` is given, and watch only the queue ``watch``, if any.

        Raises :exc:`BrokerConnectionError`, after at most ``timeout_s`` seconds for each address of the host.
        """
        self.address = address
        self._timeout_s = timeout_s
        self.used: str | None = greenstalk.DEFAULT_TUBE  # by the replies so far; None if unknown
        self._pid = os.getpid()
        self._max_job_size: int | None = None
        self._socket = sock or _open_socket(address, timeout_s)
        self.wire = self._socket.wire
        self._timed_out_last_time = False  # in counters_within, called by a log line
        _open_connections.add(self)
        self._client = self._call(greenstalk.Client, self._socket, encoding=None)
        if sock is None:
            self.guard(self._watch_only, check_queue_name(watch) if watch is not None else IDLE_TUBE)

    @classmethod
    def adopt(cls, fd: int, address: Address, timeout_s: float) -> Connection:
        """Take over the connection of a dead process. Call :meth:`recover_reserved` first."""
        sock = _Socket(fd, timeout_s)
        connection = cls(address, timeout_s, sock=sock)
        connection.used = None  # unknown: its owner may have used any tube
        return connection

    def __del__(self) -> None:
        if hasattr(self, "_socket"):  # a thread ended, and dropped its connection
            self.close()

    def fileno(self) -> int:
        """Return the socket's descriptor, to wait for a reply; -1 after close."""
        return self._socket.fileno()

    @property
    def is_usable(self) -> bool:
        """Whether a command may be sent: open, owned by this process, no unread data (or EOF) between commands."""
        if self.fileno() < 0:
            return False
        if self._pid != os.getpid():  # forked by C code that skips Python's hooks, as in uWSGI
            self.abandon()
            return False
        return self.is_awaiting or not self.wire.is_readable(0)

    def close(self) -> None:
        """Close; the server then releases every job that this connection holds. Idempotent."""
        with suppress(OSError):  # already closed, here or by the server
            self._socket.shutdown(socket.SHUT_RDWR)  # ends a supervisor's duplicate too
        self.wire.close()
        self._socket.close()

    def abandon(self) -> None:
        """Close this process's copy of a descriptor that another process still uses."""
        if self.fileno() >= 0:
            self.wire.close()
            os.close(self._socket.detach())

    # -- for producers ---------------------------------------------------------------------------------------

    def put(self, queue: str, body: bytes, options: PutOptions) -> int:
        """Put one job and return its id.

        Raises :exc:`JobTooBigError`, another :exc:`BrokerError` if the server refuses, or
        :exc:`BrokerConnectionError`, after which the server may or may not have the job.
        """
        answer: int | BrokerError
        if queue == self.used and not self.wire.is_awaiting:  # nearly always, and then without the means of a pipeline
            sizes = options.priority, options.delay_s, options.ttr_s, len(body)
            puts = Puts()
            self.guard(self.wire.exchange, b"put %d %d %d %d\r\n%b\r\n" % (*sizes, body), puts)
            [reply] = puts.answers
            answer = reply if isinstance(reply, int) else self._refusal(queue, body, reply)
        else:
            results: list[int | BrokerError] = []
            self.receive_results(self.send_puts(queue, [body], options), results)
            answer = results[0]
        if isinstance(answer, BrokerError):
            raise answer
        return answer

    def send_puts(self, queue: str, bodies: list[bytes], options: PutOptions) -> PendingPuts:
        """Send jobs in one write, after a ``use`` of their tube if necessary. Then call :meth:`receive_results`.

        At most ``PIPELINE_JOBS``: with more, each side may wait for the other to read.
        """
        self.receive_all()
        pending = PendingPuts(self, queue, bodies)
        head = b"put %d %d %d" % (options.priority, options.delay_s, options.ttr_s)
        commands = [b"%b %d\r\n%b\r\n" % (head, len(body), body) for body in bodies]
        receivers: list[ReplyReceiver] = [pending.puts] * len(bodies)
        if queue != self.used:
            # The server may lack the memory for a new tube, and the jobs are sent by then: in a tube that no worker
            # watches they harm nothing, if this call is interrupted before it can delete them. This tube exists, since
            # the connections of producers watch it.
            pending.used = [IDLE_TUBE, queue]
            commands[:0] = [b"use %b\r\n" % check_queue_name(name).encode() for name in pending.used]
            receivers[:0] = [pending, pending]
        self.guard(self.wire.send, b"".join(commands), *receivers)
        return pending

    def receive_results(self, pending: PendingPuts, results: list[int | BrokerError]) -> None:
        """Wait for the replies to puts; append to ``results`` the id of each job, or the error if it was refused.

        If the connection breaks, there are fewer results: the server may or may not have the other jobs.
        """
        answers = pending.puts.answers
        try:
            self.receive_all()
        finally:
            if pending.use_refusal is not None:
                # The server lacked the memory for the tube, so these jobs are in one without workers: delete them. Once
                # the connection is closed, they stay there; the error that closed it is raised.
                if self.fileno() >= 0:
                    self.ask([b"delete %d\r\n" % answer for answer in answers if isinstance(answer, int)])
                answers = [pending.use_refusal] * len(answers)
            for body, answer in zip(pending.bodies, answers, strict=False):
                results.append(answer if isinstance(answer, int) else self._refusal(pending.queue, body, answer))

    def _refusal(self, queue: str, body: bytes, reply: Reply) -> int | BrokerError:
        match reply.status:
            case "BURIED":
                job_id = self.guard(reply.read, _job_id)
                logger.error(
                    "job %d of %s is stored but buried, because the server is short of memory: kick it", job_id, queue
                )
                return job_id
            case "JOB_TOO_BIG":
                return self._too_big(body)
            case status if (error := greenstalk.ERROR_RESPONSES.get(status.encode())) in _REFUSALS:
                return BrokerError(f"Beanstalkd at {self.address} refuses: {_REFUSALS[error]}")
            case _:
                self.close()
                raise BrokerConnectionError(f"Beanstalkd at {self.address} answered a put with {reply}")

    # -- for holders of a job, and for waiting workers -------------------------------------------------------

    @property
    def is_awaiting(self) -> bool:
        """Whether replies are awaited."""
        return self.wire.is_awaiting

    @property
    def is_cut(self) -> bool:
        """Whether the other end has closed the connection. Safe while another thread uses the connection."""
        if (fd := self.fileno()) < 0:
            return True
        poll = select.poll()
        poll.register(fd, _HANG_UP)
        return bool(poll.poll(0))

    def prefetch_stats(self, job_id: int) -> Replies:
        """Request the statistics of a job in advance, for :meth:`counters_within`."""
        replies = Replies()
        self.ask_stats_later(job_id, replies)
        return replies

    def ask_stats_later(self, job_id: int, receiver: ReplyReceiver) -> None:
        """Request the statistics of a job for a receiver, which gets the reply when replies are next read."""
        self.guard(self.wire.send, b"stats-job %d\r\n" % job_id, receiver)

    def receive(self) -> bool:
        """Read the replies that have arrived; return whether there was something to read."""
        try:
            return self.wire.receive()
        except BaseException as error:  # raised again, once the connection is closed if need be
            self.fail(error)

    def receive_all(self) -> None:
        """Wait for all awaited replies."""
        self.guard(self.wire.receive_all)

    def delete(self, job_id: int) -> None:
        self._call(self._client.delete, job_id)

    def release(self, job_id: int, priority: int, delay_s: int) -> None:
        self._call(self._release, job_id, priority, delay_s)

    def _release(self, job_id: int, priority: int, delay_s: int) -> None:
        try:
            self._client.release(greenstalk.Job(job_id, b""), priority, delay_s)
        except greenstalk.BuriedError:
            logger.warning("the server lacked the memory to release job %d and buried it", job_id)

    def bury(self, job_id: int, priority: int) -> None:
        self._call(self._client.bury, greenstalk.Job(job_id, b""), priority)

    def touch(self, job_id: int) -> None:
        """Restart the job's TTR."""
        self._call(self._client.touch, greenstalk.Job(job_id, b""))

    def counters(self, job_id: int) -> JobCounters:
        [counters] = self._ask_for("OK", [b"stats-job %d\r\n" % job_id], _counters)
        if counters is None:
            raise JobNotFoundError(_JOB_GONE)
        return counters

    def counters_within(self, job_id: int, wait_s: float, asked: Replies | None = None) -> JobCounters | None:
        """Return the counters if the server answers in time; the connection stays usable in any case.

        ``asked`` is the result of :meth:`prefetch_stats` for the job.
        """
        deadline = time.monotonic() + wait_s
        if self._timed_out_last_time and self.is_awaiting and not self.wire.is_readable(0):
            return None  # still no answer
        if asked is None:
            asked = self.prefetch_stats(job_id)
        self._timed_out_last_time = False
        while not asked:
            # Most replies are there already: the worker has requested them before it called the task.
            if not self.receive() and not self.wire.is_readable(max(0.0, deadline - time.monotonic())):
                self._timed_out_last_time = True
                return None
        return self._read(asked[0], "OK", _counters)

    def reserve_again(self, job: ReservedJob) -> bool:
        """Reserve the job that a broken connection held; return False if it is gone or taken."""
        [found] = self.ask([b"peek %d\r\n" % job.id])
        if found.status != "FOUND" or found.data != job.body:
            return False  # ids may restart at 1 with the server: this is another job
        [reply] = self.ask([b"reserve-job %d\r\n" % job.id])
        return reply.status == "RESERVED"

    def has_old_jobs(self, queue: str, within_s: float) -> bool:
        """Whether the server started within the last ``within_s`` seconds and already has jobs for this queue."""
        found = self.stats_tube([queue])
        return self._server_stat("uptime") <= within_s and bool(found) and found[0].ready > 0

    # -- for a dead worker's connection ----------------------------------------------------------------------

    def recover_reserved(self, job_id: int) -> ReservedState | None:
        """Return the job, if the connection of the dead owner still holds it.

        Replies to the owner's last commands, such as a touch or a delete, may come first. Only the reply to our own
        command has the job's statistics; anything unexpected raises :exc:`BrokerConnectionError`.
        """
        return self._call(self._recover_reserved, job_id)

    def _recover_reserved(self, job_id: int) -> ReservedState | None:
        # The second command marks the end: workers never send it, so its reply is recognizable, and always the last.
        self._socket.sendall(b"stats-job %d\r\nlist-tubes-watched\r\n" % job_id)
        deadline = time.monotonic() + self._timeout_s  # of all replies: a broken server may send them without end
        found: ReservedState | None = None
        while not (reply := self.wire.read()).data.startswith(b"---\n- "):
            if time.monotonic() > deadline:
                raise TimeoutError
            found = None  # only the last one counts: earlier ones answer the owner's commands
            if reply.status == "OK":
                stats = reply.read(lambda reply: reply.stats)
                if stats.get("id") == job_id and stats.get("state") == "reserved":
                    found = ReservedState(job_id, reply.read(_counters))
            elif reply.status not in _STALE_REPLIES:
                raise OutOfStepError(f"it answered {reply}")
        return found

    # -- for commands that inspect queues and jobs -----------------------------------------------------------

    def stats(self) -> Stats:
        """Return the server's own statistics."""
        [reply] = self.ask([b"stats\r\n"])
        return self._read(reply, "OK", lambda reply: reply.stats) or {}

    def server(self) -> Server | None:
        """Return the server's statistics of itself; None if it has none."""
        [reply] = self.ask([b"stats\r\n"])
        return self._read(reply, "OK", lambda reply: Server.from_stats(reply.stats))

    def _server_stat(self, name: str) -> int:
        [reply] = self.ask([b"stats\r\n"])
        return self._read(reply, "OK", lambda reply: stat(reply.stats, name)) or 0

    def total_jobs(self) -> int:
        """Return how many jobs were put since the server started: at most the id of the newest one."""
        return self._server_stat("total-jobs")

    def list_tubes(self) -> list[str]:
        """Return the names of all tubes, except the one that our idle connections watch."""
        [reply] = self.ask([b"list-tubes\r\n"])
        return [name for name in self._read(reply, "OK", _tubes) or () if name != IDLE_TUBE]

    def stats_tube(self, names: Iterable[str]) -> list[Queue]:
        """Return the queues among ``names`` that exist."""
        commands = [b"stats-tube %b\r\n" % check_queue_name(name).encode() for name in names]
        found = self._ask_for("OK", commands, lambda reply: Queue.from_stats(reply.stats))
        return [queue for queue in found if queue is not None]

    def places_of(self, ids: Iterable[int]) -> dict[int, tuple[str, str]]:
        """Return the queue and the state of the jobs among ``ids`` that exist; quicker than their records."""
        found = self._ask_for("OK", [b"stats-job %d\r\n" % job_id for job_id in ids], _place)
        return {place[0]: place[1:] for place in found if place is not None}

    def stats_job(self, ids: Iterable[int]) -> list[JobRecord]:
        """Return the jobs among ``ids`` that exist."""
        found = self._ask_for("OK", [b"stats-job %d\r\n" % job_id for job_id in ids], _record)
        return [record for record in found if record is not None]

    def find_jobs(self, ids: Iterable[int], queues: Collection[str], states: Collection[str]) -> list[JobRecord]:
        """Return the jobs among ``ids`` that are in one of ``queues`` and in one of ``states``."""
        # Later servers quote names. Compare bytes first: parsing the jobs of other queues would take most of the time.
        tubes = {f"tube: {quote}{name}{quote}".encode() for name in queues for quote in ("", '"')}
        wanted = {f"state: {quote}{state}{quote}".encode() for state in states for quote in ("", '"')}

        def record(reply: Reply) -> JobRecord | None:
            lines = reply.data.split(b"\n", 4)  # ---, id, tube, state, and the rest
            return _record(reply) if lines[2] in tubes and lines[3] in wanted else None

        found = self._ask_for("OK", [b"stats-job %d\r\n" % job_id for job_id in ids], record)
        return [record for record in found if record is not None]

    def peek(self, ids: Iterable[int]) -> dict[int, bytes]:
        """Return the bodies of the jobs among ``ids`` that exist."""
        found = self._ask_for("FOUND", [b"peek %d\r\n" % job_id for job_id in ids], _job)
        return {job.id: job.body for job in found if job is not None}

    def find_each(self, ids: Iterable[int]) -> dict[int, tuple[JobRecord, bytes]]:
        """Return the jobs among ``ids`` that exist, with their bodies."""
        commands = [command % job_id for job_id in ids for command in (b"stats-job %d\r\n", b"peek %d\r\n")]
        replies = self.ask(commands)
        found: dict[int, tuple[JobRecord, bytes]] = {}
        for stats, job in zip(replies[::2], replies[1::2], strict=True):
            record, seen = self._read(stats, "OK", _record), self._read(job, "FOUND", _job)
            if record is not None and seen is not None:
                found[record.id] = record, seen.body
        return found

    def find(self, job_id: int) -> tuple[JobRecord, bytes] | None:
        """Return a job and its body, if it exists."""
        stats, found = self.ask([b"stats-job %d\r\n" % job_id, b"peek %d\r\n" % job_id])
        record, job = self._read(stats, "OK", _record), self._read(found, "FOUND", _job)
        return None if record is None or job is None else (record, job.body)

    def peek_ready(self, queues: Iterable[str]) -> dict[str, int]:
        """Return the id of the next ready job of each of these queues that has one."""
        return self._peek_first(b"peek-ready\r\n", queues, _job_id)

    def peek_delayed(self, queues: Iterable[str]) -> dict[str, int]:
        """Return the id of the job that is due next, for each of these queues that has a delayed one."""
        return self._peek_first(b"peek-delayed\r\n", queues, _job_id)

    def peek_buried(self, queues: Iterable[str]) -> dict[str, int]:
        """Return the id of the job that has been buried longest, for each of these queues that has one."""
        return self._peek_first(b"peek-buried\r\n", queues, _job_id)

    def _peek_first(self, command: bytes, queues: Iterable[str], read: Callable[[Reply], R]) -> dict[str, R]:
        names = list(queues)
        pairs = [each for name in names for each in (b"use %b\r\n" % check_queue_name(name).encode(), command)]
        replies = self._ask_in_tubes(pairs)
        found = [self._read(reply, "FOUND", read) for reply in replies[1:-1:2]]
        return {name: job for name, job in zip(names, found, strict=True) if job is not None}

    def kick_job(self, ids: Iterable[int]) -> list[int]:
        """Make buried or delayed jobs ready; return the ids of the jobs that were."""
        return self._do_each(b"kick-job %d\r\n", ids, "KICKED")

    def delete_each(self, ids: Iterable[int]) -> list[int]:
        """Delete jobs that no other connection holds; return the ids of the deleted jobs."""
        return self._do_each(b"delete %d\r\n", ids, "DELETED")

    def _do_each(self, command: bytes, ids: Iterable[int], done: str) -> list[int]:
        wanted = list(ids)
        replies = self.ask([command % job_id for job_id in wanted])
        return [job_id for job_id, reply in zip(wanted, replies, strict=True) if reply.status == done]

    def pause_tube(self, queue: str, seconds: int) -> bool:
        """Pause a queue, or end its pause with 0; return whether it exists."""
        [reply] = self.ask([b"pause-tube %b %d\r\n" % (check_queue_name(queue).encode(), seconds)])
        return reply.status == "PAUSED"

    def watch_too(self, tubes: Iterable[str]) -> None:
        """Watch further tubes: a reserve then takes the most urgent job of all of them."""
        commands = [b"watch %b\r\n" % check_queue_name(tube).encode() for tube in tubes]
        for reply in self.ask(commands):
            if reply.status != "WATCHING":
                raise BrokerError(f"Beanstalkd at {self.address} refuses to watch a tube: it answers {reply}")

    def reserve_ready(self, count: int) -> list[ReservedJob]:
        """Reserve up to ``count`` jobs that are ready now."""
        found = self._ask_for("RESERVED", [b"reserve-with-timeout 0\r\n"] * count, _job)
        return [job for job in found if job is not None]

    def first_ready(self, tube: str) -> tuple[int, bytes] | None:
        """Return the id and the body of the next ready job of a tube, if there is one."""
        job = self.first_ready_of([tube]).get(tube)
        return None if job is None else (job.id, job.body)

    def firsts(self, tube: str) -> list[ReservedJob]:
        """Return the next ready job of a tube, the delayed one that is due next, and the first buried one."""
        peeks = [b"peek-ready\r\n", b"peek-delayed\r\n", b"peek-buried\r\n"]
        _, *replies, _ = self._ask_in_tubes([b"use %b\r\n" % tube.encode(), *peeks])
        found = (self._read(reply, "FOUND", _job) for reply in replies)
        return [job for job in found if job is not None]

    def reserve_job(self, job_id: int) -> ReservedJob | None:
        """Reserve a given job in any tube, unless it is gone or another connection holds it."""
        [reply] = self.ask([b"reserve-job %d\r\n" % job_id])
        return self._read(reply, "RESERVED", _job)

    def watch(self, tubes: Iterable[str]) -> None:
        """Watch further tubes. Raises :exc:`BrokerError` if the server refuses."""
        names = list(tubes)
        replies = self.ask([b"watch %b\r\n" % check_queue_name(name).encode() for name in names])
        for name, reply in zip(names, replies, strict=True):
            if reply.status != "WATCHING":
                raise BrokerError(f"Beanstalkd at {self.address} refuses to watch {name}: it answers {reply}")

    def first_ready_of(self, tubes: Iterable[str]) -> dict[str, ReservedJob]:
        """Return the next ready job of each of these tubes that has one."""
        return self._peek_first(b"peek-ready\r\n", tubes, _job)

    def put_aside(self, tube: str, body: bytes, priority: int) -> int:
        """Put a job that nobody reserves; return its id. Afterwards this connection no longer uses the tube."""
        command = b"put %d 0 1 %d\r\n%b\r\n" % (priority, len(body), body)
        used, put, _ = self._ask_in_tubes([b"use %b\r\n" % tube.encode(), command])
        if used.status == "USING" and put.status == "INSERTED":
            return self.guard(put.read, _job_id)
        if put.status in ("INSERTED", "BURIED"):  # in another tube, or short of memory
            self.delete_each([self.guard(put.read, _job_id)])
        raise BrokerError(f"Beanstalkd at {self.address} refuses to keep {len(body)} bytes: it answered {put}")

    def first_delayed(self, tube: str) -> tuple[int, bytes] | None:
        """Return the id and the body of the delayed job of a tube that will be ready first, if there is one."""
        job = self.first_delayed_of([tube]).get(tube)
        return None if job is None else (job.id, job.body)

    def first_delayed_of(self, tubes: Iterable[str]) -> dict[str, ReservedJob]:
        """Return the delayed job that will be ready first, of each of these tubes that has one."""
        return self._peek_first(b"peek-delayed\r\n", tubes, _job)

    def put_all_aside(self, tube: str, bodies: Sequence[bytes], options: PutOptions) -> list[int]:
        """Put jobs that no worker reserves, as :meth:`put_aside` does; return their ids.

        Raises :exc:`BrokerError` if the server does not take all of them: then it keeps none.
        """
        head = b"put %d %d %d" % (options.priority, options.delay_s, options.ttr_s)
        puts = [b"%b %d\r\n%b\r\n" % (head, len(body), body) for body in bodies]
        used, *answers, _ = self._ask_in_tubes([b"use %b\r\n" % tube.encode(), *puts])
        if used.status == "USING" and all(answer.status == "INSERTED" for answer in answers):
            return [self.guard(answer.read, _job_id) for answer in answers]
        kept = [answer for answer in answers if answer.status in ("INSERTED", "BURIED")]
        self.delete_each([self.guard(answer.read, _job_id) for answer in kept])
        for body, answer in zip(bodies, answers, strict=True):
            if answer.status == "JOB_TOO_BIG":
                raise self._too_big(body)
            if refusal := _REFUSALS.get(greenstalk.ERROR_RESPONSES.get(answer.status.encode(), greenstalk.Error)):
                raise BrokerError(f"Beanstalkd at {self.address} refuses: {refusal}")
        raise BrokerError(f"Beanstalkd at {self.address} refuses to keep {len(bodies)} jobs: it is short of memory")

    def max_job_size(self) -> int:
        """Return the bytes of the largest job that the server takes."""
        if self._max_job_size is None:
            self._max_job_size = self._server_stat("max-job-size")
        return self._max_job_size

    def probe_last_id(self, tube: str) -> int:
        """Return the id of the newest job, found by putting a job into ``tube`` and deleting it.

        If the server refuses puts, returns its ``total-jobs`` instead: with a binlog this restarts at 0 with the
        server, while ids do not.
        """
        put = b"put %d 0 1 0\r\n\r\n" % DEFAULT_PRIORITY
        _, probe, _ = self._ask_in_tubes([b"use %b\r\n" % tube.encode(), put])
        if probe.status not in ("INSERTED", "BURIED"):
            return self._server_stat("total-jobs")
        probe_id = self.guard(probe.read, _job_id)
        self.delete_each([probe_id])
        return probe_id - 1

    def quit(self) -> None:
        """Ask the server to close the connection: on return, it has released all jobs that the connection held."""
        with suppress(BrokerConnectionError):
            self.ask([b"quit\r\n"])
        self.close()

    def ask(self, commands: Sequence[bytes]) -> list[Reply]:
        """Send commands, including line breaks, in batches; return the reply to each.

        For every command except ``reserve`` without a timeout. A refusal is returned like any other reply; raises
        :exc:`BrokerConnectionError` if a reply shows that the server has misread a command.
        """
        replies = Replies()
        for start in range(0, len(commands), PIPELINE_JOBS):
            self._call(self._exchange, commands[start : start + PIPELINE_JOBS], replies)
        return replies

    def _ask_for(self, status: str, commands: Sequence[bytes], read: Callable[[Reply], R]) -> list[R | None]:
        """Send commands like :meth:`ask`, and read each reply like :meth:`_read`."""
        return [self._read(reply, status, read) for reply in self.ask(commands)]

    def _read(self, reply: Reply, status: str, read: Callable[[Reply], R]) -> R | None:
        """Return the contents of a reply with this status, or None if the requested object does not exist.

        Any other reply, or other contents, close the connection and raise :exc:`BrokerConnectionError`.
        """
        if reply.status == status:
            return self.guard(reply.read, read)
        if reply.status not in _NOTHING:
            error = greenstalk.ERROR_RESPONSES.get(reply.status.encode())
            self.fail(error([]) if error in _REFUSALS else OutOfStepError(f"it answered {reply}"))
        return None

    def _ask_in_tubes(self, commands: Sequence[bytes]) -> list[Reply]:
        """Send commands with ``use`` among them, and one more; return the reply to each."""
        self.receive_all()  # the reply to an earlier ``use`` may be among them
        self.used = None
        # A used tube is not deleted: without the last command our connection could be the only one that keeps it.
        return self.ask([*commands, _USE_DEFAULT])

    # -- internals -------------------------------------------------------------------------------------------

    def _call(self, command: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Run one command to its reply, after all awaited replies have arrived."""
        self.receive_all()
        result = self.guard(command, *args, **kwargs)
        self.guard(self.wire.check_in_step)
        return result

    def guard(self, action: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Run an action on the connection; close the connection unless it succeeds, or fails with a complete reply.

        The code that runs for every job, in :class:`Pipeline` and :meth:`receive`, calls :meth:`fail` itself.
        """
        try:
            return action(*args, **kwargs)
        except BaseException as error:  # raised again, once the connection is closed if need be
            self.fail(error)

    def fail(self, error: BaseException) -> NoReturn:
        """Close the connection unless ``error`` is a complete reply of the server; raise it as one of our errors."""
        match error:
            case greenstalk.NotFoundError():
                raise JobNotFoundError(_JOB_GONE) from error
            case greenstalk.Error() if type(error) in _REFUSALS:
                raise BrokerError(f"Beanstalkd at {self.address} refuses: {_REFUSALS[type(error)]}") from error
            case BrokerError():
                self.close()
                raise error
            case OSError() | AssertionError() | ValueError() | greenstalk.Error():
                # greenstalk checks replies with assert, and indexes lists that may be empty: all mean a broken stream.
                was_open = self.fileno() >= 0
                self.close()
                told = f"lost the connection to Beanstalkd at {self.address}: {_reason(error, self._timeout_s)}"
                closed = f"the connection to Beanstalkd at {self.address} is closed"
                raise BrokerConnectionError(told if was_open else closed) from error
            case _:
                # Interrupted: the reply could be read for a later command. A supervisor's duplicate stays open: if this
                # ends the worker, the supervisor settles the job there.
                self.abandon()
                raise error

    def _watch_only(self, tube: str) -> None:
        """Send the first commands, to which only Beanstalkd has the right replies."""
        # A new connection watches `default`, and would count there as a worker.
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
                raise BrokerError(f"Beanstalkd at {self.address} refuses to watch {tube}: it answers {reply}")

    def _exchange(self, commands: Sequence[bytes], replies: Replies) -> None:
        """Send commands in one write and wait for the replies; keeps the replies before an error."""
        self.wire.send(b"".join(commands), *[replies] * len(commands))
        self.wire.receive_all()

    def _too_big(self, body: bytes) -> JobTooBigError:
        return JobTooBigError(
            f"the job has {len(body)} bytes, but Beanstalkd at {self.address} takes at most {self.max_job_size()} "
            "(its option -z); pass a reference to the data, for example a row's id or a file's name"
        )


# The replies to a command for what does not exist.
_NOTHING = {"NOT_FOUND", "TIMED_OUT", "DEADLINE_SOON"}


def _counters(reply: Reply) -> JobCounters:
    return JobCounters.find(reply.data) or JobCounters.from_stats(reply.stats)


def _record(reply: Reply) -> JobRecord:
    return JobRecord.from_stats(reply.stats)


def _place(reply: Reply) -> tuple[int, str, str]:
    # Later servers quote names.
    _, job_id, tube, state, _ = reply.data.split(b"\n", 4)
    return number(job_id.removeprefix(b"id: ")), _value(tube, b"tube: "), _value(state, b"state: ")


def _value(line: bytes, key: bytes) -> str:
    if not line.startswith(key):
        raise ValueError(f"{line!r} is not the line of {key!r}")
    return line.removeprefix(key).strip(b'"').decode("ascii")


def _job_id(reply: Reply) -> int:
    return number(reply.words[0])


def _job(reply: Reply) -> ReservedJob:
    return ReservedJob(_job_id(reply), reply.data)


def _tubes(reply: Reply) -> list[str]:
    lines = reply.data.decode("ascii").splitlines()
    return [check_queue_name(line[2:].strip('"')) for line in lines if line.startswith("- ")]


# Replies that a dead worker may have left unread.
_STALE_REPLIES = {"DELETED", "RELEASED", "BURIED", "TOUCHED", "NOT_FOUND", "TIMED_OUT", "USING", "INSERTED"}


class _Socket(socket.socket):
    """A connected socket from which greenstalk reads through our buffer, with our deadline and close."""

    def __init__(self, fd: int, timeout_s: float) -> None:
        super().__init__(fileno=fd)
        self.settimeout(timeout_s)
        self.wire = Wire(self)

    def makefile(self, *_args: Any, **_options: Any) -> Any:
        return _Reader(self.wire)


@dataclass(frozen=True, slots=True)
class _Reader:
    """The part of a readable file that greenstalk uses."""

    wire: Wire

    def readline(self) -> bytes:
        return self.wire.read_line()

    def close(self) -> None:
        """Leave closing the socket to the connection."""


def _open_socket(address: Address, timeout_s: float) -> _Socket:
    try:
        sock = _Socket(socket.create_connection((address.host, address.port), timeout_s).detach(), timeout_s)
    except (OSError, UnicodeError) as error:  # UnicodeError: the name cannot be encoded
        raise _cannot_connect(address, _reason(error, timeout_s)) from error
    # Commands are small and each waits for its reply: Nagle's algorithm would delay some by 40 ms.
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    # To detect a peer that vanished: the system's default takes two hours.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (("TCP_KEEPIDLE", 15), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, option):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
    return sock


def _cannot_connect(address: Address, reason: str) -> BrokerConnectionError:
    return BrokerConnectionError(
        f"cannot connect to Beanstalkd at {address}: {reason}; check that it is running, and BACKEND_CONNECTION_URI"
    )


def _reason(error: BaseException, timeout_s: float) -> str:
    if isinstance(error, TimeoutError):
        return f"no answer within {timeout_s:g} s"
    if isinstance(error, OSError):
        return error.strerror or str(error)
    if isinstance(error, greenstalk.UnknownResponseError):
        return f"it answered {show([error.status, *error.values])}"
    return f"unexpected reply ({type(error).__name__})"


# The only state of this module: the connections that a forked child must close.
_open_connections: weakref.WeakSet[Connection] = weakref.WeakSet()


def _abandon_inherited() -> None:
    for connection in list(_open_connections):
        connection.abandon()
    _open_connections.clear()


os.register_at_fork(after_in_child=_abandon_inherited)
