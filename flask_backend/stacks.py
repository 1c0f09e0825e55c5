"""USR1: a process writes its Python stacks to stderr."""

from __future__ import annotations

import faulthandler
import signal
from types import FrameType


def dump_on_signal() -> None:
    """Have USR1 write the stacks of this process, even if its interpreter is stuck."""
    # Python does not know faulthandler's handler. With one of its own below, it can be seen that a task sets another.
    signal.signal(signal.SIGUSR1, _dump)
    faulthandler.unregister(signal.SIGUSR1)  # an app may have registered it: then register() would change nothing
    faulthandler.register(signal.SIGUSR1)


def _dump(_number: int, _frame: FrameType | None) -> None:
    faulthandler.dump_traceback()
