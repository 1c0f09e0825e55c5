"""Background tasks for Flask, over Beanstalkd, run by a prefork supervisor."""

from __future__ import annotations

TYPE_CHECKING = False  # to import typing takes longer than a health check
if TYPE_CHECKING:
    from typing import Any

    from .batch import Batch
    from .current import CurrentJob, current_job
    from .decisions import Bury, Discard, RetryLater, TaskDecision
    from .errors import (
        BackendError,
        BrokerConnectionError,
        BrokerError,
        CheckpointError,
        ConfigError,
        JobNotFoundError,
        JobTooBigError,
        MessageEncodeError,
        MiddlewareError,
        OptionError,
        QueueNameError,
        RegistrationError,
        TaskArgumentsError,
        TaskInterrupted,
        TaskResultError,
        TaskTimeout,
        WorkerDiedError,
    )
    from .extension import Backend
    from .flask_script import BackendCommand
    from .job import BulkError, Job, Jobs, JobState
    from .limit import Limit
    from .retry import Retry
    from .scheduling import ScheduledCall
    from .task import Task

__version__ = "0.1.0"

__all__ = [
    "Backend",
    "BackendCommand",
    "BackendError",
    "Batch",
    "BrokerConnectionError",
    "BrokerError",
    "BulkError",
    "Bury",
    "CheckpointError",
    "ConfigError",
    "CurrentJob",
    "Discard",
    "Job",
    "JobNotFoundError",
    "JobState",
    "JobTooBigError",
    "Jobs",
    "Limit",
    "MessageEncodeError",
    "MiddlewareError",
    "OptionError",
    "QueueNameError",
    "RegistrationError",
    "Retry",
    "RetryLater",
    "ScheduledCall",
    "Task",
    "TaskArgumentsError",
    "TaskDecision",
    "TaskInterrupted",
    "TaskResultError",
    "TaskTimeout",
    "WorkerDiedError",
    "current_job",
]

_HOMES = {
    "Backend": "extension",
    "BackendCommand": "flask_script",
    "Batch": "batch",
    "BulkError": "job",
    "Bury": "decisions",
    "CurrentJob": "current",
    "Discard": "decisions",
    "Job": "job",
    "JobState": "job",
    "Jobs": "job",
    "Limit": "limit",
    "Retry": "retry",
    "RetryLater": "decisions",
    "ScheduledCall": "scheduling",
    "Task": "task",
    "TaskDecision": "decisions",
    "current_job": "current",
}


def __getattr__(name: str) -> Any:
    """Import a public name on first access, so that commands that do not need Flask start without importing it.

    Flask-Script stays an optional extra: only ``BackendCommand`` needs it.
    """
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    value = getattr(importlib.import_module(f".{_HOMES.get(name, 'errors')}", __name__), name)
    globals()[name] = value
    return value
