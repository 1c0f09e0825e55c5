"""Dramatiq, with Redis."""

from __future__ import annotations

import dramatiq
from dramatiq.brokers.redis import RedisBroker
from flask import Flask
from stamps import stamp

from contenders import Contender, Server, redis_url

app = Flask(__name__)
dramatiq.set_broker(RedisBroker(url=redis_url()))


@dramatiq.actor
def hello(_name: str) -> None:
    with app.app_context():
        stamp()


@dramatiq.actor
def greet(_name: str, *, greeting: str, times: int) -> None:  # noqa: ARG001 - only called, never run
    with app.app_context():
        stamp()


@dramatiq.actor
def log(name: str) -> None:
    with app.app_context():
        stamp()
        app.logger.warning("hello %s", name)


def call() -> None:
    hello.send("x")


def call_with_keywords() -> None:
    greet.send("x", greeting="hello", times=3)


def call_many(count: int) -> None:
    for _ in range(count):
        hello.send("x")


def call_logging(count: int) -> None:
    for _ in range(count):
        log.send("x")


def commands(workers: int) -> list[list[str]]:
    return [["dramatiq", "contenders.dramatiq", "--processes", str(workers), "--threads", "8"]]


REFERENCE = "https://dramatiq.io/reference.html#environment-variables"
CONTENDERS = [
    Contender(
        "Dramatiq",
        "dramatiq",
        Server.REDIS,
        commands,
        3_000,
        "A process for each core, with 8 threads, its default; 1, 2 and 4 threads were slower."
        f" [`dramatiq_queue_prefetch=100`]({REFERENCE}) instead of 2 for each thread; more did not help. All its"
        " default middleware is in place: age and time limits, retries, callbacks, pipelines. Results are not part of"
        " it.",
        {"dramatiq_queue_prefetch": "100"},
    )
]
