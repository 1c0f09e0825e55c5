"""Middleware around each run, in memory; execution is the same in a worker."""

from __future__ import annotations

import asyncio
import functools

import pytest
from flask import Flask, g

from flask_backend import (
    Backend,
    Bury,
    Discard,
    MiddlewareError,
    RegistrationError,
    Retry,
    RetryLater,
    current_job,
    testing,
)

QUEUE = "q"


@pytest.fixture(params=["memory://"])
def backend(request):
    app = Flask(__name__)
    app.config["BACKEND_CONNECTION_URI"] = request.param
    yield Backend(app)  # noqa: PT022  # it does not keep its app


def drain(backend):
    return testing.drain(backend, raise_errors=False)


def test_the_first_is_the_outermost_and_sees_the_job_and_the_result(backend):
    seen = []

    def around(name):
        def run(job, proceed):
            seen.append((name, "before", job.endpoint, job.attempt, job.id == current_job.id))
            result = proceed()
            seen.append((name, "after", result))
            return result

        return backend.middleware(run)

    around("outer")
    around("inner")

    @backend.task(QUEUE)
    def hello(name):
        seen.append("runs")
        return f"hello {name}"

    hello("world")
    assert [ran.error for ran in drain(backend)] == [None]
    assert seen == [
        ("outer", "before", "hello", 1, True),
        ("inner", "before", "hello", 1, True),
        "runs",
        ("inner", "after", "hello world"),
        ("outer", "after", "hello world"),
    ]


def test_it_is_around_receivers_and_async_tasks_and_not_around_hooks(backend):
    seen = []

    @backend.middleware
    def run(job, proceed):
        seen.append((job.queue, job.endpoint, proceed()))

    @backend.before_first_task(QUEUE)
    def hook(): ...

    @backend.task(QUEUE)
    async def sleeps():
        await asyncio.sleep(0)
        return 5

    @backend.receiver("inbox")
    def receive(message):
        return message

    sleeps()
    backend.send("inbox", [1])
    assert [ran.error for ran in drain(backend)] == [None, None]
    assert seen == [(QUEUE, "sleeps", 5), ("inbox", "receive", [1])]


def test_it_runs_in_the_app_context_of_the_task(backend):
    @backend.middleware
    def run(_job, proceed):
        g.user = "alice"
        return proceed()

    seen = []

    @backend.task(QUEUE)
    def hello():
        seen.append(g.user)

    hello()
    drain(backend)
    assert seen == ["alice"]


@pytest.mark.parametrize("error", [ValueError("x"), RetryLater(5), Bury("x"), Discard("x"), SystemExit(1)], ids=repr)
def test_it_sees_the_exception_of_the_task_and_may_swallow_it(backend, error):
    seen = []
    swallows = False

    @backend.middleware
    def run(_job, proceed):
        try:
            return proceed()
        except BaseException as raised:
            seen.append(raised)
            if swallows:
                return None
            raise

    @backend.task(QUEUE)
    def fails():
        raise error

    fails()
    assert [ran.error for ran in drain(backend)] == seen == [error]
    swallows = True
    job = fails()
    assert drain(backend)[-1].error is None
    assert job.state() == "done"


def test_an_exception_instead_of_the_run_is_the_outcome(backend):
    @backend.middleware
    def run(_job, _proceed):
        raise Discard("switched off")

    @backend.task(QUEUE)
    def hello():
        raise AssertionError

    job = hello()
    [ran] = drain(backend)
    assert isinstance(ran.error, Discard)
    assert job.state() == "done"


@pytest.mark.parametrize(
    ("middleware", "said"),
    [
        (lambda _job, _proceed: None, "has returned without calling proceed(), so the task has not run: call it, or"),
        (lambda _job, proceed: (proceed(), proceed()), "has called proceed() twice for one run"),
    ],
    ids=["not called", "twice"],
)
def test_one_that_does_not_proceed_once_fails_the_job(backend, middleware, said):
    backend.middleware(middleware)
    runs = []

    @backend.task(QUEUE, retry=Retry(max_retries=0))
    def hello():
        runs.append(1)

    job = hello()
    [ran] = drain(backend)
    assert isinstance(ran.error, MiddlewareError)
    assert said in str(ran.error)
    assert len(runs) == (1 if "twice" in said else 0)
    assert job.state() == "buried"


async def is_async(_job, _proceed): ...


def generates(_job, proceed):
    yield proceed()


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (is_async, "is_async is async, and @backend.middleware calls it as a plain function: write `def`"),
        (functools.partial(is_async), "is async"),
        (generates, "is a generator function"),
        (lambda _job: None, r"workers call <lambda>\(job, proceed\), which"),
        (None, "expects a function"),
        (int, "is a class"),
    ],
)
def test_what_cannot_be_middleware_is_refused(backend, function, said):
    with pytest.raises(RegistrationError, match=said):
        backend.middleware(function)


@pytest.mark.parametrize("backend", ["sync://"], indirect=True)
def test_it_is_around_the_runs_of_sync(backend):
    seen = []

    @backend.task(QUEUE)
    def hello():
        return 1

    @backend.middleware  # registered later than the task
    def run(_job, proceed):
        seen.append(proceed())

    hello()
    assert seen == [1]
    assert hello.run() == 1  # a plain call: no job, no middleware
    assert seen == [1]
