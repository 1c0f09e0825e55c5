"""USR1: a process writes its Python stacks to stderr."""

from __future__ import annotations

import faulthandler
import signal
from types import FrameType

from .streams import streams


def dump_on_signal() -> None:
    """Have USR1 write the stacks of this process, even if its interpreter is stuck."""
    # Python does not know faulthandler's handler. With one of its own below, it can be seen that a task sets another.
    signal.signal(signal.SIGUSR1, _dump)
    faulthandler.unregister(signal.SIGUSR1)  # an app may have registered it: then register() would change nothing
    faulthandler.register(signal.SIGUSR1, streams.stderr.fileno())


def dump_stacks() -> None:
    """Write the Python stacks of this process to stderr, if that has room for them."""
    if streams.stderr.has_room():
        faulthandler.dump_traceback(streams.stderr.fileno())
    else:
        streams.stderr.lost += 1


def _dump(_number: int, _frame: FrameType | None) -> None:
    dump_stacks()
