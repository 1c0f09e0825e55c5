"""RQ, whose worker forks for each job, and its SimpleWorker, which does not.

Usage of a worker: python -m contenders.rq Worker|SimpleWorker
"""

from __future__ import annotations

import sys
from functools import cache, partial

import rq
from flask import Flask
from redis import Redis
from stamps import stamp

from contenders import Contender, Server, redis_url

app = Flask(__name__)


def hello(_name: str) -> None:
    with app.app_context():
        stamp()


def greet(_name: str, *, greeting: str, times: int) -> None:  # noqa: ARG001 - only called, never run
    with app.app_context():
        stamp()


def log(name: str) -> None:
    with app.app_context():
        stamp()
        app.logger.warning("hello %s", name)


@cache
def _queue() -> rq.Queue:
    return rq.Queue(connection=Redis.from_url(redis_url()))


def call() -> None:
    _queue().enqueue("contenders.rq.hello", "x", result_ttl=0)


def call_with_keywords() -> None:
    _queue().enqueue("contenders.rq.greet", "x", greeting="hello", times=3, result_ttl=0)


def call_many(count: int) -> None:
    _enqueue_many("contenders.rq.hello", count)


def call_logging(count: int) -> None:
    _enqueue_many("contenders.rq.log", count)


def _enqueue_many(name: str, count: int) -> None:
    for start in range(0, count, 500):
        size = min(500, count - start)
        _queue().enqueue_many([rq.Queue.prepare_data(name, ("x",), result_ttl=0)] * size)


def run(kind: str) -> None:
    import contenders.rq  # noqa: F401, PLW0406 - preloaded, so that not each fork imports the app

    workers = {"Worker": rq.Worker, "SimpleWorker": rq.SimpleWorker}
    queue = _queue()
    workers[kind]([queue], connection=queue.connection).work(logging_level="WARNING")


def commands(kind: str, workers: int) -> list[list[str]]:
    return [[sys.executable, "-m", "contenders.rq", kind]] * workers


WORKERS = "https://python-rq.org/docs/workers/"
RESULTS = "https://python-rq.org/docs/results/#result-ttl"
BENCHMARK = "https://github.com/rq/rq/blob/master/docs/benchmark.md"
CONTENDERS = [
    Contender(
        "RQ",
        "rq",
        Server.REDIS,
        partial(commands, "Worker"),
        50,
        "A `Worker` for each core, which forks for each job. The app is"
        f" [preloaded]({WORKERS}#performance-notes); [`result_ttl=0`]({RESULTS}); the log level is WARNING.",
    ),
    Contender(
        "RQ, SimpleWorker",
        "rq",
        Server.REDIS,
        partial(commands, "SimpleWorker"),
        200,
        f"The same with a `SimpleWorker`, which does not fork. Its [notes]({BENCHMARK}) recommend it only for jobs of"
        " single-digit milliseconds that neither leak nor crash.",
    ),
]

if __name__ == "__main__":
    run(sys.argv[1])
