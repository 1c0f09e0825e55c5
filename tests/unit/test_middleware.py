"""Middleware around each run and each scheduling, in memory; execution is the same in a worker."""

from __future__ import annotations

import asyncio
import functools

import pytest
from flask import Flask, g

from flask_backend import (
    Backend,
    BulkError,
    Bury,
    Discard,
    Job,
    MessageEncodeError,
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
        (lambda _job, _proceed: None, "has returned without calling proceed(), so nothing was done: call it, or raise"),
        (lambda _job, proceed: (proceed(), proceed()), "has called proceed() twice"),
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


# -- around scheduling ---------------------------------------------------------------------------------------------


@pytest.fixture
def hello(backend):
    seen = []

    @backend.task(QUEUE)
    def hello(name, *, loud=False):
        seen.append((name, dict(current_job.headers)))

    hello.seen = seen
    return hello


def test_a_call_is_seen_and_headers_that_are_written_arrive(backend, hello):
    calls = []

    @backend.schedule_middleware
    def traced(call, proceed):
        call.headers["trace"] = {"id": "żółw", "n": [1]}
        call.headers["id"] = call.headers["at"] = "not taken"
        job = proceed()
        calls.append((call, job))

    job = hello.options(delay=0.5)("world", loud=True)
    [(call, its_job)] = calls
    assert its_job is job
    assert (call.queue, call.endpoint, call.args, call.kwargs) == (QUEUE, "hello", ("world",), {"loud": True})
    assert (call.id, call.options.delay) == (job.uid, 0.5)
    testing.move_time(1, backend)
    drain(backend)
    [(_, headers)] = hello.seen
    assert headers["trace"] == {"id": "żółw", "n": [1]}
    assert headers["id"] == job.uid
    assert isinstance(headers["at"], float)


def test_without_headers_the_message_is_the_usual_one(backend, hello):
    backend.schedule_middleware(lambda _call, proceed: proceed())
    job = hello("world")
    drain(backend)
    assert hello.seen[0][1].keys() == {"id", "at"}
    assert isinstance(job, Job)


def test_each_call_of_a_map_has_its_own_headers(backend, hello):
    order = []

    @backend.schedule_middleware
    def outer(call, proceed):
        order.append(("outer", *call.args))
        call.headers["of"] = call.args[0]
        assert proceed() is None

    @backend.schedule_middleware
    def inner(call, proceed):
        order.append(("inner", *call.args))
        call.headers["inner"] = call.headers["of"] * 2
        return proceed()

    jobs = hello.map(["a", "b"])
    assert order == [("outer", "a"), ("inner", "a"), ("outer", "b"), ("inner", "b")]
    drain(backend)
    assert [(name, headers["of"], headers["inner"], headers["id"]) for name, headers in hello.seen] == [
        ("a", "a", "aa", jobs[0].uid),
        ("b", "b", "bb", jobs[1].uid),
    ]


def test_the_errors_of_a_call_pass_through(backend, hello):
    seen = []

    @backend.schedule_middleware
    def watch(_call, proceed):
        try:
            return proceed()
        except Exception as error:
            seen.append(error)
            raise

    with pytest.raises(MessageEncodeError, match="argument 'name' of hello is") as raised:
        hello(object())
    assert seen == [raised.value]
    with pytest.raises(BulkError) as raised:
        hello.map(["a", object()])
    assert list(raised.value.reasons.values()) == seen[1:]
    assert list(raised.value.jobs) == [0]


@pytest.mark.parametrize(
    ("headers", "said"),
    [
        ({"odd": object()}, "the header 'odd' of a call of hello is <object object"),
        ({"nan": float("nan")}, "the header 'nan' of a call of hello is nan"),
        ({1: "x"}, "the header 1 of a call of hello is 'x', which JSON cannot carry"),
        ({"deep": functools.reduce(lambda inner, _: [inner], range(300), [])}, "the header 'deep'"),
    ],
)
def test_a_header_that_json_cannot_carry_is_an_error_of_the_call(backend, hello, headers, said):
    @backend.schedule_middleware
    def bad(call, proceed):
        call.headers.update(headers)
        return proceed()

    with pytest.raises(MessageEncodeError) as raised:
        hello("world")
    assert said in str(raised.value)
    testing.assert_not_scheduled(hello)


@pytest.mark.parametrize("times", [0, 2])
def test_a_schedule_middleware_that_does_not_proceed_once_is_an_error_of_the_call(backend, hello, times):
    backend.schedule_middleware(lambda _call, proceed: [proceed() for _ in range(times)])
    with pytest.raises(MiddlewareError, match=r"proceed\(\)"):
        hello("world")
    with pytest.raises(BulkError) as raised:
        hello.map(["a"])
    assert isinstance(raised.value.reasons[0], MiddlewareError)


def test_messages_to_other_systems_have_no_headers_and_no_middleware(backend):
    @backend.schedule_middleware
    def fail(_call, _proceed):
        raise AssertionError

    backend.send("com.example/elsewhere", {"any": "json"})


def test_what_cannot_be_schedule_middleware_is_refused(backend):
    with pytest.raises(
        RegistrationError, match=r"@backend\.schedule_middleware: workers call <lambda>\(call, proceed\)"
    ):
        backend.schedule_middleware(lambda _call: None)
    with pytest.raises(RegistrationError, match=r"is async, and @backend\.schedule_middleware calls it"):
        backend.schedule_middleware(is_async)
