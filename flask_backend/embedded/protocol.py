"""The beanstalk protocol: bytes to commands, results to bytes. Pure: it uses neither sockets nor jobs.

It parses malformed commands as beanstalkd 1.13 does, as far as clients can notice.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

MAX_LINE = 224  # bytes, including the line break: the limit of the protocol
CRLF = b"\r\n"

BAD_FORMAT = b"BAD_FORMAT\r\n"
BURIED = b"BURIED\r\n"
DEADLINE_SOON = b"DEADLINE_SOON\r\n"
DELETED = b"DELETED\r\n"
DRAINING = b"DRAINING\r\n"
EXPECTED_CRLF = b"EXPECTED_CRLF\r\n"
JOB_TOO_BIG = b"JOB_TOO_BIG\r\n"
KICKED = b"KICKED\r\n"
NOT_FOUND = b"NOT_FOUND\r\n"
NOT_IGNORED = b"NOT_IGNORED\r\n"
OUT_OF_MEMORY = b"OUT_OF_MEMORY\r\n"
PAUSED = b"PAUSED\r\n"
RELEASED = b"RELEASED\r\n"
TIMED_OUT = b"TIMED_OUT\r\n"
TOUCHED = b"TOUCHED\r\n"
UNKNOWN_COMMAND = b"UNKNOWN_COMMAND\r\n"


class Command(NamedTuple):
    """A well-formed command: its name, tube, numbers in order, and the body of a job."""

    name: str
    tube: str = ""
    numbers: tuple[int, ...] = ()
    body: bytes = b""


def line(*words: object) -> bytes:
    """Return a reply of one line."""
    return b"%b\r\n" % " ".join(map(str, words)).encode("ascii")


def with_job(status: bytes, job_id: int, body: bytes) -> bytes:
    return b"%b %d %d\r\n%b\r\n" % (status, job_id, len(body), body)


def with_mapping(values: Mapping[str, object]) -> bytes:
    """Return a reply with statistics."""
    return _with_yaml(f"{key}: {value}\n" for key, value in values.items())


def quoted(text: str) -> str:
    """Return a name as the statistics quote it."""
    return f'"{text}"'


def with_list(names: Iterable[str]) -> bytes:
    return _with_yaml(f"- {name}\n" for name in names)


def _with_yaml(lines: Iterable[str]) -> bytes:
    data = ("---\n" + "".join(lines)).encode("ascii", "replace")
    return b"OK %d\r\n%b\r\n" % (len(data), data)


# -- commands ------------------------------------------------------------------------------------------------

# The name of a tube.
TUBE = rb"([A-Za-z0-9+/;.$_()][A-Za-z0-9+/;.$_()-]{0,199})"
_NUMBER = rb" *(\d+)"
_ID = 2**64  # the bounds of numbers
_U32 = 2**32


class _Shape(NamedTuple):
    """The arguments after the name of a command."""

    pattern: re.Pattern[bytes]
    bounds: tuple[int, ...] = ()
    has_tube: bool = False


def _numbers(*bounds: int) -> _Shape:
    return _Shape(re.compile(_NUMBER + (len(bounds) - 1) * (b" " + _NUMBER)), bounds)


_NOTHING = _Shape(re.compile(b""))
_ONE_TUBE = _Shape(re.compile(TUBE), has_tube=True)

# A command with arguments is not recognised without the space.
_SHAPES = {
    b"put ": _numbers(_U32, _U32, _U32, _U32),  # priority, delay, TTR, size
    b"use ": _ONE_TUBE,
    b"reserve": _NOTHING,
    # Read as C does: any text may follow the number. A timeout is a non-negative int.
    b"reserve-with-timeout ": _Shape(re.compile(_NUMBER + rb"(?s:.*)"), (2**31,)),
    b"reserve-job ": _numbers(_ID),
    b"delete ": _numbers(_ID),
    b"release ": _numbers(_ID, _U32, _U32),  # id, priority, delay
    b"bury ": _numbers(_ID, _U32),
    b"touch ": _numbers(_ID),
    b"watch ": _ONE_TUBE,
    b"ignore ": _ONE_TUBE,
    b"peek ": _numbers(_ID),
    b"peek-ready": _NOTHING,
    b"peek-delayed": _NOTHING,
    b"peek-buried": _NOTHING,
    b"kick ": _Shape(re.compile(rb"(?s:\s*([+-]?\d+).*)"), (_ID,)),
    b"kick-job ": _numbers(_ID),
    b"stats": _NOTHING,
    b"stats-job ": _numbers(_ID),
    b"stats-tube ": _ONE_TUBE,
    b"list-tubes": _NOTHING,
    b"list-tube-used": _NOTHING,
    b"list-tubes-watched": _NOTHING,
    b"pause-tube ": _Shape(re.compile(b" *" + TUBE + b" " + _NUMBER), (_U32,), has_tube=True),
    b"quit": _NOTHING,
}
_NAMES = {name: name.rstrip().decode() for name in _SHAPES}
# A line that begins with one of these is a malformed command of that name.
_BEGINNINGS = (*(name for name in _SHAPES if not name.endswith(b" ")), b"pause-tube")


def parse(text: bytes) -> Command | bytes:
    """Return the command in a line, or the reply to an invalid line."""
    if b"\0" in text:  # beanstalkd refuses it before it reads the name, even of an unknown command or of quit
        return BAD_FORMAT
    word, space, rest = text.partition(b" ")
    shape = _SHAPES.get(name := word + space)
    if shape is None:
        if text.startswith(b"quit"):
            return Command("quit")
        return BAD_FORMAT if text.startswith(_BEGINNINGS) else UNKNOWN_COMMAND
    match = shape.pattern.fullmatch(rest)
    if match is None:
        return BAD_FORMAT
    tube, digits = (match[1].decode(), match.groups()[1:]) if shape.has_tube else ("", match.groups())
    numbers = tuple(int(number or 0) for number in digits)
    if any(number >= bound for number, bound in zip(numbers, shape.bounds, strict=True)):
        return BAD_FORMAT
    return Command(_NAMES[name], tube, numbers)


class Reader:
    """Splits the bytes from a client into commands."""

    def __init__(self, max_job_size: int) -> None:
        self._max_job_size = max_job_size
        self._buffer = bytearray()
        self._put: Command | None = None  # a put whose body has not arrived yet
        self._excess = 0  # bytes of an oversized body that are still to be discarded
        self._is_in_long_line = False

    def __len__(self) -> int:
        """How many bytes are unread."""
        return len(self._buffer)

    def feed(self, data: bytes) -> None:
        self._buffer += data

    def next(self) -> Command | bytes | None:
        """Return the next command, or the reply to an invalid one, or None if more bytes are needed."""
        if self._excess:
            return self._skip_excess()
        if self._put:
            return self._read_body(self._put)
        text = self._read_line()
        if text is None:
            return None
        command = BAD_FORMAT if self._is_in_long_line else parse(text)
        self._is_in_long_line = False
        if isinstance(command, bytes) or command.name != "put":
            return command
        size = command.numbers[-1]
        if size > self._max_job_size:
            self._excess = size + len(CRLF)
        else:
            self._put = command
        return self.next()

    def _read_line(self) -> bytes | None:
        end = self._buffer.find(CRLF, 0, None if self._is_in_long_line else MAX_LINE)
        if end < 0 and len(self._buffer) >= MAX_LINE:
            self._is_in_long_line = True
            end = self._buffer.find(CRLF)
        if end < 0:
            if self._is_in_long_line:
                del self._buffer[:-1]  # the last byte may be half a line break
            return None
        text = bytes(self._buffer[:end])
        del self._buffer[: end + len(CRLF)]
        return text

    def _read_body(self, put: Command) -> Command | bytes | None:
        size = put.numbers[-1]
        if len(self._buffer) < size + len(CRLF):
            return None
        body = bytes(self._buffer[: size + len(CRLF)])
        del self._buffer[: size + len(CRLF)]
        self._put = None
        return put._replace(body=body[:size]) if body.endswith(CRLF) else EXPECTED_CRLF

    def _skip_excess(self) -> bytes | None:
        skipped = min(self._excess, len(self._buffer))
        del self._buffer[:skipped]
        self._excess -= skipped
        return None if self._excess else JOB_TOO_BIG
