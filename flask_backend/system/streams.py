"""The standard streams of our commands: a process goes on even if its output fails.

A stream may be closed, its reader may be gone, or its disk may be full. If its reader does not read, a plain write
blocks forever, without an exception. The streams that :meth:`Streams.install` puts in place write only if there is
room. They count the lines that they lose, and report the number on stderr as soon as they can.
"""

from __future__ import annotations

import errno
import io
import os
import stat
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from select import PIPE_BUF, POLLOUT, poll  # by name: eventlet removes poll() from the module
from typing import Any, TextIO

from flask_backend.errors import OutputError

STDIN, STDOUT, STDERR = range(3)
# How long a write waits for a slow reader. After a loss, writes do not wait until there is room again.
PATIENCE_S = 0.1
# A worker may wait longer than its supervisor: a task that prints much often outruns the collector of its lines.
WORKER_PATIENCE_S = 2.0
# How often stderr reports the losses of stdout.
REPORT_S = 60.0


def hold_numbers() -> None:
    """Open /dev/null in place of closed standard streams, so that no other file or socket gets their numbers."""
    for number in (STDIN, STDOUT, STDERR):
        try:
            os.fstat(number)
        except OSError:
            fd = os.open(os.devnull, os.O_RDWR)
            if fd == number:
                os.set_inheritable(number, True)
            else:
                os.dup2(fd, number)
                os.close(fd)


class Outlet:
    """Writes to a standard stream without an exception and without a long wait."""

    def __init__(self, number: int) -> None:
        self.lost = 0  # lines
        self.patience_s = PATIENCE_S
        self.is_broken = False  # the last write found no reader
        self._number = number
        self._fd = number  # or another description of the same file, see fileno()
        self._file: tuple[int, int] | None = None
        self._most = PIPE_BUF  # bytes in one write
        self._never_blocks = False
        self._has_failed = False  # at the last write
        self._is_cut = False  # the output ends in the middle of a line

    def write(self, data: bytes) -> None:
        """Write the data, or count its lines as lost."""
        if not self.try_to_write(data):
            self.lost += max(1, data.count(b"\n"))

    def write_at_once(self, data: bytes) -> None:
        """Write the data in one piece if there is room for all of it, or in several; count a loss as one line."""
        if not self.try_to_write(data, at_once=True):
            self.lost += 1

    def try_to_write(self, data: bytes, *, at_once: bool = False) -> bool:
        """Write the data; return whether all of it was written."""
        fd = self.fileno()
        most = len(data) + 1 if at_once and self._never_blocks else self._most
        view = memoryview(b"\n" + data if self._is_cut else data)
        done = 0
        self.is_broken = False
        try:
            while done < len(view) and _wait_for_room(fd, 0 if self._has_failed else self.patience_s):
                done += os.write(fd, view[done : done + most])
                self._has_failed = False
        except OSError as error:  # the disk is full, the reader or the terminal is gone
            self.is_broken = error.errno in (errno.EPIPE, errno.EIO)
        self._has_failed = done < len(view)
        if done:
            self._is_cut = self._has_failed
        return not self._has_failed

    def has_room(self) -> bool:
        """Whether a short text can be written at once."""
        return _wait_for_room(self.fileno(), 0)

    def fileno(self) -> int:
        """Return the descriptor to write to. It follows the stream: the app may have closed or redirected it."""
        try:
            found = os.fstat(self._number)
        except OSError:
            hold_numbers()
            found = os.fstat(self._number)
        if self._file != (found.st_dev, found.st_ino):
            self._file = found.st_dev, found.st_ino
            if self._fd != self._number:
                os.close(self._fd)
            self._fd = self._number
            self._never_blocks = stat.S_ISREG(found.st_mode)
            self._most = sys.maxsize if self._never_blocks else PIPE_BUF
            if stat.S_ISFIFO(found.st_mode) or os.isatty(self._number):
                # O_NONBLOCK on the inherited description would affect all processes that share it. On our own
                # description a write cannot block, even if another process takes the room that poll() has found.
                with suppress(OSError):  # no /proc; a pipe of another user
                    self._fd = os.open(f"/proc/self/fd/{self._number}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY)
                    self._never_blocks = True
        return self._fd


def _wait_for_room(fd: int, patience_s: float) -> bool:
    waiting = poll()
    waiting.register(fd, POLLOUT)
    return bool(waiting.poll(patience_s * 1000))


class Streams:
    """The streams of this process. ``word`` turns a report about losses into a line."""

    def __init__(self) -> None:
        self.stdout, self.stderr = Outlet(STDOUT), Outlet(STDERR)
        self.word: Callable[[str], str] = "flask-backend: {}\n".format
        self._next_report_of_stdout = 0.0

    def install(self) -> None:
        """Replace the interpreter's streams, except where the program has set its own objects."""
        hold_numbers()
        os.register_at_fork(after_in_child=self._forget_losses)
        if sys.stdin is None:
            sys.stdin = open(STDIN, closefd=False)  # noqa: SIM115  # open as long as the process
        sys.stdout = _replace(sys.stdout, _Results(self, self.stdout, STDOUT), "backslashreplace")
        sys.stderr = _replace(sys.stderr, _Stream(self, self.stderr, STDERR), "backslashreplace")

    def open_stderr(self) -> io.TextIOWrapper:
        """Return another file for stderr, even if the program has replaced ``sys.stderr``."""
        hold_numbers()
        return _open(_Stream(self, self.stderr, STDERR), "backslashreplace")

    def find_stderr(self) -> TextIO:
        """Return the program's stderr if it is writable, otherwise another file for stderr."""
        try:
            _ = sys.stderr.write
        except Exception:  # not a file: the app may have set any object
            return self.open_stderr()
        return sys.stderr

    def expect_no_results(self) -> None:
        """Treat stdout like stderr: the command leaves it to the app's output and the log."""
        if isinstance(raw := _raw_of(sys.stdout), _Results):
            raw.is_for_results = False

    def wait_for_readers(self, patience_s: float) -> None:
        self.stdout.patience_s = self.stderr.patience_s = patience_s

    def report_losses(self) -> None:
        """Report the lost lines on stderr, if any, and if there is room."""
        if (lost := self.stderr.lost) and self.stderr.try_to_write(self._word(lost, "stderr")):
            self.stderr.lost -= lost
        if (lost := self.stdout.lost) and time.monotonic() >= self._next_report_of_stdout:
            self._next_report_of_stdout = time.monotonic() + REPORT_S
            if self.stderr.try_to_write(self._word(lost, "stdout")):
                self.stdout.lost -= lost

    def _word(self, lost: int, stream: str) -> bytes:
        lines = "1 line" if lost == 1 else f"{lost} lines"
        return self.word(f"{lines} could not be written to {stream} and are lost").encode(errors="backslashreplace")

    def _forget_losses(self) -> None:
        self.stdout.lost = self.stderr.lost = 0  # the parent reports them


streams = Streams()


class _Stream(io.FileIO):
    """A standard stream whose writes never fail."""

    def __init__(self, owner: Streams, outlet: Outlet, number: int) -> None:
        super().__init__(number, "w", closefd=False)
        self._owner = owner
        self._outlet = outlet

    def write(self, data: Any, /) -> int:
        if data:
            self._owner.report_losses()
            self._outlet.write(bytes(data))
        return len(data)


class _Results(_Stream):
    """The stdout of a command that prints results: it waits for its reader, and a loss ends the command."""

    is_for_results = True
    _has_failed = False

    def write(self, data: Any, /) -> int:
        if not self.is_for_results:
            return super().write(data)
        if self._has_failed or not data:  # the interpreter would report it again at exit; click tries without data
            return len(data)
        try:
            return io.FileIO.write(self, data)
        except BrokenPipeError:  # click ends without a message
            self._has_failed = True
            raise
        except OSError as error:
            self._has_failed = True
            raise OutputError(f"cannot write to stdout: {error.strerror}") from error


def _replace(old: Any, new: _Stream, errors: str) -> Any:
    """Return a file in place of ``old``. ``errors`` handles characters that the encoding lacks: any text passes."""
    if old is None:
        return _open(new, errors)
    if not _leads_to(old, new.fileno()) or isinstance(_raw_of(old), _Stream):
        return old
    with suppress(OSError):
        old.flush()
    return io.TextIOWrapper(
        io.BufferedWriter(new),
        old.encoding,
        errors if old.errors in ("strict", "surrogateescape") else old.errors,
        newline="\n",
        # With PYTHONUNBUFFERED each argument of print() would be a write: the lines of several workers would mix.
        line_buffering=old.line_buffering or old.write_through,
    )


def _open(raw: _Stream, errors: str) -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BufferedWriter(raw), "utf-8", errors, line_buffering=True)


def _leads_to(stream: Any, number: int) -> bool:
    try:
        return isinstance(stream, io.TextIOWrapper) and stream.fileno() == number
    except (OSError, ValueError):  # not a file, or closed
        return False


def _raw_of(stream: Any) -> Any:
    buffer = getattr(stream, "buffer", None)
    return getattr(buffer, "raw", buffer)


def flush() -> None:
    """Flush the program's current streams."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):  # not a file: the app may have set any object
            stream.flush()
