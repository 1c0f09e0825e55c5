"""Huey, with Redis."""

from __future__ import annotations

from flask import Flask
from huey import RedisHuey
from stamps import stamp

from contenders import Contender, Server, redis_url

app = Flask(__name__)
huey = RedisHuey(url=redis_url(), results=False)


@huey.task()
def hello(_name: str) -> None:
    with app.app_context():
        stamp()


@huey.task()
def greet(_name: str, *, greeting: str, times: int) -> None:  # noqa: ARG001 - only called, never run
    with app.app_context():
        stamp()


@huey.task()
def log(name: str) -> None:
    with app.app_context():
        stamp()
        app.logger.warning("hello %s", name)


def call() -> None:
    hello("x")


def call_with_keywords() -> None:
    greet("x", greeting="hello", times=3)


def call_many(count: int) -> None:
    for _ in range(count):
        hello("x")


def call_logging(count: int) -> None:
    for _ in range(count):
        log("x")


def commands(workers: int) -> list[list[str]]:
    consumer = ["huey_consumer", "contenders.huey.huey", "--worker-type", "thread", "--workers", "2", "--quiet"]
    return [consumer, *[[*consumer, "--no-periodic"]] * (workers - 1)]


CONSUMER = "https://huey.readthedocs.io/en/latest/consumer.html"
API = "https://huey.readthedocs.io/en/latest/api.html#huey-object"
CONTENDERS = [
    Contender(
        "Huey",
        "huey",
        Server.REDIS,
        commands,
        2_500,
        f"[A consumer]({CONSUMER}#multiple-consumers) for each core, with two threads. One consumer with 2 or 4"
        f" processes, and consumers with 1 or 4 threads, were slower. `--quiet` and [`results=False`]({API}).",
    )
]
