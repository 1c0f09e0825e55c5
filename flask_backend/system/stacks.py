"""USR1: a process writes its Python stacks to stderr."""

from __future__ import annotations

import faulthandler
import signal
from types import FrameType

from .streams import streams

# Makes faulthandler write the stacks of a stuck process before it is killed, even if its interpreter is stuck.
# faulthandler reads the frames of threads that may still run: a few signals in a thousand end a busy process of CPython
# 3.11 or 3.13 with a segmentation fault, so use this only for a process that is about to be killed.
STUCK = signal.SIGRTMIN + 1 if hasattr(signal, "SIGRTMIN") else signal.SIGUSR1

_dumps = False


def dump_on_signal() -> None:
    """Make USR1 write the stacks of this process between two bytecode steps, and ``STUCK`` write them at any moment."""
    faulthandler.unregister(signal.SIGUSR1)  # an app may have registered it: this restores the handler before
    signal.signal(signal.SIGUSR1, _dump)
    faulthandler.register(STUCK, streams.stderr.fileno())


def dump_stacks() -> None:
    """Write the Python stacks of this process to stderr, if it has room for them."""
    if streams.stderr.has_room():
        faulthandler.dump_traceback(streams.stderr.fileno())
    else:
        streams.stderr.lost += 1


def _dump(_number: int, _frame: FrameType | None) -> None:
    # Signals that arrive faster than stacks are written would nest these handlers without limit.
    global _dumps  # noqa: PLW0603
    if not _dumps:
        _dumps = True
        try:
            dump_stacks()
        finally:
            _dumps = False
