"""Ctrl-C while modules are imported."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

from flask_backend.system.exits import ExitCode
from flask_backend.system.streams import streams


@contextmanager
def abort_on_interrupt() -> Generator[None]:
    """End the process at once on Ctrl-C, as click would.

    This is for imports: a KeyboardInterrupt in a callback of the import system is lost, and the process goes on. It
    does nothing where Ctrl-C does not raise one.
    """
    raises = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if not raises or threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal(signal.SIGINT, _abort)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _abort(_number: int, _frame: FrameType | None) -> NoReturn:
    streams.stderr.write(b"\nAborted!\n")
    os._exit(ExitCode.FAILED)
