"""The contenders: one module for each, with its app, its task, how it is called and how its workers are started."""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum, auto
from typing import Protocol, cast

# host:port of the broker, in the environment of workers and callers.
BROKER = "BENCH_BROKER"

# The modules, and the package that each requires.
PACKAGES = {"ours": "flask_backend", "bare": "greenstalk"}
PEERS = {"celery": "celery", "dramatiq": "dramatiq", "huey": "huey", "rq": "rq"}


class Server(StrEnum):
    BEANSTALKD = auto()
    REDIS = auto()
    EMBEDDED = auto()


@dataclass(frozen=True, slots=True)
class Contender:
    """One contender with one choice of settings.

    ``commands`` are the processes to start for a number of workers. ``rate`` is roughly how many no-op tasks a second
    one worker does; it determines how many jobs make a measurement of some seconds. ``settings`` describes, for the
    report, the settings chosen and where they are documented.
    """

    name: str
    module: str
    server: Server
    commands: Callable[[int], list[list[str]]]
    rate: float
    settings: str
    environment: Mapping[str, str] = field(default_factory=dict[str, str])


class Caller(Protocol):
    """The interface of a contender's module for scheduling."""

    CONTENDERS: list[Contender]

    def call(self) -> None:
        """Schedule one call of the no-op task."""
        ...

    def call_with_keywords(self) -> None:
        """Schedule one call of a task, with one positional argument and two keyword arguments."""
        ...

    def call_many(self, count: int) -> None:
        """Schedule ``count`` calls of the no-op task, by the fastest method available."""
        ...

    def call_logging(self, count: int) -> None:
        """Schedule ``count`` calls of the task that logs one line."""
        ...


def load(module: str) -> Caller:
    return cast("Caller", importlib.import_module(f"contenders.{module}"))


def find(*, with_peers: bool) -> dict[str, Contender]:
    """Return all installed contenders, by name."""
    packages = PACKAGES | (PEERS if with_peers else {})
    present = [module for module, package in packages.items() if importlib.util.find_spec(package)]
    return {contender.name: contender for module in present for contender in load(module).CONTENDERS}


def broker_address() -> tuple[str, int]:
    """Return the broker's address; empty in a process that only reads the list of contenders."""
    host, _, port = os.environ.get(BROKER, "127.0.0.1:1").partition(":")
    return host, int(port)


def redis_url() -> str:
    return "redis://{}:{}/0".format(*broker_address())
