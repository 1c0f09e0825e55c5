"""Background tasks for Flask, over Beanstalkd, run by a prefork supervisor."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .errors import (
        BackendError,
        BrokerConnectionError,
        BrokerError,
        ConfigError,
        JobTooBigError,
        MessageEncodeError,
        QueueNameError,
        RegistrationError,
        TaskArgumentsError,
        TaskTimeout,
    )
    from .extension import Backend
    from .flask_script import BackendCommand
    from .task import Job, Task

__version__ = "0.1.0"

__all__ = [
    "Backend",
    "BackendCommand",
    "BackendError",
    "BrokerConnectionError",
    "BrokerError",
    "ConfigError",
    "Job",
    "JobTooBigError",
    "MessageEncodeError",
    "QueueNameError",
    "RegistrationError",
    "Task",
    "TaskArgumentsError",
    "TaskTimeout",
]

_HOMES = {"Backend": "extension", "BackendCommand": "flask_script", "Job": "task", "Task": "task"}


def __getattr__(name: str) -> Any:
    """Import a public name when it is asked for: a command that needs no Flask shall not wait for it.

    Flask-Script is an extra, besides: only those who ask for its command need it installed.
    """
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_HOMES.get(name, 'errors')}", __name__), name)
    globals()[name] = value
    return value
