"""The time limit of the running task: an exception that a signal raises inside it.

A signal handler that raises breaks off the code that runs at that moment. So the exception is raised only in the task's
own code: a coroutine is cancelled where it awaits, so that asyncio and background tasks stay whole, and code that is
logging a line is interrupted after that, since log handlers swallow the exceptions raised inside them.
"""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import TypeVar

from flask_backend.errors import TaskTimeout

from .event_loop import EventLoop
from .signal_guard import INTERRUPT

T = TypeVar("T")


class TimeLimit:
    """Runs one call at a time, in the main thread, and raises :exc:`TaskTimeout` in it at its limit."""

    def __init__(self, event_loop: EventLoop) -> None:
        self._event_loop = event_loop
        self._due_at: float | None = None  # from when on the running task may be interrupted

    def install(self) -> None:
        signal.signal(INTERRUPT, self._on_interrupt)

    def run(self, function: Callable[[T], object], argument: T, limit_at: float | None) -> BaseException | None:
        """Call ``function(argument)``; return the exception that it raised, if any.

        ``limit_at`` is on the monotonic clock. A limit reached just after the end is ignored.
        """
        try:
            return self._run(function, argument, limit_at)
        except TaskTimeout as error:  # raised while another error propagated
            return error

    def _run(self, function: Callable[[T], object], argument: T, limit_at: float | None) -> BaseException | None:
        is_done = False
        try:
            self._due_at = limit_at
            function(argument)
            is_done = True
            self._due_at = None
        except BaseException as error:  # a task may raise anything, even SystemExit; its job is settled
            self._due_at = None
            return None if is_done else error
        return None

    def interrupt(self) -> None:
        """Raise the time limit inside the task. Runs in the heartbeat's thread."""
        signal.pthread_kill(threading.main_thread().ident or 0, INTERRUPT)
        self._event_loop.wake()

    def _on_interrupt(self, _number: int, frame: FrameType | None) -> None:
        if self._event_loop.is_running and not self._event_loop.runs_code_of_task(frame):
            # Raised here, it would hit asyncio or a background task. A coroutine is cancelled where it awaits.
            if (error := self._take()) is not None:
                self._event_loop.cancel(error)
        elif (logs := _caller_of_logging(frame)) is not None:
            _call_back_in(logs, self._raise)
        else:
            self._raise()

    def _raise(self) -> None:
        if (error := self._take()) is not None:
            self._event_loop.expect(error)
            raise error

    def _take(self) -> TaskTimeout | None:
        """Return the error of the task's time limit, once; None if that task has already ended."""
        if self._due_at is None or time.monotonic() < self._due_at:
            return None
        self._due_at = None
        return TaskTimeout("the task has reached its time limit")


def _caller_of_logging(frame: FrameType | None) -> FrameType | None:
    """Return the frame that is logging a line, if any."""
    caller: FrameType | None = None
    while frame is not None:
        if frame.f_globals.get("__name__") == "logging":
            caller = frame.f_back
        frame = frame.f_back
    return caller


def _call_back_in(frame: FrameType, callback: Callable[[], None]) -> None:
    """Call ``callback`` in ``frame`` as soon as its current call returns, so that its exception is raised there."""
    previous = sys.gettrace()

    def trace(where: FrameType, _event: str, _argument: object) -> None:
        if where is frame:
            sys.settrace(previous)
            callback()

    frame.f_trace = trace
    sys.settrace(trace)
