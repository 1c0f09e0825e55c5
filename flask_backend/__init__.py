"""Background tasks for Flask, over Beanstalkd, run by a prefork supervisor."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

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
)
from .extension import Backend
from .task import Job, Task

if TYPE_CHECKING:
    from .flask_script import BackendCommand

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
]


def __getattr__(name: str) -> Any:
    # Flask-Script is an extra: only those who ask for its command need it installed.
    if name == "BackendCommand":
        from .flask_script import BackendCommand

        return BackendCommand
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
