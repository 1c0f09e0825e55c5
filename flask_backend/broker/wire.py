"""One stream to Beanstalkd: commands go out, and each reply comes to the command that it answers.

The server answers in the order of the commands (doc/protocol.txt of beanstalkd), so one queue of receivers is enough.
The receiver of a reply joins it before the command is sent; each reply goes to the receiver that has waited longest,
which rejects a reply that does not fit its command. After any error the caller must close the stream.
"""

from __future__ import annotations

import os
import select
import socket
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

R = TypeVar("R")

Stats = dict[str, int | str]

# Waking a sleeping process takes longer than a quick reply of the broker: a virtual CPU is halted and restarted, and
# its caches are cold afterwards. So poll for this many seconds first, and yield the CPU between polls to other
# processes, perhaps to the broker. Without sched_yield, sleep at once.
SPIN_S = 50e-6 if hasattr(os, "sched_yield") else 0.0

# Linux keeps what is sent with this flag for the next data without it, for about 200 ms at most, and even if the
# process dies. Elsewhere it is sent at once.
_MORE = getattr(socket, "MSG_MORE", 0)

_READ_BYTES = 1 << 16
_MAX_LINE = 1 << 10  # bytes; the server's longest line contains a tube name of 200
_MAX_DATA = 1 << 30  # bytes; the largest job that beanstalkd's option -z allows
_MAX_NUMBER = 1 << 64  # the server's numbers are smaller
# The replies with data, and their number of words; the last is the size of the data.
_WITH_DATA = {b"OK": 2, b"FOUND": 3, b"RESERVED": 3}
_SHOWN_BYTES = 60  # of a reply, in an error
# The server has misread a command: later replies on the stream cannot be trusted.
_OUT_OF_STEP = frozenset({"BAD_FORMAT", "UNKNOWN_COMMAND", "EXPECTED_CRLF"})


class OutOfStepError(ConnectionError):
    """The server has sent a reply that does not fit the command."""


@dataclass(slots=True)
class Reply:
    """The server's reply to one command: a status word, further words, and the data of some replies.

    Not frozen: a job that logs a line creates one, which would take twice the time.
    """

    status: str
    words: tuple[str, ...] = ()
    data: bytes = b""

    @classmethod
    def of(cls, words: list[bytes], data: bytes) -> Reply:
        """Return the reply; raise :exc:`OutOfStepError` if the server did not understand the command."""
        status, *others = [word.decode("ascii") for word in words]
        if status in _OUT_OF_STEP:
            raise OutOfStepError(f"it answered {status}")
        return cls(status, tuple(others), data)

    def __str__(self) -> str:
        return show([word.encode() for word in (self.status, *self.words)], self.data)

    def read(self, read: Callable[[Reply], R]) -> R:
        """Return what ``read`` finds in the reply; raise :exc:`OutOfStepError` for unexpected contents."""
        try:
            return read(self)
        except (LookupError, ValueError) as error:
            raise OutOfStepError(f"it answered {self}") from error

    @classmethod
    def parse(cls, reply: bytes) -> Reply:
        """Read a complete reply, including line breaks."""
        line, _, data = reply.partition(b"\r\n")
        return cls.of(line.split(), data[:-2])

    @property
    def stats(self) -> Stats:
        """The data of a reply to a ``stats`` command: flat YAML of numbers and some names.

        Raises :exc:`ValueError` for other data; the keys are not checked.
        """
        pairs = (line.split(": ", 1) for line in self.data.decode("ascii").splitlines() if ": " in line)
        # The name of a tube may be a number.
        return {
            key: number(value) if value.isdecimal() and key not in ("tube", "name") else value.strip('"')
            for key, value in pairs
        }


class ReplyReceiver(Protocol):
    """The receiver of a reply."""

    def receive(self, words: list[bytes], data: bytes) -> None:
        """Receive its words, the status first, and its data.

        Raises :exc:`OutOfStepError`, :exc:`ValueError` or :exc:`IndexError` if it does not fit.
        """


class Replies(list[Reply]):
    """Receives any replies, in order."""

    def receive(self, words: list[bytes], data: bytes) -> None:
        self.append(Reply.of(words, data))


@dataclass(slots=True)
class Puts:
    """Receives the replies to puts: the ids of stored jobs, and all other replies."""

    answers: list[int | Reply] = field(default_factory=list["int | Reply"])

    def receive(self, words: list[bytes], data: bytes) -> None:
        self.answers.append(number(words[1]) if words[0] == b"INSERTED" else Reply.of(words, data))


@dataclass(slots=True)
class ReservedJob:
    """A job that a connection holds. Not frozen: every job creates one, which would take twice the time."""

    id: int
    body: bytes


@dataclass(slots=True)
class Deletions:
    """Receives the replies to deletes.

    ``pending`` are the jobs without a reply yet, ``late`` the jobs that were no longer held.
    """

    pending: deque[ReservedJob] = field(default_factory=deque[ReservedJob])
    late: list[ReservedJob] = field(default_factory=list[ReservedJob])

    def receive(self, words: list[bytes], data: bytes) -> None:
        if words != _DELETED:
            if words != _NOT_FOUND:
                raise OutOfStepError(f"it answered {show(words, data)} to a delete")
            self.late.append(self.pending[0])
        self.pending.popleft()


_DELETED, _NOT_FOUND = [b"DELETED"], [b"NOT_FOUND"]
_DELETED_LINE = b"DELETED\r\n"


@dataclass(slots=True)
class Reservations:
    """Receives the replies to reserves. ``jobs`` are the jobs in them, ``pending`` is the number of awaited replies."""

    jobs: list[ReservedJob] = field(default_factory=list[ReservedJob])
    pending: int = 0

    def receive(self, words: list[bytes], data: bytes) -> None:
        if words[0] == b"RESERVED":
            self.jobs.append(ReservedJob(number(words[1]), data))
        # DEADLINE_SOON is about a job that has just arrived, with a TTR of one second, or one that we have forgotten.
        elif words != [b"TIMED_OUT"] and not (words == [b"DEADLINE_SOON"] and self.jobs):
            raise OutOfStepError(f"it answered {show(words, data)} to a reserve")
        self.pending -= 1


class _Poll(Protocol):
    def poll(self, timeout_ms: float, /) -> object: ...


class _Selecting:
    """Waits like a ``select.poll`` object: eventlet removes ``select.poll`` when it patches a web process."""

    def __init__(self, fd: int) -> None:
        self._fds = [fd]

    def poll(self, timeout_ms: float, /) -> list[int]:
        return select.select(self._fds, [], [], timeout_ms / 1000)[0]


def _poll(fd: int) -> _Poll:
    """Return an object that waits until ``fd`` is readable."""
    if not hasattr(select, "poll"):
        return _Selecting(fd)
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return poll


class Wire:
    """A connected socket, used by one thread at a time."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._fd = sock.fileno()
        self._timeout_s = sock.gettimeout()
        self._received = bytearray()
        self._awaited: deque[ReplyReceiver] = deque()
        self._holds_back = False  # the system may still have commands of :meth:`send_with_next`, and only such
        self._due: float | None = None  # when the reply that has begun to arrive must be complete
        self._poll = _poll(self._fd)

    @property
    def is_awaiting(self) -> bool:
        return bool(self._awaited)

    def close(self) -> None:
        """Stop using the descriptor: the system may give its number to another file from now on."""
        self._fd = -1

    def is_readable(self, wait_s: float) -> bool:
        """Wait for data, or for the stream's end; return whether there is something to read."""
        if self._poll.poll(0):
            return True
        return wait_s > 0 and (self._comes_soon(min(wait_s, SPIN_S)) or bool(self._poll.poll(wait_s * 1000)))

    def send(self, commands: bytes, *receivers: ReplyReceiver) -> None:
        """Send commands, including line breaks, and record the receiver of each reply."""
        self._awaited.extend(receivers)
        self._holds_back = False
        # Not the socket's own method, which first polls whether it can write.
        try:
            sent = os.write(self._fd, commands)
        except BlockingIOError:
            sent = 0
        if sent < len(commands):
            self._socket.sendall(memoryview(commands)[sent:])

    def send_with_next(self, command: bytes, receiver: ReplyReceiver) -> None:
        """Send a command together with the next one, or by itself before its reply is waited for.

        At once while other replies are awaited: if the process died with data that it has not read, the system would
        drop what it holds back.
        """
        if self._awaited and not self._holds_back:
            self.send(command, receiver)
            return
        self._awaited.append(receiver)
        self._holds_back = True
        self._socket.sendall(command, _MORE)

    def receive(self) -> bool:
        """Dispatch the replies that have arrived; return whether there was something to read."""
        data = self._read_now()
        if data is None:
            return False
        self._take_in(data)
        return True

    def receive_next(self) -> None:
        """Wait for the next reply, up to the socket's timeout, and dispatch what has arrived."""
        if self._holds_back:
            self._holds_back = False
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # sends what is held back
        deadline = self._deadline()
        awaited = len(self._awaited)
        while len(self._awaited) == awaited:
            self._take_in(self._read_some(deadline))

    def receive_all(self) -> None:
        """Wait for all awaited replies and dispatch them."""
        while self._awaited:
            self.receive_next()

    def exchange(self, command: bytes, receiver: ReplyReceiver) -> None:
        """Send a command while no reply is awaited, and wait for its reply."""
        self.send(command, receiver)
        deadline = self._deadline()
        while self._awaited:
            self._take_in(self._read_some(deadline))

    def _comes_soon(self, within_s: float) -> bool:
        until = time.monotonic() + within_s
        while time.monotonic() < until:
            os.sched_yield()
            if self._poll.poll(0):
                return True
        return False

    def read(self) -> Reply:
        """Wait for a reply without a receiver, on the adopted socket of a dead process; others may follow it."""
        replies = Replies()
        self._awaited.append(replies)
        deadline = self._deadline()
        while True:
            del self._received[: self._dispatch(self._received)]
            if replies:
                return replies[0]
            self._received += self._read_some(deadline)

    def read_line(self) -> bytes:
        """Wait for a line without a receiver, and return it with its line break."""
        deadline = self._deadline()
        while (end := self._received.find(b"\n")) < 0:
            if len(self._received) > _MAX_LINE:
                raise OutOfStepError("it sent a line without an end")
            self._received += self._read_some(deadline)
        line = bytes(self._received[: end + 1])
        del self._received[: end + 1]
        return line

    def check_in_step(self) -> None:
        """Raise :exc:`OutOfStepError` if there is unread data although no reply is awaited."""
        if self._received and not self._awaited:
            raise OutOfStepError("it sent more than was asked for")

    def _deadline(self) -> float | None:
        return None if self._timeout_s is None else time.monotonic() + self._timeout_s

    def _take_in(self, data: bytes) -> None:
        received = self._received
        awaited = len(self._awaited)
        if received:
            received += data
            del received[: self._dispatch(received)]
        elif (end := self._dispatch(data)) < len(data):
            received += data[end:]
        self.check_in_step()
        if not received:
            self._due = None
        elif self._due is None or len(self._awaited) < awaited:
            self._due = self._deadline()
        elif time.monotonic() > self._due:
            raise TimeoutError

    def _read_now(self) -> bytes | None:
        try:
            return _checked(os.read(self._fd, _READ_BYTES))
        except BlockingIOError:
            return None

    def _read_some(self, deadline: float | None) -> bytes:
        # The socket's timeout applies to each read. A reply that drips in gets no extra time.
        if deadline is None:
            return _checked(self._socket.recv(_READ_BYTES))
        if (data := self._read_now()) is not None:  # on a busy host it is there before we look
            return data
        if not self.is_readable(max(0.0, deadline - time.monotonic())):
            raise TimeoutError
        return _checked(os.read(self._fd, _READ_BYTES))  # the socket's own method would wait once more

    def _dispatch(self, received: bytes | bytearray) -> int:
        """Give each complete reply to its receiver; return where the rest begins."""
        start = 0
        while self._awaited:
            if received.startswith(_DELETED_LINE, start):  # half of a worker's replies
                start += len(_DELETED_LINE)
                self._awaited.popleft().receive(_DELETED, b"")
                continue
            end = received.find(b"\r\n", start, start + _MAX_LINE)
            if end < 0:
                if len(received) - start >= _MAX_LINE:
                    raise OutOfStepError(f"it sent a line without an end: {show([received[start:]])}")
                break
            words = bytes(received[start:end]).split()
            if not words:
                raise OutOfStepError("it sent an empty line")
            end += 2
            data = b""
            if words[0] in _WITH_DATA:
                begin, end = end, end + _size_of_data(words) + 2
                if len(received) < end:
                    break
                # The last two bytes should be a line break, but after a crash the server's binlog may have a job whose
                # end was not written: an error here would make each worker in turn fail on it, forever. Decoding the
                # body reports the damage instead.
                data = bytes(received[begin : end - 2])
            start = end
            try:
                self._awaited.popleft().receive(words, data)
            except (ValueError, IndexError) as error:
                raise OutOfStepError(f"it answered {show(words, data)}") from error
        return start


def _size_of_data(words: list[bytes]) -> int:
    if len(words) != _WITH_DATA[words[0]] or not words[-1].isdigit():
        raise OutOfStepError(f"it sent data without its size, as {show(words)}")
    size = int(words[-1])
    if size > _MAX_DATA:
        raise OutOfStepError(f"it announced too much data, as {show(words)}")
    return size


def number(text: str | bytes) -> int:
    """Read a number of the server; raise :exc:`ValueError` if the server cannot have such a number."""
    value = int(text)
    if not -_MAX_NUMBER < value < _MAX_NUMBER:
        raise ValueError(f"{value} is out of range")
    return value


def show(words: Sequence[bytes | bytearray], data: bytes = b"") -> str:
    """Show the beginning of a reply, escaped, for an error."""
    begin = b" ".join(word[:_SHOWN_BYTES] for word in words) + (b"\r\n" + data[:_SHOWN_BYTES] if data else b"")
    return repr(begin[:_SHOWN_BYTES])[1:] + ("…" if len(begin) > _SHOWN_BYTES else "")


# The possible replies to the first commands of a connection.
_FIRST_WORDS = (
    *(b"WATCHING", b"NOT_IGNORED", b"OUT_OF_MEMORY", b"INTERNAL_ERROR", b"DRAINING"),
    *(word.encode() for word in _OUT_OF_STEP),
)
# The first bytes of other servers that may listen in its place.
_STRANGERS = {
    b"HTTP/": "a web server",
    b"<": "a web server",
    b"SSH-": "an SSH server",
    b"220": "a mail or FTP server",
    b"\x15\x03": "a TLS server",
    b"+OK": "Redis",
    b"-": "Redis",
    b"ERROR\r\n": "memcached",
}


def is_reply(begin: bytes) -> bool:
    """Whether Beanstalkd's first reply can begin with these bytes."""
    word, end, _ = begin.replace(b"\r", b" ", 1).partition(b" ")
    return word in _FIRST_WORDS if end else any(each.startswith(word) for each in _FIRST_WORDS)


def show_stranger(begin: bytes) -> str:
    """Describe a server that is not Beanstalkd, by the beginning of its answer."""
    shown = repr(begin.strip().partition(b"\r")[0].partition(b"\n")[0][:_SHOWN_BYTES])[1:]
    name = next((name for beginning, name in _STRANGERS.items() if begin.startswith(beginning)), None)
    return f"{shown}, like {name}" if name else shown


def _checked(data: bytes) -> bytes:
    if not data:
        raise ConnectionError("the server closed the connection")
    return data
