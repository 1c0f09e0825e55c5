"""Everything that Flask-Backend raises, under one base."""

from __future__ import annotations

from typing import TypeVar

E = TypeVar("E", bound=Exception)


def restore_error(kind: type[E], args: tuple[object, ...]) -> E:
    """Make the copy of a pickled exception whose ``__init__`` does not take its ``args``: its state follows."""
    return kind.__new__(kind, *args)


class BackendError(Exception):
    """The base of every error that Flask-Backend raises."""


class ConfigError(BackendError, ValueError):
    """A setting has a value that cannot work."""


class RegistrationError(BackendError, ValueError):
    """A task, receiver or hook clashes with another, or is not registered where it is wanted."""


class QueueNameError(BackendError, ValueError):
    """Beanstalkd would refuse the name of this queue."""


class OptionError(BackendError, ValueError):
    """An option of a call, or a delay, has a value that cannot work."""


class TaskArgumentsError(BackendError, TypeError):
    """The arguments of a call do not fit the task's signature."""


class MessageEncodeError(BackendError, TypeError):
    """JSON cannot carry this value."""


class MessageDecodeError(BackendError, ValueError):
    """These bytes are no message that any worker could ever run."""


class UnknownEndpointError(BackendError, LookupError):
    """A well-formed message names a task that this version of the app does not have."""


class TaskTimeout(BackendError):  # noqa: N818  # named as its users read it
    """The task has reached its time limit; raised inside the task, where it runs at that moment."""


class TaskResultError(BackendError, TypeError):
    """What a task returned has not run: a generator, or an awaitable that is not awaited."""


class BrokerError(BackendError):
    """Beanstalkd answered, and refused."""


class JobTooBigError(BrokerError, ValueError):
    """The body is larger than the server's ``max-job-size``."""


class JobNotFoundError(BrokerError, LookupError):
    """The job is gone, or this connection no longer holds it."""


class BrokerConnectionError(BrokerError, ConnectionError):
    """Beanstalkd could not be reached, went away, stayed silent for too long or spoke out of turn."""


class OutputError(BackendError):
    """A command's results could not be written."""
