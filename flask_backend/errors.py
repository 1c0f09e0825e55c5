"""The errors that Flask-Backend raises, under one base class."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

E = TypeVar("E", bound=Exception)


def restore_error(kind: type[E], args: tuple[object, ...]) -> E:
    """Return the copy of a pickled exception whose ``__init__`` does not accept its ``args``; pickle adds its state."""
    return kind.__new__(kind, *args)


class BackendError(Exception):
    """Base class of every error that Flask-Backend raises."""


class ConfigError(BackendError, ValueError):
    """A setting has an invalid value."""


class RegistrationError(BackendError, ValueError):
    """A task, receiver or hook conflicts with another one, or is not registered where it is needed."""


class QueueNameError(BackendError, ValueError):
    """Beanstalkd would refuse this queue name."""


class OptionError(BackendError, ValueError):
    """An option of a call, or a delay, has an invalid value."""


class TaskArgumentsError(BackendError, TypeError):
    """The arguments of a call do not fit the task's signature."""


class MessageEncodeError(BackendError, TypeError):
    """JSON cannot carry this value."""


class MessageDecodeError(BackendError, ValueError):
    """The body of a job is not a message that a worker can run."""


class UnknownEndpointError(BackendError, LookupError):
    """A valid message names a task that this version of the app does not have."""


class TaskTimeout(BackendError):  # noqa: N818  # the name that users know
    """The task has reached its time limit; raised inside the task, at the line that it is running."""


class CheckpointError(BackendError, RuntimeError):
    """A checkpoint was reached while the changes that its cursor covers are not committed."""


class TaskInterrupted(BaseException):
    """The task is left at a checkpoint, because its worker is to stop; it goes on there in another worker.

    Not an ``Exception``: code that handles the failures of a task must not handle this.
    """


class TaskResultError(BackendError, TypeError):
    """A task returned something that has not run: a generator, or an awaitable that was not awaited."""


class MiddlewareError(BackendError, RuntimeError):
    """A middleware did not call ``proceed`` exactly once."""


class WorkerDiedError(BackendError):
    """A worker died while it ran a job. Never raised: it is the ``error`` of signals about that job.

    ``facts`` are those of the signal ``worker_exited``, in part: ``exit_status``, ``exit_signal``, ``running_s``,
    ``max_rss_bytes`` and others.
    """

    def __init__(self, description: str, facts: Mapping[str, Any] | None = None) -> None:
        super().__init__(description)
        self.facts = dict(facts or {})


class BrokerError(BackendError):
    """Beanstalkd refused a command."""


class JobTooBigError(BrokerError, ValueError):
    """The body is larger than the server's ``max-job-size``."""


class JobNotFoundError(BrokerError, LookupError):
    """The job is gone, or this connection no longer holds it."""


class BrokerConnectionError(BrokerError, ConnectionError):
    """Beanstalkd could not be reached, closed the connection, timed out or sent an unexpected reply."""


class OutputError(BackendError):
    """The results of a command could not be written."""
