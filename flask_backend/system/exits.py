"""The end of a process, and the meaning of its exit code."""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
import time
import weakref
from collections.abc import Callable
from contextlib import suppress
from enum import IntEnum
from typing import NoReturn

from .loggers import get_logger
from .streams import flush

logger = get_logger(__name__)

Wait = Callable[[float], None]

# In seconds: a process that takes longer to end logs the cause of the delay.
NAMED_AFTER_S = 1.0


class ExitCode(IntEnum):
    OK = 0  # stopped on request, all jobs finished
    FAILED = 1
    USAGE = 2  # as in click
    CONFIG = 3  # the app or its configuration cannot be loaded: restarting will not help
    GAVE_BACK = 4  # stopped on request, but some jobs were given back unfinished
    GAVE_UP = 5  # workers kept dying


def leave(status: int, within_s: float | None = None, wait: Wait = time.sleep) -> NoReturn:
    """End the process as the interpreter does, at the latest in ``within_s`` seconds.

    This waits for non-daemon threads, runs the exit handlers and flushes the streams. It does not finalize objects,
    which costs a supervisor 15 ms or more, and does not unwind the stack. Without ``within_s``, another process has to
    end this one if it hangs; ``wait``, in place of a sleep, may return earlier.
    """
    limit_end(status, within_s, wait)
    _end_as_python_does()
    os._exit(status)


def leave_at_once(status: int) -> NoReturn:
    """End the process without running exit handlers or waiting for threads."""
    flush()
    os._exit(status)


def leave_after(error: BaseException | None) -> NoReturn:
    """End the process as the interpreter does: after ``error``, or after the end of the program."""
    status: int = ExitCode.OK
    if isinstance(error, SystemExit):
        status = _read_code(error.code)
    elif error is not None:
        status = ExitCode.FAILED
        _show(error)
    _end_as_python_does()
    if isinstance(error, KeyboardInterrupt):
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    os._exit(status)


def _read_code(code: object) -> int:
    """Return the exit status for ``sys.exit(code)``; print a code that is not a number."""
    if code is None:
        return ExitCode.OK
    if isinstance(code, int):
        return code & 0xFF
    with suppress(Exception):
        print(code, file=sys.stderr)  # noqa: T201  # as the interpreter does
    return ExitCode.FAILED


def _show(error: BaseException) -> None:
    told = type(error), error, error.__traceback__
    try:
        sys.excepthook(*told)
    except BaseException:  # the app may have replaced it
        with suppress(Exception):
            sys.__excepthook__(*told)


def _end_as_python_does() -> None:
    """Perform the shutdown steps of the interpreter, as multiprocessing does in its processes."""
    flush()  # here too: the process may be killed during the next steps
    try:
        vars(threading)["_shutdown"]()
    except BaseException:  # raised by a library's clean-up of its threads
        logger.exception("the process exits without waiting for its threads")
    vars(atexit)["_run_exitfuncs"]()
    flush()


def limit_end(status: int, within_s: float | None, wait: Wait = time.sleep) -> None:
    """Log the cause of a delayed end, and end the process with ``status`` in ``within_s`` seconds.

    This takes two threads: the one that logs may wait for a stream's reader forever.
    """
    named_after_s = NAMED_AFTER_S
    if within_s is not None:
        named_after_s = min(named_after_s, within_s / 2)
        _call_after(within_s, lambda: os._exit(status), wait)
    _call_after(named_after_s, lambda: _name_delay(within_s and within_s - named_after_s))


def _call_after(delay_s: float, callback: Callable[[], None], wait: Wait = time.sleep) -> None:
    def run() -> None:
        wait(delay_s)
        callback()

    with suppress(RuntimeError):  # the system cannot start another thread
        threading.Thread(target=run, name="flask-backend-end", daemon=True).start()


def lingering_threads() -> list[threading.Thread]:
    """Return the threads that the interpreter waits for before it exits."""
    return [thread for thread in threading.enumerate() if not thread.daemon and thread is not threading.main_thread()]


def _name_delay(left_s: float | None) -> None:
    flush()
    then = "" if left_s is None else f"; in {left_s:.3g} s it exits regardless"
    if threads := lingering_threads():
        names = ", ".join(thread.name for thread in threads)
        logger.warning("the process waits for non-daemon threads before it exits: %s%s", names, then)
    else:
        logger.warning("the process waits for exit handlers (atexit)%s", then)


def disown() -> None:
    """In a process just forked, leave the clean-up of the parent's resources to the parent.

    ``weakref.finalize`` deletes temporary folders, and multiprocessing ends its daemon processes. Handlers of
    ``atexit`` stay: error trackers rely on them in each process.
    """
    for finalizer in list(vars(weakref.finalize)["_registry"]):
        finalizer.atexit = False
    if module := sys.modules.get("multiprocessing.process"):
        vars(module)["_children"] = set()
