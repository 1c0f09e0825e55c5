"""What a tracer sees, and that it cannot change anything; in memory."""

from __future__ import annotations

import subprocess
import sys
from contextlib import contextmanager
from contextvars import ContextVar

import pytest

from flask_backend import (
    BulkError,
    Retry,
    TaskTimeout,
    WorkerDiedError,
    current_job,
    signals,
    testing,
    tracing,
)
from flask_backend.config import Address, StandIn
from flask_backend.tracing import Sending, watched

QUEUE = "q"


class Notes:
    """A tracer that writes down what it sees."""

    def __init__(self, **headers) -> None:
        self.headers = headers
        self.seen: list[tuple] = []
        self.error: BaseException | None = None

    @contextmanager
    def sending(self, sending):
        sending.headers.update(self.headers)
        with self._noting_errors():
            yield
        self.seen.append(("sent", sending.queue, sending.endpoint, sending.is_batch, sending.sent))
        self.last = sending

    @contextmanager
    def processing(self, processing):
        job = processing.job
        self.seen.append(("begins", job.queue, job.endpoint, processing.args, processing.kwargs))
        yield
        attempts = job.known_attempts
        self.seen.append(("ends", job.endpoint, attempts and attempts.number))
        self.last = processing

    @contextmanager
    def _noting_errors(self):
        try:
            yield
        except BaseException as error:
            self.error = error
            raise

    def flush(self, within_s):
        self.seen.append(("flush", within_s))


@pytest.fixture
def tracer():
    tracer = Notes(trace="x")
    tracing.tracers.append(tracer)
    yield tracer
    tracing.tracers.remove(tracer)


def drain(app):
    return testing.drain(app, raise_errors=False)


def test_each_operation_is_seen_once_and_calls_get_the_headers(app, backend, tracer):
    headers = []

    @backend.task(QUEUE)
    def hello(name, *, loud=False):
        headers.append({name: value for name, value in current_job.headers.items() if name not in ("id", "at")})

    @backend.receiver("inbox")
    def inbox(message): ...

    job = hello("a", loud=True)
    assert (tracer.last.uid, tracer.last.broker) == (job.uid, StandIn.MEMORY)
    assert tracer.last.size > 50
    hello.map(["b", "c"])
    assert tracer.last.uid is None
    backend.send("inbox", "d")
    assert tracer.last.size == 3
    backend.send_many("inbox", ["e", "f"])
    drain(app)
    assert tracer.seen == [
        ("sent", QUEUE, "hello", False, 1),
        ("sent", QUEUE, "hello", True, 2),
        ("sent", "inbox", None, False, 1),
        ("sent", "inbox", None, True, 2),
        *(
            fact
            for name, kwargs in (("a", {"loud": True}), ("b", {}), ("c", {}))
            for fact in (("begins", QUEUE, "hello", [name], kwargs), ("ends", "hello", 1))
        ),
        *(fact for message in "def" for fact in (("begins", "inbox", "inbox", [message], {}), ("ends", "inbox", 1))),
    ]
    assert headers == [{"trace": "x"}] * 3


def test_the_headers_of_the_middleware_win_and_ours_cannot_be_set(app, backend, tracer):
    tracer.headers |= {"id": "mine", "at": 0, "other": 1}
    seen = []

    @backend.schedule_middleware
    def schedule(call, proceed):
        seen.append(dict(call.headers))
        call.headers["trace"] = "y"
        return proceed()

    @backend.task(QUEUE)
    def hello(name):
        seen.append(dict(current_job.headers))

    job = hello("a")
    hello.map(["b"])
    drain(app)
    assert seen[:2] == [tracer.headers, tracer.headers]
    assert [(each["trace"], each["other"]) for each in seen[2:]] == [("y", 1)] * 2
    assert seen[2]["id"] == job.uid


def test_a_refused_batch_is_seen_with_its_error(backend, tracer):
    @backend.task(QUEUE)
    def hello(name): ...

    with pytest.raises(BulkError):
        hello.map(["a", object()])
    assert isinstance(tracer.error, BulkError)


def test_the_signals_of_an_attempt_are_sent_within_it(app, backend, tracer):
    @backend.task(QUEUE, retry=Retry(max_retries=0))
    def fails():
        raise KeyError

    def note(_app, **_facts):
        tracer.seen.append(("signal",))

    for signal in (signals.task_failed, signals.task_buried):
        signal.connect(note, app)
    fails()
    drain(app)
    for signal in (signals.task_failed, signals.task_buried):
        signal.disconnect(note)
    assert [fact[0] for fact in tracer.seen] == ["sent", "begins", "signal", "signal", "ends"]


def test_context_variables_of_a_tracer_reach_the_task_and_nothing_else(app, backend):
    variable: ContextVar[str] = ContextVar("variable", default="")
    seen = []

    class Setter(Notes):
        @contextmanager
        def processing(self, processing):
            variable.set("set")  # and never reset
            yield

    @backend.task(QUEUE)
    def hello():
        seen.append(variable.get())

    @backend.task(QUEUE)
    async def hello_later():
        seen.append(variable.get())

    tracing.tracers.append(Setter())
    try:
        hello()
        hello_later()
        drain(app)
    finally:
        del tracing.tracers[-1]
    assert seen == ["set", "set"]
    assert variable.get() == ""


class Broken(Notes):
    """Fails where ``at`` says."""

    def __init__(self, at: str, error: BaseException) -> None:
        super().__init__()
        self.at, self.error = at, error

    def sending(self, sending):
        return self._fail_in(sending)

    def processing(self, processing):
        return self._fail_in(processing)

    def _fail_in(self, _what):
        if self.at == "call":
            raise self.error

        @contextmanager
        def fail():
            if self.at == "begin":
                raise self.error
            yield
            raise self.error

        return fail()

    def flush(self, within_s):
        raise self.error


@pytest.mark.parametrize("at", ["call", "begin", "end"])
@pytest.mark.parametrize("order", [1, -1])
def test_a_tracer_that_fails_is_logged_and_the_others_go_on(app, backend, tracer, caplog, at, order):
    ran = []

    @backend.task(QUEUE)
    def hello():
        ran.append(1)

    tracing.tracers.append(Broken(at, ValueError("broken")))
    tracing.tracers.sort(key=lambda each: order * isinstance(each, Broken))
    try:
        hello()
        assert [run.error for run in drain(app)] == [None]
        tracing.flush(1)
    finally:
        tracing.tracers[:] = [tracer]
    assert ran == [1]
    assert [fact[0] for fact in tracer.seen] == ["sent", "begins", "ends", "flush"]
    assert caplog.text.count("the tracer Broken failed") == 3
    assert caplog.text.count("ValueError: broken") >= 3


def test_during_an_attempt_no_exception_of_a_tracer_leaves_it(app, backend, caplog):
    @backend.task(QUEUE)
    def hello(): ...

    hello()
    tracing.tracers.append(Broken("begin", SystemExit(1)))
    try:
        assert [run.error for run in drain(app)] == [None]
    finally:
        del tracing.tracers[-1]
    assert "the tracer Broken failed" in caplog.text


@pytest.mark.parametrize("error", [TaskTimeout(), KeyboardInterrupt()], ids=repr)
def test_an_interrupt_of_the_task_passes_through_a_send(error):
    tracing.tracers.append(Broken("end", error))
    try:
        with pytest.raises(type(error)), watched(Sending(QUEUE, None, None, Address())):
            pass
    finally:
        del tracing.tracers[-1]


def test_the_exception_of_the_operation_is_not_one_of_the_tracer(caplog):
    class Handing(Notes):
        def sending(self, _sending):
            class Context:
                def __enter__(self): ...

                def __exit__(self, _kind, error, _tb):
                    raise error

            return Context()

    tracing.tracers.append(Handing())
    try:
        with pytest.raises(KeyError), watched(Sending(QUEUE, None, None, Address())):
            raise KeyError
    finally:
        del tracing.tracers[-1]
    assert caplog.text == ""


@pytest.mark.parametrize(
    ("module", "extra"), [("sentry_sdk", "sentry"), ("opentelemetry.instrumentation.utils", "opentelemetry")]
)
def test_a_missing_extra_is_named(module, extra):
    code = f"import sys; sys.modules[{module!r}] = None; import flask_backend.contrib.{extra}"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ran.returncode == 1
    last = ran.stderr.splitlines()[-1]
    assert last.startswith("ModuleNotFoundError: ")
    assert last.endswith(f"flask_backend.contrib.{extra} needs `pip install flask-backend[{extra}]`")


def test_a_death_has_its_facts():
    assert WorkerDiedError("died").facts == {}
    assert WorkerDiedError("died", {"exit_signal": 9}).facts == {"exit_signal": 9}
