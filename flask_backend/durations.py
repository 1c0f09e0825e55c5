"""Durations as Beanstalkd takes them: whole seconds, rounded up, and not too many. Pure."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta

from .errors import OptionError
from .message import show_value

MAX_SECONDS = 2**32 - 1  # the protocol's limit of a delay and of a time to run

Delay = float | timedelta | datetime


def whole_seconds(name: str, value: Delay, *, least: int = 0) -> int:
    """Return the seconds that ``value`` stands for, from ``least`` on; a time that is past counts as no seconds.

    Rounded up, since a job must not come sooner than asked for; the protocol takes no fractions. Raises
    :exc:`OptionError`, naming what was given as ``name``, for what is no duration and for a time without a zone.
    """
    seconds = _seconds(name, value)
    if not least <= seconds <= MAX_SECONDS:
        raise OptionError(f"{name} is {show_value(value)}; expected from {least} to {MAX_SECONDS} seconds")
    return math.ceil(seconds)


def _seconds(name: str, value: object) -> float:
    match value:
        case bool():
            pass
        case int() | float() if -math.inf < value < math.inf:
            return value
        case timedelta():
            return value.total_seconds()
        case datetime() if value.utcoffset() is None:
            raise OptionError(
                f"{name} is {show_value(value)}, which has no time zone: say which, as datetime.now(UTC) + "
                "timedelta(hours=1)"
            )
        case datetime():
            return max(0.0, (value - datetime.now(UTC)).total_seconds())
        case _:
            pass
    raise OptionError(f"{name} is {show_value(value)}; expected seconds, a timedelta or a datetime with a time zone")
