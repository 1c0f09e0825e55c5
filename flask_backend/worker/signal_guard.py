"""The signals that a worker relies on, kept from what the app's code does with them.

A hook or a task may set a handler, block a signal, or leave either to a library: asyncio's ``add_signal_handler``
leaves the default action behind, and then a TERM that should drain the worker kills its next task. So the worker looks
after its hooks and after each job, and puts back what it had. Handlers that C code sets cannot be seen here.
"""

from __future__ import annotations

import importlib
import signal
from collections.abc import Callable, Iterable

from flask_backend.system.loggers import get_logger

logger = get_logger("flask_backend.worker")

# Raises the time limit in the thread that runs the task. Not ALRM, which tasks use for alarms of their own.
INTERRUPT = signal.SIGUSR2
STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)
# The others: HUP is for the supervisor, USR1 writes the stacks, a write to a broken connection must be an error and not
# the end, and a worker, in a process group of its own, must not stop when it uses the terminal.
RELIED_ON = (*STOPPING, INTERRUPT, signal.SIGHUP, signal.SIGUSR1, signal.SIGPIPE, signal.SIGTTIN, signal.SIGTTOU)

Handler = Callable[..., object] | int

# The functions of `signal` make an enum of each answer, which takes many times as long.
_signal = importlib.import_module("_signal")
_getsignal: Callable[[int], Handler | None] = _signal.getsignal
_sigmask: Callable[[int, Iterable[int]], set[int]] = _signal.pthread_sigmask


class SignalGuard:
    """Knows the handlers and the mask that the worker needs. For the main thread."""

    def __init__(self) -> None:
        self._handlers: list[tuple[int, Handler]] = []
        self._mask: set[int] = set()
        self._told: set[str] = set()

    def begin(self) -> None:
        """Take the handlers of now for the worker's own, and let their signals through."""
        signal.pthread_sigmask(signal.SIG_UNBLOCK, RELIED_ON)
        found = ((int(number), _getsignal(number)) for number in RELIED_ON)
        self._handlers = [(number, handler) for number, handler in found if handler is not None]

    def look_after_hooks(self) -> None:
        """Put back what the hooks have changed. Signals of their own that they have blocked stay so."""
        self._mask = _sigmask(signal.SIG_BLOCK, ()).difference(RELIED_ON)
        self.look_after("a before_first_task hook")

    def look_after(self, culprit: str) -> None:
        """Put back what has changed. Done after each job: it takes less than a microsecond."""
        for number, handler in self._handlers:
            if _getsignal(number) is not handler:
                break
        else:
            if _sigmask(signal.SIG_BLOCK, ()) == self._mask:
                return
        self._mend(culprit)

    def _mend(self, culprit: str) -> None:
        changes: list[str] = []
        for number, handler in self._handlers:
            found = _getsignal(number)
            if found is not handler:
                signal.signal(number, handler)
                changes.append(f"{_name(number)} {_describe(found)}")
        # Last: it lets through what has come meanwhile.
        mask = _sigmask(signal.SIG_SETMASK, self._mask)
        changes += [f"{_name(number)} is blocked" for number in sorted(mask - self._mask)]
        changes += [f"{_name(number)} is not blocked" for number in sorted(self._mask - mask)]
        told = ", ".join(changes)
        if told not in self._told:
            self._told.add(told)
            logger.warning(
                "%s has changed the signals of this worker: %s. The worker has put back what it needs to stop and to "
                "enforce time limits; for code that is to run at its end use atexit",
                culprit,
                told,
            )


def name_handlers(ours: Callable[..., object]) -> str:
    """Name the signals that a function other than ``ours`` handles, and the functions; empty if there are none."""
    found = ((number, signal.getsignal(number)) for number in RELIED_ON)
    return ", ".join(f"{number.name} {_describe(each)}" for number, each in found if callable(each) and each != ours)


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # one of the real-time signals
        return f"signal {number}"


def _describe(handler: Callable[..., object] | int | None) -> str:
    if handler is None:
        return "is handled outside Python"
    if isinstance(handler, int):
        return "is ignored" if handler == signal.SIG_IGN else "has its default action"
    function = handler if hasattr(handler, "__qualname__") else type(handler)
    return f"is handled by {function.__module__}.{function.__qualname__}"
