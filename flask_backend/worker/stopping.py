"""The signals that stop a worker, and the wait that they interrupt."""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from types import FrameType

from flask_backend.broker.connection import Connection
from flask_backend.broker.wire import SPIN_S

from .signal_guard import STOPPING


class StopSignals:
    """The handlers of TERM and INT, which request a drain, of QUIT and HUP, and the wait that they interrupt.

    The handlers never raise, so that they never break off a task.
    """

    def __init__(
        self, on_drain: Callable[[], None], on_quit: Callable[[], None], on_hangup: Callable[[], None]
    ) -> None:
        self.requested = False
        self._mask: Iterable[int] = ()
        self._on_drain = on_drain
        self._on_quit = on_quit
        self._on_hangup = on_hangup
        self._wake_r, self._wake_w = _open_pipe()

    def install(self) -> None:
        self._hold_wakeup()
        signal.signal(signal.SIGTERM, self._drain)
        signal.signal(signal.SIGINT, self._drain)
        signal.signal(signal.SIGQUIT, self._quit)
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as set by nohup
            signal.signal(signal.SIGHUP, self._hang_up)
        # Restore the default handlers in forked children: multiprocessing would wait forever for a child that ignores
        # its terminate(). Block the signals during the fork: Python drops the ones that came before it.
        os.register_at_fork(
            before=self._before_fork,
            after_in_parent=self._after_fork_in_parent,
            after_in_child=self._after_fork_in_child,
        )

    def request(self) -> None:
        """Request the drain, from any thread."""
        self.requested = True
        with suppress(OSError):  # full of wake-ups already, or closed by a task
            os.write(self._wake_w, b"\0")

    def poll_with(self, connection: Connection) -> select.poll:
        """Return the poll object with which :meth:`wait` waits for ``connection``, valid while that is open."""
        poll = self._poll_signals()
        poll.register(connection, select.POLLIN)
        return poll

    def wait(self, timeout_s: float, poll: select.poll | None = None, *, soon: bool = False) -> bool:
        """Wait until the connection of ``poll`` is readable (True), a stop is requested or the timeout expires (False).

        Pass ``soon`` if the wait will be short: the process then polls without sleeping, see ``SPIN_S``.
        """
        started = time.monotonic()
        poll = poll or self._poll_signals()
        left_s, spin_s = timeout_s, SPIN_S if soon else 0.0
        while not self.requested and left_s > 0:
            if not spin_s:
                self._hold_wakeup()
            for fd, _ in poll.poll(0 if spin_s else left_s * 1000):
                if fd != self._wake_r:
                    return True
                os.read(fd, 4096)  # another signal, or the one that set `requested`
            if spin_s:
                os.sched_yield()  # let others use this CPU first, perhaps the broker
            waited_s = time.monotonic() - started
            left_s = timeout_s - waited_s
            if waited_s >= spin_s:
                spin_s = 0.0
        return False

    def _hold_wakeup(self) -> None:
        """Write each signal to the pipe, even if a task has changed that: a signal may come just before a wait.

        A new pipe reuses the descriptor number that the poll objects know.
        """
        try:
            signal.set_wakeup_fd(self._wake_w, warn_on_full_buffer=False)
        except (OSError, ValueError):  # closed; another file may have its number
            read_end, self._wake_w = _open_pipe()
            os.dup2(read_end, self._wake_r, inheritable=False)
            os.close(read_end)
            signal.set_wakeup_fd(self._wake_w, warn_on_full_buffer=False)

    def _poll_signals(self) -> select.poll:
        poll = select.poll()
        poll.register(self._wake_r, select.POLLIN)
        return poll

    def _drain(self, _number: int, _frame: FrameType | None) -> None:
        self._on_drain()

    def _quit(self, _number: int, _frame: FrameType | None) -> None:
        self._on_quit()

    def _hang_up(self, _number: int, _frame: FrameType | None) -> None:
        self._on_hangup()

    def _before_fork(self) -> None:
        self._mask = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)

    def _after_fork_in_parent(self) -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)

    def _after_fork_in_child(self) -> None:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGQUIT, signal.SIG_DFL)
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            signal.signal(signal.SIGHUP, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)


def _open_pipe() -> tuple[int, int]:
    read_end, write_end = os.pipe()
    os.set_blocking(read_end, False)
    os.set_blocking(write_end, False)
    return read_end, write_end
