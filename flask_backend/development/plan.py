"""The options of ``dev``, and the command lines that follow from them."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from flask_backend.config import Address

from .programs import CommandLine


@dataclass(frozen=True, slots=True)
class DevelopmentPlan:
    """The options of ``dev``. ``app_arguments`` select the app, for our commands and for Flask's.

    ``workers`` is the option of ``supervise``, or None to start no supervisor.
    """

    app_arguments: Sequence[str]
    workers: str | None
    drain_timeout_s: float
    broker_file: Path | None
    folder: str
    extra: Sequence[str]
    listener: socket.socket | None  # where the web server listens, if one is wanted
    has_dashboard: bool = True

    def inquiry(self) -> Sequence[str]:
        return self._ours("dev")

    def web(self, listener: socket.socket) -> CommandLine:
        """Return the command for Flask's server. Its socket outlives it, so that requests wait during a restart."""
        host, port = listener.getsockname()[:2]
        # Werkzeug's own reloader passes these to the server that it runs.
        environment = {"WERKZEUG_RUN_MAIN": "true", "WERKZEUG_SERVER_FD": str(listener.fileno())}
        arguments = ("run", "--no-reload", "--host", host, "--port", str(port))
        return CommandLine(self._run("flask", *arguments), environment, [listener.fileno()])

    def supervisor(self) -> CommandLine:
        workers = ("--workers", self.workers) if self.workers else ()
        return CommandLine(self._ours("supervise", *workers, "--drain-timeout", str(self.drain_timeout_s)))

    def broker(self, address: Address) -> CommandLine:
        file = ("--file", str(self.broker_file)) if self.broker_file else ()
        return CommandLine(self._ours("broker", "--listen", address.host, "--port", str(address.port), *file))

    def dashboard(self, address: Address) -> CommandLine:
        """Return the command for the dashboard. It needs no app, which may be broken."""
        return CommandLine(("-P", "-m", "flask_backend", "dashboard", "--broker", str(address)))

    def _ours(self, *arguments: str) -> Sequence[str]:
        return self._run("flask_backend", *arguments)

    def _run(self, module: str, *arguments: str) -> Sequence[str]:
        # -P: a file of the user, such as queue.py, must not hide a module of the standard library.
        return ("-P", "-m", module, *self.app_arguments, *arguments)
