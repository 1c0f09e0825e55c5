"""Load the user's app, whose code may do anything while it is imported."""

from __future__ import annotations

import os
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any

import click

from flask_backend.errors import ConfigError
from flask_backend.system.exits import ExitCode
from flask_backend.system.loggers import get_logger
from flask_backend.system.patched import find_patch
from flask_backend.system.streams import hold_numbers, streams
from flask_backend.tracebacks import raised_at, traceback_of
from flask_backend.visible import visible_lines

if TYPE_CHECKING:
    from flask import Flask

    from flask_backend.extension import Backend
    from flask_backend.logs import LogFormat


logger = get_logger("flask_backend.supervisor")


@dataclass(frozen=True)
class LoadedApp:
    app: Flask
    backend: Backend


class AppLoadError(click.ClickException):
    """The app cannot be used as it is; restarting will not help."""

    exit_code = ExitCode.CONFIG

    def __init__(self, message: str) -> None:
        super().__init__(visible_lines(message))

    def show(self, file: IO[Any] | None = None) -> None:
        super().show(file or streams.find_stderr())  # the app may have replaced sys.stderr


class PatchedError(AppLoadError):
    """The app has patched the standard library for greenlets."""


def load_app_of_workers(ctx: click.Context, log_format: LogFormat = "text") -> LoadedApp:
    """Load the app as :func:`load_app` does; raise :exc:`PatchedError` if no worker can run in this interpreter."""
    loaded = load_app(ctx, log_format)
    refuse_patch()
    return loaded


def refuse_patch() -> None:
    if reason := find_patch():
        raise PatchedError(reason)


def load_app(ctx: click.Context, log_format: LogFormat = "text") -> LoadedApp:
    """Load the app as Flask does; raise :exc:`AppLoadError` with the traceback of the user's code."""
    from flask.cli import NoAppException, ScriptInfo

    from flask_backend.extension import EXTENSION_KEY, Backend
    from flask_backend.logs import configure

    check_folder()
    info = ctx.find_object(ScriptInfo)
    if info is None:  # our own command line, not Flask's
        info = ScriptInfo(app_import_path=ctx.find_root().params.get("app") or os.environ.get("FLASK_APP"))
    try:
        app = info.load_app()
    except NoAppException as error:
        raise AppLoadError(error.format_message()) from error
    except StopWhileLoading:
        raise
    except BaseException as error:  # also a SystemExit that the app raises
        raise AppLoadError(f"the app cannot be imported.\n\n{users_traceback(error)}") from error
    hold_numbers()  # the import may have closed them
    configure(app, log_format)
    backend = app.extensions.get(EXTENSION_KEY)
    if not isinstance(backend, Backend):
        raise AppLoadError(f"app {app.name!r} has no Backend: use Backend(app), or backend.init_app(app)")
    try:
        _ = backend.settings_of(app).address
    except ConfigError as error:  # a stand-in for tests, to which a command cannot connect
        raise AppLoadError(str(error)) from error
    return LoadedApp(app, backend)


def check_folder() -> None:
    """Raise :exc:`AppLoadError` if the working folder was deleted: neither Python nor Flask could find an app."""
    try:
        Path.cwd()
    except OSError as error:
        raise AppLoadError(
            "the working folder was deleted, so the app cannot be found: change to another one"
        ) from error


def check_queue(loaded: LoadedApp, queue: str) -> None:
    queues = loaded.backend.queues
    if queue not in queues:
        known = "\n".join(f"  {name}" for name in sorted(queues)) or "  none"
        raise AppLoadError(f"app {loaded.app.name!r} has no queue {queue!r}. Its queues are:\n{known}")


def users_traceback(error: BaseException) -> str:
    """Format a traceback from the user's code on, without the frames that import it."""
    tb = raised_at(error)
    while tb is not None and _is_machinery(tb):
        tb = tb.tb_next
    return traceback_of(error, tb)


def _is_machinery(tb: TracebackType) -> bool:
    filename = tb.tb_frame.f_code.co_filename
    module = tb.tb_frame.f_globals.get("__name__", "")
    return filename.startswith("<frozen") or module in {__name__, "flask.cli"}


class StopWhileLoading(SystemExit):  # an exit, not an error
    """TERM or INT came while the app was being imported."""


def warn_of_threads() -> None:
    others = [thread.name for thread in threading.enumerate() if thread is not threading.main_thread()]
    if others:
        logger.warning(
            "importing the app has started threads (%s); they do not run in the workers, and locks that they hold "
            "stay locked there. Start them in a before_first_task hook.",
            ", ".join(others),
        )
    listeners = getattr(sys.modules.get("logging.handlers"), "QueueListener", ())  # only if the app has imported it
    for thread in threading.enumerate():
        listener: Any = getattr(getattr(thread, "_target", None), "__self__", None)
        if isinstance(listener, listeners):
            logger.warning(
                "importing the app has started a %s (thread %s), which does not run in the workers: records that "
                "they log to its queue never reach its handlers (%s). Start it in a before_first_task hook, with a new "
                "queue.",
                type(listener).__name__,
                thread.name,
                ", ".join(type(handler).__name__ for handler in listener.handlers),
            )
