"""``breakpoint()`` in a task: pdb with another handling of Ctrl-C.

At the prompt of plain pdb, Ctrl-C goes to the worker, which drains; a second one ends the process and leaves the
terminal as pdb has set it. After the first ``continue``, Ctrl-C no longer stops the worker but breaks into its loop.
"""

from __future__ import annotations

import inspect
import os
import pdb  # noqa: T100  # the subject of this module
import signal
import sys
import threading
from typing import Any


class _TaskDebugger(pdb.Pdb):
    """A pdb whose prompt drops the typed line on Ctrl-C; elsewhere Ctrl-C goes to the worker."""

    def interaction(self, *args: Any, **options: Any) -> None:
        if threading.current_thread() is not threading.main_thread():  # only the main thread may set handlers
            super().interaction(*args, **options)
            return
        workers = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            super().interaction(*args, **options)
        finally:
            signal.signal(signal.SIGINT, workers)


def install() -> None:
    """Make ``breakpoint()`` start this debugger, unless the user prefers another one."""
    if not os.environ.get("PYTHONBREAKPOINT"):
        sys.breakpointhook = _stop_in_caller


def _stop_in_caller() -> None:
    frame = inspect.currentframe()
    _TaskDebugger(nosigint=True).set_trace(frame and frame.f_back)
