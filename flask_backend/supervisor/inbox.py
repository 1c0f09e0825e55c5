"""Everything that the supervisor waits for: signals and the reports of children, as events, and other descriptors.

Signal handlers are empty: the interpreter writes the signal's number to a pipe (`set_wakeup_fd`), and the loop reads
it there. Children report through one pipe, in messages small enough to be written atomically (pipe(7), PIPE_BUF).
"""

from __future__ import annotations

import os
import select
import signal
import struct
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from enum import IntEnum
from types import FrameType

from flask_backend.system.stacks import dump_stacks

from .terminal import Terminal

SIGNALS = (
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGHUP,
    signal.SIGCHLD,
    signal.SIGTTIN,
    signal.SIGTTOU,
    signal.SIGUSR1,
)
_REPORT = struct.Struct("=Bi")
_READ_BYTES = _REPORT.size * 1000  # a multiple, so that every report is read whole


class ReportKind(IntEnum):
    READY = 1
    RECYCLE_DUE = 2
    LEFT = 3  # wakes the supervisor; the time is in the child's row, which survives a reload


@dataclass(frozen=True, slots=True)
class Report:
    """A report from a child."""

    kind: ReportKind
    pid: int


class Inbox:
    """Open it before the first fork; each child must :meth:`close_in_child`."""

    def __init__(self, terminal: Terminal) -> None:
        self._terminal = terminal
        self._wakeup_r, self._wakeup_w = os.pipe()
        self._report_r, self._report_w = os.pipe()
        for fd in (self._wakeup_r, self._wakeup_w, self._report_r):
            os.set_blocking(fd, False)
        self._poll = select.poll()
        self._poll.register(self._wakeup_r, select.POLLIN)
        self._poll.register(self._report_r, select.POLLIN)
        self._callbacks: dict[int, Callable[[], None]] = {}

    def install(self) -> None:
        signal.set_wakeup_fd(self._wakeup_w, warn_on_full_buffer=False)
        for number in SIGNALS:
            signal.signal(number, _leave_it_to_the_loop)
        self._ignore_hangup_as_before()
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)  # Python's own default, but the app's import may have changed it

    def register(self, fd: int, callback: Callable[[], None]) -> None:
        """Let :meth:`wait` call ``callback`` whenever the descriptor is readable or at its end.

        The callback must not block, and must unregister the descriptor at its end and before it is closed. The
        code that opened the descriptor closes it in children.
        """
        self._callbacks[fd] = callback
        self._poll.register(fd, select.POLLIN)

    def unregister(self, fd: int) -> None:
        del self._callbacks[fd]
        self._poll.unregister(fd)

    def wait(self, timeout_s: float | None) -> list[signal.Signals | Report]:
        """Return the events received, after waiting at most ``timeout_s`` seconds for the first."""
        events: list[signal.Signals | Report] = []
        # Round up to whole milliseconds: rounded down, the last millisecond would be a busy loop.
        for fd, _ in self._poll.poll(None if timeout_s is None else max(0.0, timeout_s) * 1000 + 1):
            if fd not in (self._wakeup_r, self._report_r):
                if callback := self._callbacks.get(fd):  # an earlier one in this turn may have unregistered it
                    callback()
                continue
            data = os.read(fd, _READ_BYTES)
            if fd == self._wakeup_r:
                events.extend(signal.Signals(number) for number in data)
            else:
                events.extend(Report(ReportKind(kind), pid) for kind, pid in _REPORT.iter_unpack(data))
        return events

    def send_again(self) -> None:
        """Resend to this process the signals that were received but not yet returned by :meth:`wait`.

        Blocked signals stay pending until they are unblocked, even by the next image.
        """
        with suppress(BlockingIOError):
            for number in os.read(self._wakeup_r, _READ_BYTES):
                os.kill(os.getpid(), number)

    def report(self, kind: ReportKind) -> None:
        """Send a report to the supervisor. For use in a child."""
        with suppress(BrokenPipeError):  # it is gone, and the lifeline reports that
            os.write(self._report_w, _REPORT.pack(kind, os.getpid()))

    def close_in_child(self) -> None:
        """Undo :meth:`install` and close what only the supervisor may read."""
        signal.set_wakeup_fd(-1)
        for number in SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        self._ignore_hangup_as_before()
        for fd in (self._wakeup_r, self._wakeup_w, self._report_r):
            os.close(fd)

    def wait_for_stop(self, timeout_s: float) -> None:
        """Wait at most ``timeout_s`` seconds for a stop signal. For use in any thread after the loop has ended.

        The main thread cannot do it while it joins other threads: a handler then runs late, or never.
        """
        poll = select.poll()
        poll.register(self._wakeup_r, select.POLLIN)
        deadline = time.monotonic() + timeout_s
        while (left_s := deadline - time.monotonic()) > 0:
            if poll.poll(left_s * 1000 + 1):
                came = os.read(self._wakeup_r, _READ_BYTES)
                if signal.SIGUSR1 in came:
                    dump_stacks()
                if any(number in came for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)):
                    return

    def _ignore_hangup_as_before(self) -> None:
        if self._terminal.ignores_hangup:
            signal.signal(signal.SIGHUP, signal.SIG_IGN)


def _leave_it_to_the_loop(_number: int, _frame: FrameType | None) -> None:
    pass
