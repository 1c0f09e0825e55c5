"""Signals to the supervisors of this machine and to their workers, for those that may send them.

A process is held by a descriptor and looked at before a signal is sent, so its pid cannot become that of another one.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Generator
from contextlib import contextmanager

from flask_backend.errors import BackendError
from flask_backend.system import page as pages
from flask_backend.system.page import Found
from flask_backend.system.procfs import ignores


class ControlError(BackendError):
    """A process cannot be controlled."""


def reload(pid: int) -> None:
    """Let a supervisor check new code, and take it. Raises :exc:`ControlError` if it would not act on that."""
    with _held(pid) as (process, found):
        refuse_deaf(found)
        _send(process, signal.SIGHUP, f"supervisor {pid}")


def add_worker(pid: int) -> None:
    """Let a supervisor run a worker more in each queue; raise :exc:`ControlError` if it is gone, or of another user."""
    with _held(pid) as (process, _):
        _send(process, signal.SIGTTIN, f"supervisor {pid}")


def remove_worker(pid: int) -> None:
    """Let a supervisor run a worker less in each queue; raise :exc:`ControlError` as :func:`add_worker` does."""
    with _held(pid) as (process, _):
        _send(process, signal.SIGTTOU, f"supervisor {pid}")


def stop_worker(supervisor: int, worker: int) -> None:
    """Let a worker finish its task and end; its supervisor starts another one in its place.

    Raises :exc:`ControlError` if it is gone, or of another user.
    """
    process = _hold(worker, f"worker {worker}")
    try:
        found = _find(supervisor)
        rows = [row for page in found.pages for queue in page.queues for row in queue.workers]
        if not any(row.pid == worker for row in rows):
            raise ControlError(f"supervisor {supervisor} has no worker {worker}: it has ended")
        _send(process, signal.SIGTERM, f"worker {worker}")
    finally:
        os.close(process)


def refuse_deaf(found: Found) -> None:
    """Raise :exc:`ControlError` if the supervisor would not act on HUP."""
    if found.page.state in ("draining", "stopped"):
        raise ControlError(f"supervisor {found.pid} is stopping: it does not reload")
    if (frozen_s := found.frozen_s) is not None:
        raise ControlError(f"supervisor {found.pid} has been frozen for {frozen_s:.0f} s: it does not reload")
    if ignores(found.pid, signal.SIGHUP):
        raise ControlError(f"supervisor {found.pid} ignores HUP, as it was started with nohup: restart it instead")


@contextmanager
def _held(pid: int) -> Generator[tuple[int, Found]]:
    process = _hold(pid, f"supervisor {pid}")
    try:
        yield process, _find(pid)
    finally:
        os.close(process)


def _hold(pid: int, name: str) -> int:
    try:
        return os.pidfd_open(pid)
    except (OSError, OverflowError) as error:
        raise ControlError(f"{name} has ended") from error


def _find(pid: int) -> Found:
    """Return the pages of a supervisor, which is alive."""
    found = pages.find(pid).get(pid)
    if found is None:
        raise ControlError(f"supervisor {pid} has ended, or its status page cannot be read: it is of another user")
    return found


def _send(process: int, number: signal.Signals, name: str) -> None:
    try:
        signal.pidfd_send_signal(process, number)
    except OSError as error:
        raise ControlError(f"cannot send {number.name} to {name}: {error.strerror}") from error
