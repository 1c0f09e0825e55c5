"""Async tasks, receivers and hooks of any form, and functions whose body a call does not run."""

from __future__ import annotations

import asyncio
import functools
import subprocess
import sys
import threading
import types
from unittest.mock import AsyncMock

import pytest
from flask import Flask, current_app, g, has_app_context

from flask_backend import (
    Backend,
    Discard,
    JobState,
    RegistrationError,
    RetryLater,
    TaskResultError,
    current_job,
    testing,
)

QUEUE = "com.example/default"

ledger: list[str] = []
apps: list[Flask] = []  # they live as long as their test


@pytest.fixture(autouse=True)
def clean_ledger():
    ledger.clear()
    yield
    apps.clear()


@pytest.fixture(params=["memory://", "sync://"])
def backend(request):
    app = make_app(request.param)
    return app.extensions["backend"]


def make_app(uri, kind=Flask):
    app = kind("example")
    app.config["BACKEND_CONNECTION_URI"] = uri
    apps.append(app)
    Backend(app)
    return app


def drain(backend):
    return testing.memory(backend).drain()


def perform(backend, call, *args):
    """Schedule a call, and run it to its end."""
    call(*args)
    drain(backend)


def logged(function):
    """Wrap a function as decorators do that are not aware of ``async``."""

    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        return function(*args, **kwargs)

    return wrapper


# -- refused at registration ---------------------------------------------------------------------------------


def rows():
    yield 1


async def arows():
    yield 1


class Rows:
    def __call__(self):
        yield 1

    def method(self):
        yield 1

    @classmethod
    def of_class(cls):
        yield 1

    @staticmethod
    async def static():
        yield 1


@types.coroutine
def old_coroutine():
    yield


GENERATORS = {
    "generator": rows,
    "async generator": arows,
    "partial": functools.partial(rows),
    "partial of a partial": functools.partial(functools.partial(arows)),
    "object": Rows(),
    "bound method": Rows().method,
    "class method": Rows.of_class,
    "static method": Rows.static,
    "staticmethod itself": vars(Rows)["static"],
    "partial of an object": functools.partial(Rows()),
    "lambda": lambda: (yield),
    "generator-based coroutine": old_coroutine,
}


@pytest.mark.parametrize("function", GENERATORS.values(), ids=GENERATORS)
def test_a_generator_function_is_refused_where_it_is_registered(function):
    backend = Backend()
    for register in (backend.task(QUEUE, endpoint="rows"), backend.receiver(QUEUE), backend.before_first_task(QUEUE)):
        with pytest.raises(RegistrationError, match=r"is a generator function, and a worker's call would not run"):
            register(function)
    assert backend.queues == {}


def test_a_decorator_that_runs_a_generator_to_its_end_is_valid(backend):
    def exhausted(function):
        @functools.wraps(function)
        def wrapper(*args):
            ledger.extend(function(*args))

        return wrapper

    def exhausted_async(function):
        @functools.wraps(function)
        async def wrapper(*args):
            ledger.extend([item async for item in function(*args)])

        return wrapper

    @backend.task(QUEUE)
    @exhausted
    def plain(item):
        yield item

    @backend.task(QUEUE)
    @exhausted_async
    async def asynchronous(item):
        yield item

    plain("a")
    asynchronous("b")
    drain(backend)
    assert ledger == ["a", "b"]


# -- awaited -------------------------------------------------------------------------------------------------


async def coroutine(text="done"):
    await asyncio.sleep(0)
    ledger.append(text)


class Sender:
    async def __call__(self, text="done"):
        await coroutine(text)

    async def method(self, text="done"):
        await coroutine(text)

    @classmethod
    async def of_class(cls, text="done"):
        await coroutine(text)

    @staticmethod
    async def static(text="done"):
        await coroutine(text)

    @logged
    async def decorated(self, text="done"):
        await coroutine(text)


class Wrapper:
    """A decorator that is a class."""

    def __init__(self, function):
        functools.update_wrapper(self, function)

    def __call__(self, *args):
        return self.__wrapped__(*args)


def runs_it_itself(function):
    @functools.wraps(function)
    def wrapper(*args):
        return asyncio.run(function(*args))

    return wrapper


ASYNCHRONOUS = {
    "async def": coroutine,
    "decorated": logged(coroutine),
    "decorated twice": logged(logged(coroutine)),
    "decorated by a class": Wrapper(coroutine),
    "partial": functools.partial(coroutine, "done"),
    "partial of decorated": functools.partial(logged(coroutine), "done"),
    "decorated partial": logged(functools.partial(coroutine, "done")),
    "object": Sender(),
    "partial of an object": functools.partial(Sender()),
    "decorated object": logged(Sender()),
    "bound method": Sender().method,
    "class method": Sender.of_class,
    "static method": Sender.static,
    "decorated method": Sender().decorated,
    "runs it itself": runs_it_itself(coroutine),
    "mock": AsyncMock(side_effect=coroutine),
}


def register(backend, function):
    if not hasattr(function, "__name__"):
        function.__name__ = "send"
    return backend.task(QUEUE, endpoint="send")(function)


@pytest.mark.parametrize("function", ASYNCHRONOUS.values(), ids=ASYNCHRONOUS)
def test_any_async_callable_runs_to_its_end(backend, function):
    task = register(backend, function)
    job = task()
    drain(backend)
    assert ledger == ["done"]
    assert job.state() is JobState.DONE


@pytest.mark.parametrize("function", ASYNCHRONOUS.values(), ids=ASYNCHRONOUS)
def test_it_runs_to_its_end_in_a_running_event_loop_too_and_so_does_run(backend, function):
    task = register(backend, function)

    async def main():
        task()
        drain(backend)
        task.run()

    asyncio.run(main())
    assert ledger == ["done", "done"]


@pytest.mark.parametrize("function", ASYNCHRONOUS.values(), ids=ASYNCHRONOUS)
def test_hooks_and_receivers_may_be_async_too(backend, function):
    backend.before_first_task(QUEUE)(function)
    backend.receiver(QUEUE)(logged(coroutine))
    perform(backend, backend.send, QUEUE, "received")
    assert ledger == ["done", "received"]


def test_a_decorator_may_return_the_plain_result_itself(backend):
    @backend.task(QUEUE)
    @runs_it_itself
    async def answer():
        return 42

    answer()
    [record] = drain(backend) or [None]
    assert record is None or record.error is None
    assert answer.run() == 42


def test_a_coroutine_sees_the_app_context_and_its_job(backend):
    seen = []

    @backend.task(QUEUE)
    async def look():
        g.witness = "here"
        await asyncio.sleep(0)
        seen.append((current_app.name, g.witness, current_job.endpoint, threading.current_thread().name))

    app = backend.app_in_use()

    @app.teardown_appcontext
    def teardown(_error):
        seen.append(g.get("witness"))

    look()
    drain(backend)
    assert seen[0] == ("example", "here", "look", threading.current_thread().name)
    assert seen[1] == "here"
    assert not has_app_context()


def test_run_returns_the_result_and_sees_the_callers_context(backend):
    @backend.task(QUEUE)
    async def look():
        await asyncio.sleep(0)
        return current_app.name, bool(current_job)

    with backend.app_in_use().app_context():
        assert look.run() == ("example", False)

        async def main():
            return look.run(), await look.function()

        assert asyncio.run(main()) == (("example", False), ("example", False))


def test_all_hooks_and_tasks_of_a_test_share_one_loop_until_it_is_cleared(backend):
    loops = []

    @backend.before_first_task(QUEUE)
    async def hook():
        loops.append(asyncio.get_running_loop())

    @backend.task(QUEUE)
    async def note():
        loops.append(asyncio.get_running_loop())

    @backend.task(QUEUE)
    def calls_run():
        note.run()

    note()
    drain(backend)
    calls_run()
    drain(backend)
    assert len(loops) == 3
    assert len(set(loops)) == 1
    testing.memory(backend).clear()
    assert loops[0].is_closed()
    note()
    drain(backend)
    assert loops[-1] not in loops[:3]


def test_under_sync_an_async_task_may_call_another():
    backend = make_app("sync://").extensions["backend"]
    send = backend.task(QUEUE, endpoint="send")(coroutine)

    @backend.task(QUEUE)
    async def outer():
        send("inner")
        ledger.append("outer")

    outer()
    assert ledger == ["inner", "outer"]


@pytest.mark.parametrize("error", [ValueError, SystemExit, KeyboardInterrupt, asyncio.CancelledError, GeneratorExit])
def test_an_exception_of_a_coroutine_is_raised_and_the_loop_stays_usable(backend, error):
    @backend.task(QUEUE)
    async def fail():
        await asyncio.sleep(0)
        raise error("no luck")

    send = backend.task(QUEUE, endpoint="send")(coroutine)
    for _ in range(2):
        with pytest.raises(error):
            perform(backend, fail)
    with pytest.raises(error):
        fail.run()
    send()
    drain(backend)
    assert ledger == ["done"]


def test_a_coroutine_may_decide_how_its_job_is_settled():
    backend = make_app("memory://").extensions["backend"]

    @backend.task(QUEUE)
    async def decide(how):
        await asyncio.sleep(0)
        raise {"later": RetryLater(60, "busy"), "discard": Discard("too late")}[how]

    later, discard = decide("later"), decide("discard")
    drain(backend)
    assert (later.state(), discard.state()) == (JobState.DELAYED, JobState.DONE)


# -- results that fail the job -------------------------------------------------------------------------------


class Promise:
    def __init__(self):
        self.is_cancelled = False

    def __await__(self):
        yield

    def cancel(self):
        self.is_cancelled = True


async def forgets_to_await():
    return coroutine()


async def leaves_a_task():
    return asyncio.create_task(asyncio.sleep(60), name="left")


def without_wraps(function):
    return lambda *args: function(*args)  # noqa: PLW0108


UNFINISHED = {
    "a coroutine": (lambda: coroutine(), "`await` the coroutine"),  # noqa: PLW0108
    "a coroutine ": (without_wraps(coroutine), "`await` the coroutine"),
    "a coroutine  ": (forgets_to_await, "`await` the coroutine"),
    "a generator": (lambda: rows(), "with `for`"),  # noqa: PLW0108
    "a generator ": (logged(rows), "with `for`"),
    "a generator  ": (lambda: (item for item in [1]), "with `for`"),
    "an async generator": (logged(arows), "`async for`"),
    "an async generator ": (lambda: arows(), "`async for`"),  # noqa: PLW0108
    "an awaitable Promise": (lambda: Promise(), "`await` it"),  # noqa: PLW0108
    "an awaitable Task": (leaves_a_task, "`await` it"),
}


@pytest.mark.parametrize(("what", "function", "hint"), [(k.strip(), *v) for k, v in UNFINISHED.items()])
def test_a_result_that_has_not_run_fails_the_job_with_a_sentence(backend, what, function, hint):
    task = backend.task(QUEUE, endpoint="send")(function)
    for attempt in (task, task.run):
        with pytest.raises(TaskResultError, match=rf"^send\(\) returned {what}, which has not run: .*{hint}"):
            perform(backend, attempt)
    assert ledger == []


LEAVES_A_TASK = """
import asyncio
from flask import Flask
from flask_backend import Backend, testing

app = Flask(__name__)
app.config["BACKEND_CONNECTION_URI"] = "memory://"
backend = Backend(app)

@backend.task("q")
async def task():
    app.left = asyncio.create_task(asyncio.sleep(60))
    await asyncio.sleep(0)

task()
testing.drain(backend)
"""


@pytest.mark.parametrize("ending", ["", "del app, backend, task; import gc; gc.collect()"])
def test_a_background_task_that_is_left_at_the_end_of_the_process_causes_no_warning(ending):
    program = [sys.executable, "-X", "dev", "-c", LEAVES_A_TASK + ending]
    done = subprocess.run(program, capture_output=True, text=True, check=True)
    assert done.stdout + done.stderr == ""


def test_a_hook_that_returns_one_fails_too(backend):
    @backend.before_first_task(QUEUE)
    @logged
    def hook():
        return coroutine()

    task = backend.task(QUEUE, endpoint="send")(coroutine)
    with pytest.raises(TaskResultError, match=r"^hook\(\) returned a coroutine, which has not run"):
        perform(backend, task)
    assert ledger == []


def test_an_awaitable_result_is_cancelled():
    backend = Backend()
    promise = Promise()
    with pytest.raises(TaskResultError):
        backend.task(QUEUE, endpoint="promise")(lambda: promise).run()
    assert promise.is_cancelled


@pytest.mark.parametrize("result", [None, 0, "text", [1], iter([1]), {"a": 1}, object()])
def test_any_other_result_is_ignored(backend, result):
    task = backend.task(QUEUE, endpoint="send")(lambda: result)
    task()
    drain(backend)
    assert task.run() is result


# -- apps with overridden async methods ----------------------------------------------------------------------


@pytest.mark.parametrize("function", [coroutine, logged(coroutine), functools.partial(coroutine, "done")])
def test_an_app_may_override_async_to_sync(function):
    calls = []

    class Own(Flask):
        def async_to_sync(self, func):
            def wrapper(*args, **kwargs):
                calls.append(1)
                return asyncio.run(func(*args, **kwargs))

            return wrapper

    backend = make_app("memory://", Own).extensions["backend"]
    register(backend, function)()
    drain(backend)
    assert ledger == ["done"]
    assert calls == [1]


def test_an_app_may_override_ensure_sync():
    app = make_app("memory://")
    backend = app.extensions["backend"]
    seen = []

    def ensure_sync(function):
        seen.append(function)
        return (lambda *args: asyncio.run(function(*args))) if function is coroutine else function

    app.ensure_sync = ensure_sync
    backend.task(QUEUE, endpoint="async")(coroutine)("own way")
    backend.task(QUEUE, endpoint="sync")(ledger.append)("sync")
    backend.task(QUEUE, endpoint="decorated")(logged(coroutine))("decorated")
    drain(backend)
    assert ledger == ["own way", "sync", "decorated"]
    assert coroutine in seen
