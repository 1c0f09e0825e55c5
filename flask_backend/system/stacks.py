"""A process writes its Python stacks: to stderr at USR1, or to a file beside the status page for a reader."""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
from collections.abc import Iterator
from types import FrameType
from typing import Any

from setproctitle import getproctitle

from .streams import streams

# Makes faulthandler write the stacks of a stuck process before it is killed, even if its interpreter is stuck.
# faulthandler reads the frames of threads that may still run: a few signals in a thousand end a busy process of CPython
# 3.11 or 3.13 with a segmentation fault, so use this only for a process that is about to be killed.
STUCK = signal.SIGRTMIN + 1 if hasattr(signal, "SIGRTMIN") else signal.SIGUSR1

# A reader of the status page asks a worker for its stacks by ASK, which the worker answers between two bytecode steps.
# A worker whose main thread is in native code does not; INSIST makes it write that thread's stack at once. This is safe
# then, since the frames of that thread do not change. 0, which is not a signal, where there are no real-time signals.
ASK, INSIST = (signal.SIGRTMIN + 2, signal.SIGRTMIN + 3) if hasattr(signal, "SIGRTMIN") else (0, 0)
# The last line of the answer to ASK.
END = b"end of the stacks\n"

_dumps = False


def dump_on_signal() -> None:
    """Make USR1 write the stacks of this process between two bytecode steps, and ``STUCK`` write them at any moment."""
    faulthandler.unregister(signal.SIGUSR1)  # an app may have registered it: this restores the handler before
    signal.signal(signal.SIGUSR1, _dump)
    faulthandler.register(STUCK, streams.stderr.fileno())


def dump_stacks() -> None:
    """Write the Python stacks of this process to stderr, in one piece, if it has room for them."""
    if not streams.stderr.has_room():
        streams.stderr.lost += 1
        return
    try:
        text = _read_stacks()
    except (OSError, AttributeError):  # no descriptor is left, or this is not Linux
        faulthandler.dump_traceback(streams.stderr.fileno())
    else:
        heading = f"stacks of process {os.getpid()} ({getproctitle()}):\n"
        streams.stderr.write_at_once(heading.encode(errors="backslashreplace") + text + b"\n")


def _dump(_number: int, _frame: FrameType | None) -> None:
    # Signals that arrive faster than stacks are written would nest these handlers without limit.
    global _dumps  # noqa: PLW0603
    if not _dumps:
        _dumps = True
        try:
            dump_stacks()
        finally:
            _dumps = False


def answer_readers(fd: int) -> None:
    """Make ``ASK`` and ``INSIST`` write the stacks of this process to the file ``fd``, and never end the process."""
    if not ASK:
        return

    def answer(_number: int, _frame: FrameType | None) -> None:
        if not os.path.samestat(os.fstat(fd), file):  # code of the app has closed it, and another file has its number
            return
        _write_stacks(fd)
        os.write(fd, END)

    file = os.fstat(fd)
    signal.signal(ASK, answer)
    signal.siginterrupt(ASK, False)  # a call into the system goes on: to be looked at must not change what a task does
    faulthandler.register(INSIST, fd, all_threads=False)


def _read_stacks() -> bytes:
    # faulthandler writes each word for itself, and other processes write to the same pipe or file. A temporary file
    # takes a lock of `tempfile`, which the code that the signal has interrupted may hold.
    fd = os.memfd_create("stacks")
    try:
        _write_stacks(fd)
        return os.pread(fd, os.fstat(fd).st_size, 0)
    finally:
        os.close(fd)


def _write_stacks(fd: int) -> None:
    for line in _coroutines():
        os.write(fd, line.encode(errors="backslashreplace"))
    faulthandler.dump_traceback(fd)


def _coroutines() -> Iterator[str]:
    """Yield the stacks of the coroutines that wait in the running event loop: the thread's stack lacks them."""
    asyncio = sys.modules.get("asyncio")
    if asyncio is None or (loop := asyncio._get_running_loop()) is None:  # noqa: SLF001  # get_running_loop() raises
        return
    for task in asyncio.all_tasks(loop) - {asyncio.current_task(loop)}:  # the one that runs is on the thread's stack
        yield f"Coroutine {task.get_name()} (most recent call first):\n"
        yield from reversed(
            [f'  File "{code.co_filename}", line {line} in {code.co_name}\n' for code, line in _awaits(task)]
        )
        yield "\n"


def _awaits(task: Any) -> Iterator[tuple[Any, int]]:
    """Yield the code and the line of each coroutine or generator that a task waits in, the outermost first."""
    waits_in = task.get_coro()
    while waits_in is not None:
        kind = next((kind for kind in ("cr", "gi", "ag") if hasattr(waits_in, f"{kind}_frame")), None)
        if kind is None:  # a future, or an iterator
            return
        if frame := getattr(waits_in, f"{kind}_frame"):
            yield frame.f_code, frame.f_lineno
        waits_in = getattr(waits_in, "gi_yieldfrom" if kind == "gi" else f"{kind}_await")
