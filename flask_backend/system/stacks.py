"""USR1: a process writes its Python stacks to stderr."""

from __future__ import annotations

import faulthandler
import signal
from types import FrameType

from .streams import streams

# Has faulthandler write the stacks of a process that is stuck, even if its interpreter is, before it is killed.
# faulthandler reads the frames of a thread that may run on meanwhile, and some signals in a thousand end a busy process
# of CPython 3.11 or 3.13 with a segmentation fault, so this is only for a process that is to be killed.
STUCK = signal.SIGRTMIN + 1 if hasattr(signal, "SIGRTMIN") else signal.SIGUSR1

_dumps = False


def dump_on_signal() -> None:
    """Have USR1 write the stacks of this process between two steps of its interpreter, and ``STUCK`` at any moment."""
    faulthandler.unregister(signal.SIGUSR1)  # an app may have registered it: this puts back the handler before that
    signal.signal(signal.SIGUSR1, _dump)
    faulthandler.register(STUCK, streams.stderr.fileno())


def dump_stacks() -> None:
    """Write the Python stacks of this process to stderr, if that has room for them."""
    if streams.stderr.has_room():
        faulthandler.dump_traceback(streams.stderr.fileno())
    else:
        streams.stderr.lost += 1


def _dump(_number: int, _frame: FrameType | None) -> None:
    # Signals that follow each other faster than stacks are written would nest these handlers without end.
    global _dumps  # noqa: PLW0603
    if not _dumps:
        _dumps = True
        try:
            dump_stacks()
        finally:
            _dumps = False
