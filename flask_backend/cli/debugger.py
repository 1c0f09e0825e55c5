"""``breakpoint()`` in a task: pdb, without its own ideas of Ctrl-C.

Plain pdb leaves Ctrl-C to the worker at its prompt, which drains, and a second one ends the process with the terminal
as pdb has set it; and from the first ``continue`` on Ctrl-C no longer stops the worker, but breaks into its loop.
"""

from __future__ import annotations

import inspect
import os
import pdb  # noqa: T100  # it is what this is about
import signal
import sys
import threading
from typing import Any


class _TaskDebugger(pdb.Pdb):
    """At its prompt Ctrl-C drops the line that was typed; elsewhere it is the worker's."""

    def interaction(self, *args: Any, **options: Any) -> None:
        if threading.current_thread() is not threading.main_thread():  # which alone may set handlers
            super().interaction(*args, **options)
            return
        workers = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            super().interaction(*args, **options)
        finally:
            signal.signal(signal.SIGINT, workers)


def install() -> None:
    """Have ``breakpoint()`` start it, unless the user prefers another debugger."""
    if not os.environ.get("PYTHONBREAKPOINT"):
        sys.breakpointhook = _stop_in_caller


def _stop_in_caller() -> None:
    frame = inspect.currentframe()
    _TaskDebugger(nosigint=True).set_trace(frame and frame.f_back)
