"""The body of the helper that serves metrics."""

from __future__ import annotations

import importlib.util
import os
import signal
from collections.abc import Callable, Collection, Mapping
from types import FrameType

from flask_backend.config import Settings
from flask_backend.system.exits import ExitCode
from flask_backend.system.procfs import PROC_IS_THERE

from .endpoint import Listener

NOT_INSTALLED = "--metrics needs prometheus-client: install it with `pip install 'flask-backend[metrics]'`"
NO_PROC = "--metrics reads /proc, which only Linux has"


def why_impossible() -> str | None:
    """Return why metrics cannot be served in this installation, if so."""
    if not PROC_IS_THERE:
        return NO_PROC
    return None if importlib.util.find_spec("prometheus_client") else NOT_INSTALLED


def serve(  # noqa: PLR0913  # what it gets from its supervisor, and what it serves
    listener: Listener,
    accept_signals: Callable[[], None],
    lifeline: int,
    app: str,
    settings: Settings,
    queues: Collection[str],
    periodic: Mapping[str, Collection[str]],
) -> int:
    """Serve the metrics of this process's parent until TERM, or until the parent ends, and return the exit code.

    Signals are blocked until ``accept_signals`` is called. ``lifeline`` is a descriptor that is readable when the
    parent is gone. ``queues`` are those of the app, and ``periodic`` the names of its periodic tasks by queue: the
    broker is asked about them even if this supervisor serves only some.
    """
    from flask_backend import __version__

    from .collector import Exposition, Identity
    from .queues import QueueReader
    from .serving import Server

    term_r, term_w = os.pipe()
    os.set_blocking(term_w, False)
    signal.set_wakeup_fd(term_w, warn_on_full_buffer=False)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _leave_it_to_the_server)
    accept_signals()
    reader = QueueReader(settings, queues, periodic)
    exposition = Exposition(Identity(os.getppid(), app, __version__), reader.ask)
    Server(listener.socket, exposition.render, (term_r, lifeline)).run()
    return ExitCode.OK


def _leave_it_to_the_server(_number: int, _frame: FrameType | None) -> None:
    pass
