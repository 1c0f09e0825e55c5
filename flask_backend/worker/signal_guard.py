"""Protection of the signals that a worker relies on against changes by the app's code.

A hook, a task or a library may set a handler or block a signal. For example, asyncio's ``add_signal_handler`` leaves
the default action behind, and then a TERM that should drain the worker kills its next task. So the worker checks its
signals after the hooks and after each job, and restores them. It cannot detect handlers set by C code.
"""

from __future__ import annotations

import importlib
import signal
from collections.abc import Callable, Iterable

from flask_backend.system.loggers import get_logger

from . import wording

logger = get_logger("flask_backend.worker")

# Raises the time limit in the thread that runs the task. Not ALRM: tasks use it for their own alarms.
INTERRUPT = signal.SIGUSR2
STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)
# The others: HUP is for the supervisor, USR1 writes the stacks, a write to a broken connection must raise an error and
# not end the process, and a worker, in its own process group, must not stop when it uses the terminal.
RELIED_ON = (*STOPPING, INTERRUPT, signal.SIGHUP, signal.SIGUSR1, signal.SIGPIPE, signal.SIGTTIN, signal.SIGTTOU)

Handler = Callable[..., object] | int

# The functions of `signal` convert each result to enums, which takes many times as long: 35 us for a mask of 60.
_signal = importlib.import_module("_signal")
_getsignal: Callable[[int], Handler | None] = _signal.getsignal
sigmask: Callable[[int, Iterable[int]], set[int]] = _signal.pthread_sigmask


class SignalGuard:
    """Knows the handlers and the mask that the worker needs. For the main thread."""

    def __init__(self) -> None:
        self._handlers: list[tuple[int, Handler]] = []
        self._mask: set[int] = set()
        self._told: set[str] = set()

    def begin(self) -> None:
        """Record the current handlers as the worker's own, and unblock their signals."""
        signal.pthread_sigmask(signal.SIG_UNBLOCK, RELIED_ON)
        found = ((int(number), _getsignal(number)) for number in RELIED_ON)
        self._handlers = [(number, handler) for number, handler in found if handler is not None]

    def look_after_hooks(self) -> None:
        """Restore the signals after the hooks. Other signals that the hooks have blocked stay blocked."""
        self._mask = sigmask(signal.SIG_BLOCK, ()).difference(RELIED_ON)
        self.look_after("a before_first_task hook")

    def look_after(self, culprit: str) -> None:
        """Restore the signals. Runs after each job: the check takes less than a microsecond."""
        for number, handler in self._handlers:
            if _getsignal(number) is not handler:
                break
        else:
            if sigmask(signal.SIG_BLOCK, ()) == self._mask:
                return
        self._mend(culprit)

    def _mend(self, culprit: str) -> None:
        changes: list[str] = []
        for number, handler in self._handlers:
            found = _getsignal(number)
            if found is not handler:
                signal.signal(number, handler)
                changes.append(f"{_name(number)} {_describe(found)}")
        # Last, since unblocking delivers the pending signals.
        mask = sigmask(signal.SIG_SETMASK, self._mask)
        changes += [f"{_name(number)} is blocked" for number in sorted(mask - self._mask)]
        changes += [f"{_name(number)} is not blocked" for number in sorted(self._mask - mask)]
        told = ", ".join(changes)
        if told not in self._told:
            self._told.add(told)
            logger.warning(wording.SIGNALS_CHANGED, culprit, told)


def name_handlers(ours: Callable[..., object]) -> str:
    """Return the signals handled by functions other than ``ours``, with these functions; empty if not any."""
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
