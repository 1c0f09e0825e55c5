"""Durations as Beanstalkd takes them: whole seconds, rounded up, within its limit. Pure."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta

from .errors import OptionError
from .message import show_value

MAX_SECONDS = 2**32 - 1  # the protocol's limit for a delay and for a TTR

Delay = float | timedelta | datetime


def whole_seconds(name: str, value: Delay, *, least: int = 0) -> int:
    """Return ``value`` in seconds, at least ``least``; a time in the past counts as 0.

    Rounded up, since the protocol takes whole seconds and a job must not come sooner than asked for. Raises
    :exc:`OptionError`, which calls the value ``name``, for an invalid duration and for a time without a time zone.
    """
    seconds = exact_seconds(name, value)
    if not least <= seconds <= MAX_SECONDS:
        raise OptionError(f"{name} is {show_value(value)}; expected from {least} to {MAX_SECONDS} seconds")
    return math.ceil(seconds)


def exact_seconds(name: str, value: object) -> float:
    """Return ``value`` in seconds, a time in the past as 0; raise :exc:`OptionError` as :func:`whole_seconds` does."""
    match value:
        case bool():
            pass
        case int() | float() if -math.inf < value < math.inf:
            return value
        case timedelta():
            return value.total_seconds()
        case datetime() if value.utcoffset() is None:
            raise OptionError(
                f"{name} is {show_value(value)}, which has no time zone: add one, for example datetime.now(UTC) + "
                "timedelta(hours=1)"
            )
        case datetime():
            return max(0.0, (value - datetime.now(UTC)).total_seconds())
        case _:
            pass
    raise OptionError(f"{name} is {show_value(value)}; expected seconds, a timedelta or a datetime with a time zone")
