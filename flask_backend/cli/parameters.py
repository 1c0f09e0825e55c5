"""Parameters of commands: parsers for their values, and options that several commands share."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Literal

import click

SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)i?B?", re.IGNORECASE)


def parse_size(value: str) -> int:
    """Read a size in bytes, such as ``200M`` or ``1.5G``."""
    match = SIZE.fullmatch(value.strip())
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


def parse_queue(value: str) -> tuple[str, int | None]:
    """Read a queue with its own number of workers, ``NAME=8``, or without one, ``NAME``."""
    name, equals, count = value.partition("=")
    if equals and not (count.isdecimal() and int(count) > 0):
        raise click.BadParameter(f"{value!r}: expected a number of workers from 1 after the =, got {count!r}")
    return name, int(count) if equals else None


def time_limit_options(function: Callable[..., Any]) -> Callable[..., Any]:
    limit = click.option(
        "--time-limit",
        type=click.FloatRange(min=0, min_open=True),
        envvar="BACKEND_TIME_LIMIT",
        show_envvar=True,
        metavar="SECONDS",
        help="The time limit of tasks without their own; TaskTimeout is raised inside a task that exceeds it.",
    )
    grace = click.option(
        "--kill-grace",
        type=click.FloatRange(min=0, min_open=True),
        default=5.0,
        envvar="BACKEND_KILL_GRACE",
        show_envvar=True,
        show_default=True,
        metavar="SECONDS",
        help="How long after its time limit a task that still runs is killed, with its worker.",
    )
    return limit(grace(function))


def drain_timeout_option(function: Callable[..., Any]) -> Callable[..., Any]:
    return click.option(
        "--drain-timeout",
        type=click.FloatRange(min=0),
        default=25.0,
        envvar="BACKEND_DRAIN_TIMEOUT",
        show_envvar=True,
        show_default=True,
        metavar="SECONDS",
        help="How long running tasks may go on after TERM, before they are given back to the queue.",
    )(function)


def log_format_option(function: Callable[..., Any]) -> Callable[..., Any]:
    return click.option(
        "--log-format",
        type=click.Choice(["text", "json"]),
        default="text",
        envvar="BACKEND_LOG_FORMAT",
        show_envvar=True,
        show_default=True,
        help="Log lines for people, or one JSON object a line. An app that configures logging itself keeps its own.",
    )(function)
