"""Celery, with its prefork pool and Redis."""

from __future__ import annotations

from typing import Any

from celery import Celery, Task
from flask import Flask
from stamps import stamp

from contenders import Contender, Server, redis_url

flask_app = Flask(__name__)


class FlaskTask(Task):
    """Follow Flask's pattern: flask.palletsprojects.com/en/stable/patterns/celery, "Background Tasks with Celery"."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with flask_app.app_context():
            return self.run(*args, **kwargs)


app = Celery("contenders.celery", broker=redis_url(), task_cls=FlaskTask)
app.conf.update(
    # docs.celeryq.dev/en/stable/userguide/tasks.html, "Ignore results you don't want". The app has no result backend.
    task_ignore_result=True,
    # docs.celeryq.dev/en/stable/userguide/optimizing.html, "Prefetch Limits": for many short tasks "say 64, or 128".
    worker_prefetch_multiplier=64,
    broker_connection_retry_on_startup=True,
)


@app.task(name="hello")
def hello(_name: str) -> None:
    stamp()


@app.task(name="greet")
def greet(_name: str, *, greeting: str, times: int) -> None:  # noqa: ARG001 - only called, never run
    stamp()


@app.task(name="log")
def log(name: str) -> None:
    stamp()
    flask_app.logger.warning("hello %s", name)


def call() -> None:
    hello.delay("x")


def call_with_keywords() -> None:
    greet.delay("x", greeting="hello", times=3)


def call_many(count: int) -> None:
    for _ in range(count):
        hello.delay("x")


def call_logging(count: int) -> None:
    for _ in range(count):
        log.delay("x")


# docs.celeryq.dev/en/stable/reference/cli.html, "celery worker": what a single worker can do without.
WORKER = [
    "celery",
    "--app",
    "contenders.celery",
    "worker",
    "--without-gossip",
    "--without-mingle",
    "--without-heartbeat",
]


def preforking(workers: int) -> list[list[str]]:
    return [[*WORKER, "--pool", "prefork", "--concurrency", str(workers)]]


def solo(workers: int) -> list[list[str]]:
    return [[*WORKER, "--pool", "solo", "--hostname", f"solo{number}@%h"] for number in range(workers)]


OPTIMIZING = "https://docs.celeryq.dev/en/stable/userguide/optimizing.html#prefetch-limits"
CONCURRENCY = "https://docs.celeryq.dev/en/stable/userguide/concurrency/index.html"
CONTENDERS = [
    Contender(
        "Celery",
        "celery",
        Server.REDIS,
        preforking,
        500,
        f"The prefork pool, which its [guide]({CONCURRENCY}) recommends, with `worker_prefetch_multiplier=64`, which"
        f" its guide to [optimizing]({OPTIMIZING}) recommends for many short tasks (1, 4 and 128 were tried too)."
        " Gossip, mingle and heartbeat are off, `task_ignore_result` is on, and there is no result backend. The log"
        " level is its default, WARNING. `-O fair`, the pool of threads, and two workers of one process each came"
        " within a quarter of this rate. Tasks run in an app context, by"
        " [Flask's pattern](https://flask.palletsprojects.com/en/stable/patterns/celery/).",
    ),
    Contender(
        "Celery, solo",
        "celery",
        Server.REDIS,
        solo,
        900,
        f"The same with one worker of the [solo]({CONCURRENCY}) pool for each core. It runs tasks in its main thread,"
        " one after the other and without time limits.",
    ),
]
