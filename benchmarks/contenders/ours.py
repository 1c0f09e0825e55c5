"""Flask-Backend as run in production: a supervisor, a log, a scoreboard, signals, a heartbeat and limits."""

from __future__ import annotations

import functools
import subprocess
import sys

from flask import Flask
from stamps import stamp

from contenders import Contender, Server, broker_address
from flask_backend import Backend

QUEUE = "com.example/default"

app = Flask(__name__)
app.config["BACKEND_CONNECTION_URI"] = "btq://{}:{}".format(*broker_address())
backend = Backend(app)


@backend.task(QUEUE)
def hello(_name: str) -> None:
    stamp()


@backend.task(QUEUE)
def greet(_name: str, *, greeting: str, times: int) -> None:  # noqa: ARG001 - only called, never run
    stamp()


@backend.task(QUEUE)
def log(name: str) -> None:
    stamp()
    app.logger.warning("hello %s", name)


def call() -> None:
    hello("x")


def call_with_keywords() -> None:
    greet("x", greeting="hello", times=3)


def call_many(count: int) -> None:
    hello.map("x" for _ in range(count))


def call_logging(count: int) -> None:
    log.map("x" for _ in range(count))


def commands(workers: int, *options: str) -> list[list[str]]:
    supervise = [sys.executable, "-m", "flask_backend", "--app", "contenders.ours", "supervise", "--queue", QUEUE]
    return [[*supervise, "--workers", str(workers), "--time-limit", "60", *options]]


def prefetching(workers: int) -> list[list[str]]:
    return commands(workers, "--prefetch", "8")


@functools.cache
def can_prefetch() -> bool:
    arguments = [sys.executable, "-m", "flask_backend", "supervise", "--help"]
    return "--prefetch" in subprocess.run(arguments, capture_output=True, text=True, check=True).stdout


SETTINGS = "`flask-backend supervise --time-limit 60`, with all other options at their defaults."
CONTENDERS = [Contender("ours", "ours", Server.BEANSTALKD, commands, 8_000, SETTINGS)]
if can_prefetch():
    settings = "The same with `--prefetch 8`."
    CONTENDERS.append(Contender("ours, --prefetch 8", "ours", Server.BEANSTALKD, prefetching, 15_000, settings))
