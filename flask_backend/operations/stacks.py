"""Ask a worker for its Python stacks, which it writes to the file beside its supervisor's status page."""

from __future__ import annotations

import fcntl
import os
import signal
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from itertools import dropwhile

from flask_backend.errors import BackendError
from flask_backend.system import page as pages
from flask_backend.system.procfs import read_stat
from flask_backend.system.stacks import ASK, END, INSIST

# How long a worker may take to reach the next bytecode step. One that takes longer is in native code.
PATIENCE_S = 1.0
# How often the reader looks into the file, and how long this must not have grown if the answer has no last line.
_LOOK_S = 0.002
_QUIET_S = 0.1
_MOST_BYTES = 1 << 20
_STOPPED = "is stopped, by a signal or a debugger"


class StacksError(BackendError):
    """The stacks of a worker cannot be shown."""


def read_stacks(supervisor: int, worker: int) -> str:
    """Return the Python stacks of a worker, the one of its task first; raise :exc:`StacksError` with the reason.

    It takes milliseconds, or ``PATIENCE_S`` if the worker is in native code. The worker goes on unharmed.
    """
    path = _find_file(supervisor, worker)
    try:
        process = os.pidfd_open(worker)
    except OSError as error:
        raise StacksError(f"worker {worker} cannot be asked: {error.strerror}") from error
    try:
        _check(supervisor, worker)
        with _opened(path) as fd:
            return _in_order(_ask(process, worker, fd))
    except PermissionError as error:
        raise StacksError(f"this user may not ask worker {worker} for its stacks") from error
    except OSError as error:
        raise StacksError(f"worker {worker} cannot be asked: {error.strerror}") from error
    finally:
        os.close(process)


def _find_file(supervisor: int, worker: int) -> str:
    found = pages.find(supervisor).get(supervisor)
    if found is None:
        raise StacksError(f"supervisor {supervisor} has ended, or its status page cannot be read")
    for page in found.pages:
        for row in (row for queue in page.queues for row in queue.workers if row.pid == worker):
            # Others have no handlers yet, or no longer: a signal would end them.
            if row.state != "ready" and not (row.state == "draining" and row.job):
                raise StacksError(f"worker {worker} is {row.state}: only a ready worker can be asked")
            if path := pages.stacks_path(found, page.generation):
                return path
            raise StacksError(f"supervisor {supervisor} has no file for stacks that this user can find")
    raise StacksError(f"worker {worker} has ended")


def _check(supervisor: int, worker: int) -> None:
    """Raise if the process, which is held now, is another one, or could not answer."""
    process, stat = pages.read_process(worker), read_stat(worker)
    if process is None or stat is None or stat.parent != supervisor:
        raise StacksError(f"worker {worker} has ended")
    if process[0] in "Tt":
        raise StacksError(f"worker {worker} {_STOPPED}")


@contextmanager
def _opened(path: str) -> Generator[int]:
    """Open and empty the file while no other reader uses it."""
    no_link = 0 if path.startswith("/proc/") else os.O_NOFOLLOW
    fd = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC | no_link)
    try:
        if not _wait(lambda: _is_locked(fd), 3 * PATIENCE_S):
            raise StacksError("another reader waits for the stacks of a worker of this supervisor: try again")
        os.ftruncate(fd, 0)
        yield fd
        os.ftruncate(fd, 0)
    finally:
        os.close(fd)


def _is_locked(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _ask(process: int, worker: int, fd: int) -> str:
    """Return the answer of a process, which a descriptor holds, so that its number cannot become that of another."""
    signal.pidfd_send_signal(process, ASK)
    if not _wait(lambda: _read(fd).endswith(END), PATIENCE_S):
        signal.pidfd_send_signal(process, INSIST)
        if not _wait(lambda: bool(_read(fd)), PATIENCE_S):
            raise StacksError(f"worker {worker} {_describe_state(worker)}")
        size = 0
        while size < (size := len(_read(fd))):
            time.sleep(_QUIET_S)  # its end cannot be seen
    return _read(fd).removesuffix(END).decode(errors="replace")


def _describe_state(worker: int) -> str:
    """Return why a worker does not answer."""
    process = pages.read_process(worker)
    if process is None:
        return "has ended"
    if process[0] in "Tt":
        return _STOPPED
    if process[0] == "D":
        return "does not answer: it waits in the kernel, for a disk or a network file system"
    return "does not answer: its code has blocked the signals, or the machine is busy"


def _read(fd: int) -> bytes:
    return os.pread(fd, _MOST_BYTES, 0)


def _wait(condition: Callable[[], bool], patience_s: float) -> bool:
    until = time.monotonic() + patience_s
    while not condition():
        if time.monotonic() > until:
            return False
        time.sleep(_LOOK_S)
    return True


def _in_order(text: str) -> str:
    """Return the stack of the main thread, which runs the task, before the others, without the frames that answered."""
    parts = [part.strip("\n") for part in text.split("\n\n") if part.strip()]
    parts.sort(key=lambda part: (not part.startswith("Coroutine"), not part.startswith(("Current thread", "Stack"))))
    return "\n\n".join(_without_answer(part) for part in parts)


def _without_answer(part: str) -> str:
    heading, *frames = part.split("\n")
    return "\n".join([heading, *dropwhile(lambda frame: '/flask_backend/system/stacks.py"' in frame, frames)])
