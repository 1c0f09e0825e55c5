"""The signals that stop a worker, and the wait that they cut short."""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from types import FrameType

from .broker import Connection
from .wire import SPIN_S


class StopSignals:
    """TERM and INT, which ask for a drain, and QUIT; together with the wait that they cut short.

    The handlers never raise, so that a task is never torn in two.
    """

    def __init__(self, on_drain: Callable[[], None], on_quit: Callable[[], None]) -> None:
        self.requested = False
        self._mask: Iterable[int] = ()
        self._on_drain = on_drain
        self._on_quit = on_quit
        self._wake_r, self._wake_w = os.pipe()
        os.set_blocking(self._wake_r, False)
        os.set_blocking(self._wake_w, False)

    def install(self) -> None:
        signal.set_wakeup_fd(self._wake_w, warn_on_full_buffer=False)
        signal.signal(signal.SIGTERM, self._drain)
        signal.signal(signal.SIGINT, self._drain)
        signal.signal(signal.SIGQUIT, self._quit)
        # The processes that a task forks are no workers: they end when they are told to, or multiprocessing would wait
        # for ever for a child that it has terminated. Blocked until then, for Python forgets what came before.
        os.register_at_fork(
            before=self._before_fork,
            after_in_parent=self._after_fork_in_parent,
            after_in_child=self._after_fork_in_child,
        )

    def request(self) -> None:
        """Ask for the drain, from whatever thread."""
        self.requested = True
        with suppress(BlockingIOError):  # full of wake-ups already
            os.write(self._wake_w, b"\0")

    def poll_with(self, connection: Connection) -> select.poll:
        """Return what :meth:`wait` needs to wait for ``connection``, for as long as that is open."""
        poll = self._poll_signals()
        poll.register(connection, select.POLLIN)
        return poll

    def wait(self, timeout_s: float, poll: select.poll | None = None, *, soon: bool = False) -> bool:
        """Wait until the connection of ``poll`` is readable (True), a stop is requested or the time is over (False).

        ``soon`` says that the wait will be short: then the process looks for it without sleeping, see ``SPIN_S``.
        """
        started = time.monotonic()
        poll = poll or self._poll_signals()
        left_s, spin_s = timeout_s, SPIN_S if soon else 0.0
        while not self.requested and left_s > 0:
            for fd, _ in poll.poll(0 if spin_s else left_s * 1000):
                if fd != self._wake_r:
                    return True
                os.read(fd, 4096)  # another signal, or the one that set `requested`
            if spin_s:
                os.sched_yield()  # whoever else wants this CPU comes first, perhaps the broker
            waited_s = time.monotonic() - started
            left_s = timeout_s - waited_s
            if waited_s >= spin_s:
                spin_s = 0.0
        return False

    def _poll_signals(self) -> select.poll:
        poll = select.poll()
        poll.register(self._wake_r, select.POLLIN)
        return poll

    def _drain(self, _number: int, _frame: FrameType | None) -> None:
        self._on_drain()

    def _quit(self, _number: int, _frame: FrameType | None) -> None:
        self._on_quit()

    def _before_fork(self) -> None:
        self._mask = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT))

    def _after_fork_in_parent(self) -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)

    def _after_fork_in_child(self) -> None:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGQUIT, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)
