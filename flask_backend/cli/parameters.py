"""Parameters of commands: parsers for their values, and options that several commands share."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import click

if TYPE_CHECKING:
    from flask_backend.metrics.endpoint import Endpoint

_F = TypeVar("_F", bound=Callable[..., Any])

# Longer numbers are no numbers of processes, and `int` refuses the longest ones.
_DIGITS_OF_WORKERS = 9
_SIZE = r"(\d+(?:\.\d+)?)\s*([KMGT]?)i?B?"


def parse_size(value: str) -> int:
    """Read a size in bytes, such as ``200M`` or ``1.5G``."""
    match = re.fullmatch(_SIZE, value.strip(), re.IGNORECASE)
    size = int(float(match[1]) * 1024 ** " KMGT".index(match[2].upper() or " ")) if match else 0
    if size <= 0:
        raise click.BadParameter(f"{value!r} is not a size: expected a number with K, M, G or T, such as 200M or 1.5G")
    return size


def parse_size_or_auto(value: str) -> int | Literal["auto"]:
    return "auto" if value == "auto" else parse_size(value)


def parse_job_id(value: str) -> int:
    """Read a job id of Beanstalkd: from 1, in 64 bits."""
    if not (value.isascii() and value.isdecimal() and 0 < int(value) < 2**64):
        raise click.BadParameter(f"{value!r} is not a job id: expected a whole number from 1")
    return int(value)


def parse_workers(value: str) -> tuple[int, int]:
    """Read a number of workers, such as ``4``, or a range, such as ``2..8``; return the minimum and the maximum."""
    match = re.fullmatch(r"([0-9]+)(?:\.\.([0-9]+))?", value)
    if match is None:
        raise click.BadParameter(f"{value!r} is not a number of workers: expected one such as 4, or a range, 2..8")
    if max(map(len, match.groups(""))) > _DIGITS_OF_WORKERS:
        raise click.BadParameter(f"{value[:40]!r} is too large a number of workers")
    minimum, maximum = int(match[1]), int(match[2] or match[1])
    if minimum < 1:
        raise click.BadParameter(f"{value!r}: a queue has at least one worker")
    if minimum > maximum:
        raise click.BadParameter(f"{value!r}: the minimum is above the maximum, expected {maximum}..{minimum}")
    return minimum, maximum


def parse_queue(value: str) -> tuple[str, tuple[int, int] | None]:
    """Read a queue with its own number of workers, ``NAME=8`` or ``NAME=2..8``, or without one, ``NAME``."""
    name, equals, workers = value.partition("=")
    return name, parse_workers(workers) if equals else None


def parse_endpoint(value: str) -> Endpoint:
    """Read the address of a listening socket."""
    from flask_backend.metrics.endpoint import Endpoint, EndpointError

    try:
        return Endpoint.parse(value)
    except EndpointError as error:
        raise click.BadParameter(str(error)) from error


def env_option(variable: str, *names: str, **attributes: Any) -> Callable[[_F], _F]:
    """Return an option that may also get its value from a variable of the environment.

    Its help shows the variable and, unless ``show_default`` prevents it, the default. The other arguments are those of
    :func:`click.option`.
    """
    attributes.setdefault("show_default", "default" in attributes)
    return click.option(*names, envvar=variable, show_envvar=True, **attributes)


time_limit_option = env_option(
    "BACKEND_TIME_LIMIT",
    "--time-limit",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    help="The time limit of tasks without their own; TaskTimeout is raised inside a task that exceeds it.",
)
kill_grace_option = env_option(
    "BACKEND_KILL_GRACE",
    "--kill-grace",
    type=click.FloatRange(min=0, min_open=True),
    default=5.0,
    metavar="SECONDS",
    help="How long after its time limit a task that still runs is killed, with its worker.",
)
drain_timeout_option = env_option(
    "BACKEND_DRAIN_TIMEOUT",
    "--drain-timeout",
    type=click.FloatRange(min=0),
    default=25.0,
    metavar="SECONDS",
    help="How long running tasks may go on after TERM, before they are given back to the queue.",
)
log_format_option = env_option(
    "BACKEND_LOG_FORMAT",
    "--log-format",
    type=click.Choice(["text", "json"]),
    default="text",
    help="Log lines for people, or one JSON object a line. An app that configures logging itself keeps its own.",
)
