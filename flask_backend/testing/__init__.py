"""A test kit for apps that schedule tasks: inspect and run their calls without a broker and without waiting.

With ``BACKEND_CONNECTION_URI="memory://"``, calls are kept, and these functions inspect and run them. With
``"sync://"``, each call runs at once. Each function uses the current app, or outside of an app context the given one.
:func:`memory` returns an object for one app with the same functions as methods; so does the fixture
``backend_memory``. Importing this module has no side effects.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from flask import Flask, has_app_context
from flask.globals import app_ctx

from flask_backend.errors import RegistrationError
from flask_backend.extension import EXTENSION_KEY, Backend

from .expecting import Target, check_target
from .handle import Memory
from .records import Buried, Ran, Scheduled

__all__ = [
    "Buried",
    "Memory",
    "Ran",
    "Scheduled",
    "assert_not_scheduled",
    "assert_scheduled",
    "buried",
    "clear",
    "drain",
    "interrupt",
    "memory",
    "move_time",
    "scheduled",
]


def memory(app: Flask | Backend | None = None) -> Memory:
    """Return the jobs of an app, by default the current app; for a ``Backend``, the jobs of its only app.

    Raises :exc:`~flask_backend.RegistrationError` if the app is ambiguous, and :exc:`~flask_backend.ConfigError` if its
    broker is not in memory.
    """
    if isinstance(app, Backend):
        return Memory(app.app_in_use(), app)
    if app is None:
        if not has_app_context():
            raise RegistrationError("no app context is active; use testing.memory(app), or `with app.app_context():`")
        app = app_ctx.app  # the app itself, since current_app is a proxy
    backend = app.extensions.get(EXTENSION_KEY)
    if not isinstance(backend, Backend):
        raise RegistrationError(f"app {app.name!r} has no Backend: use Backend(app), or backend.init_app(app)")
    return Memory(app, backend)


def scheduled(app: Flask | Backend | None = None) -> list[Scheduled]:
    """See :meth:`Memory.scheduled`."""
    return memory(app).scheduled()


def drain(app: Flask | Backend | None = None, *, raise_errors: bool = True) -> list[Ran]:
    """See :meth:`Memory.drain`."""
    return memory(app).drain(raise_errors=raise_errors)


def interrupt(at: int = 1, app: Flask | Backend | None = None) -> None:
    """See :meth:`Memory.interrupt`."""
    memory(app).interrupt(at)


def move_time(by: float | timedelta, app: Flask | Backend | None = None) -> None:
    """See :meth:`Memory.move_time`."""
    memory(app).move_time(by)


def buried(app: Flask | Backend | None = None) -> list[Buried]:
    """See :meth:`Memory.buried`."""
    return memory(app).buried()


def clear(app: Flask | Backend | None = None) -> None:
    """See :meth:`Memory.clear`."""
    memory(app).clear()


def assert_scheduled(target: Target, /, *args: Any, **kwargs: Any) -> Scheduled:
    """See :meth:`Memory.assert_scheduled`. A task knows its app if its backend has only one."""
    __tracebackhide__ = True
    return _memory_of(target).assert_scheduled(target, *args, **kwargs)


def assert_not_scheduled(target: Target, /, *args: Any, **kwargs: Any) -> None:
    """See :meth:`Memory.assert_not_scheduled`."""
    __tracebackhide__ = True
    _memory_of(target).assert_not_scheduled(target, *args, **kwargs)


def _memory_of(target: Target) -> Memory:
    check_target(target)
    if isinstance(target, str):
        return memory()
    backend = target._scheduler  # noqa: SLF001  # not useful to users  # pyright: ignore[reportPrivateUsage]
    return memory(backend if isinstance(backend, Backend) else None)
