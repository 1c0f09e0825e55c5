"""Limits on how many tasks run at once, or start within a time, on all hosts. Pure."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from .durations import MAX_SECONDS
from .errors import ConfigError
from .message import show_value
from .names import is_queue_name, limit_tube

# Each waiting worker looks at all tokens of its limit now and then.
MAX_N = 1000
# The end of the name of the tube that keeps the registry of a limit.
REGISTRY = ";registry"
_MAX_NAME = 200 - len(limit_tube(REGISTRY))


@dataclass(frozen=True, slots=True)
class Limit:
    """A limit that all workers of one broker share, for ``@backend.task(queue, limit=Limit("gpu", 2))``.

    ``name``
        Its name on the broker: limits with one name are one limit, in all queues and apps.
    ``n``
        How many tasks run at once on all hosts, from 1 to 1000; with ``per``, how many start within that time.
    ``per``
        A number of whole seconds: ``Limit("mailgun", 3, per=1)`` allows 3 starts a second. By default the limit is on
        the tasks that run.

    Raises :exc:`ConfigError` for an invalid value.
    """

    name: str
    n: int
    per: int | None = field(default=None, kw_only=True)
    # When this code was loaded, in seconds since the epoch: the numbers of the newest code count.
    loaded_at: float = field(default_factory=time.time, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        name = self.name
        if not _is_name(name):
            raise ConfigError(
                f"{show_value(name)} cannot be the name of a limit: use 1 to {_MAX_NAME} letters, digits and -+/.$_(), "
                "for example 'gpu'"
            )
        if not _is_whole(self.n) or not 1 <= self.n <= MAX_N:
            raise ConfigError(f"limit {name!r}: n is {show_value(self.n)}; expected a whole number from 1 to {MAX_N}")
        if self.per is not None and (not _is_whole(self.per) or not 1 <= self.per <= MAX_SECONDS):
            raise ConfigError(f"limit {name!r}: per is {show_value(self.per)}; expected whole seconds, from 1")

    def __str__(self) -> str:
        """Return the limit as it is written in code."""
        return f'Limit("{self.name}", {self.n}' + (")" if self.per is None else f", per={self.per})")


def _is_name(value: object) -> bool:
    # The semicolon begins the end of our other tubes.
    if not isinstance(value, str) or ";" in value:
        return False
    return 0 < len(value) <= _MAX_NAME and is_queue_name(limit_tube(value))


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def check_limit(limit: Limit | None) -> None:
    if limit is not None and not isinstance(limit, Limit):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ConfigError(f'limit is {show_value(limit)}; expected a Limit(...), for example Limit("gpu", 2)')
