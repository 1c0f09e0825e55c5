"""The tasks, receivers and hooks of each queue, and the checks of their options."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from .errors import ConfigError, RegistrationError
from .limit import Limit
from .message import show_value
from .middleware import Middleware
from .options import DEFAULTS, Options
from .retry import Retry


@dataclass(frozen=True, slots=True)
class Handler:
    """A task or a receiver: its name, its function, and its own time limit in seconds and retry policy, if any.

    ``defaults`` are the default options of the task's calls.
    """

    name: str
    function: Callable[..., Any]
    time_limit_s: float | None = None
    retry: Retry | None = None
    defaults: Options = DEFAULTS


@dataclass(slots=True)
class Handlers:
    """The handlers of one queue: tasks by endpoint or one receiver, the hooks of its workers, and the middleware.

    A worker reserves a job before it knows its task, so all tasks of a queue have the same limit.
    """

    queue: str
    tasks: dict[str, Handler] = field(default_factory=dict[str, Handler])
    receiver: Handler | None = None
    hooks: list[Callable[[], Any]] = field(default_factory=list[Callable[[], Any]])
    limit: Limit | None = None  # of all its tasks, or of its receiver
    middleware: Sequence[Middleware] = ()

    @property
    def names(self) -> list[str]:
        """The names of all tasks, or the name of the receiver."""
        return [self.receiver.name] if self.receiver else sorted(self.tasks)

    @property
    def can_work(self) -> bool:
        return bool(self.tasks) or self.receiver is not None


def check_time_limit(seconds: float | None) -> None:
    is_number = isinstance(seconds, int | float) and not isinstance(seconds, bool)
    if seconds is not None and not (is_number and 0 < seconds < float("inf")):
        raise ConfigError(f"time_limit is {seconds!r}; expected seconds, more than 0")


def check_retry(retry: Retry | None) -> None:
    if retry is not None and not isinstance(retry, Retry):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ConfigError(f"retry is {retry!r}; expected a Retry(...), for example Retry(max_retries=5)")


def check_endpoint(endpoint: str | None) -> None:
    if endpoint is not None and not (isinstance(endpoint, str) and endpoint and endpoint.isprintable()):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise RegistrationError(f'endpoint is {show_value(endpoint)}; expected a name such as endpoint="mail.send"')
