"""Spans and metrics of OpenTelemetry's own SDK, in memory; see faults/test_traced_workers.py for real workers."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
import time
from importlib.metadata import entry_points

import pytest
from opentelemetry import baggage, context, propagate, trace
from opentelemetry.instrumentation.flask import FlaskInstrumentor
from opentelemetry.instrumentation.utils import suppress_instrumentation
from opentelemetry.propagators.textmap import TextMapPropagator
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from support.in_memory import make_app

from flask_backend import (
    BulkError,
    Bury,
    Discard,
    Retry,
    RetryLater,
    TaskArgumentsError,
    current_job,
    signals,
    testing,
    tracing,
)
from flask_backend.contrib.opentelemetry import FlaskBackendInstrumentor
from flask_backend.options import DEFAULTS

QUEUE = "com.example/default"


class Telemetry:
    """The spans and metrics of one instrumented test."""

    def __init__(self) -> None:
        self.exporter = InMemorySpanExporter()
        self.reader = InMemoryMetricReader()
        self.traces = TracerProvider(shutdown_on_exit=False)
        self.traces.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.metrics = MeterProvider([self.reader], shutdown_on_exit=False)
        self.tracer = self.traces.get_tracer("test")

    def instrument(self, **options) -> None:
        FlaskBackendInstrumentor().instrument(tracer_provider=self.traces, meter_provider=self.metrics, **options)

    def spans(self, name: str | None = None):
        return [span for span in self.exporter.get_finished_spans() if name in (None, span.name)]

    def points(self, name: str):
        data = self.reader.get_metrics_data()
        return [
            point
            for resource in (data.resource_metrics if data else [])
            for scope in resource.scope_metrics
            for metric in scope.metrics
            if metric.name == name
            for point in metric.data.data_points
        ]


@pytest.fixture
def telemetry():
    telemetry = Telemetry()
    telemetry.instrument()
    yield telemetry
    if FlaskBackendInstrumentor().is_instrumented_by_opentelemetry:
        FlaskBackendInstrumentor().uninstrument()


def drain(app):
    return testing.drain(app, raise_errors=False)


def test_a_call_and_its_run_are_two_traces_with_a_link(app, backend, telemetry):
    seen = []

    @backend.task(QUEUE)
    def hello(name):
        seen.append(trace.get_current_span().get_span_context())

    with telemetry.tracer.start_as_current_span("request"):
        job = hello("world")
    drain(app)
    send, request, process = telemetry.spans()
    assert (send.name, send.kind) == (f"send {QUEUE}", SpanKind.PRODUCER)
    assert send.parent.span_id == request.context.span_id
    assert (process.name, process.kind) == (f"process {QUEUE}", SpanKind.CONSUMER)
    assert process.parent is None
    assert process.context.trace_id != send.context.trace_id
    assert [link.context.span_id for link in process.links] == [send.context.span_id]
    assert seen == [process.context]
    assert not trace.get_current_span().get_span_context().is_valid
    common = {"messaging.system": "beanstalkd", "messaging.destination.name": QUEUE, "messaging.message.id": job.uid}
    body_size = send.attributes["messaging.message.body.size"]
    assert body_size > 100
    assert send.attributes == common | {
        "messaging.operation.name": "put",
        "messaging.operation.type": "send",
        "messaging.message.body.size": body_size,
        "flask_backend.endpoint": "hello",
    }
    assert process.attributes == common | {
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.message.body.size": body_size,
        "flask_backend.endpoint": "hello",
        "flask_backend.job_id": job.id,
        "flask_backend.attempt": 1,
        "flask_backend.outcome": "done",
    }


@pytest.mark.parametrize("how", ["option", "environment"])
def test_by_option_the_sender_is_the_parent(app, backend, monkeypatch, how):
    telemetry = Telemetry()
    monkeypatch.setenv("OTEL_PYTHON_FLASK_BACKEND_PARENT", "True" if how == "environment" else "")
    telemetry.instrument(**({"parent": True} if how == "option" else {}))
    try:

        @backend.task(QUEUE)
        def hello(): ...

        hello()
        drain(app)
    finally:
        FlaskBackendInstrumentor().uninstrument()
    send, process = telemetry.spans()
    assert process.parent.span_id == send.context.span_id
    assert process.context.trace_id == send.context.trace_id
    assert [link.context.span_id for link in process.links] == [send.context.span_id]


def test_a_map_is_one_span_whose_context_is_in_all_its_calls(app, backend, telemetry):
    headers = []

    @backend.task(QUEUE)
    def hello(name):
        headers.append(current_job.headers["traceparent"])

    hello.map(["a", "b", "c"])
    drain(app)
    send, *processes = telemetry.spans()
    assert send.name == f"send {QUEUE}"
    assert send.attributes["messaging.batch.message_count"] == 3
    assert "messaging.message.id" not in send.attributes
    assert {link.context.span_id for span in processes for link in span.links} == {send.context.span_id}
    assert len(processes) == 3
    assert len(set(headers)) == 1


def test_a_map_with_a_refused_item_counts_the_others(backend, telemetry):
    @backend.task(QUEUE)
    def hello(name): ...

    with pytest.raises(BulkError):
        hello.map(["a", object(), "c"])
    [send] = telemetry.spans()
    assert send.attributes["messaging.batch.message_count"] == 2
    assert send.attributes["error.type"] == "BulkError"
    assert send.status.status_code is StatusCode.ERROR
    [sent] = telemetry.points("messaging.client.sent.messages")
    assert sent.value == 2


def test_messages_to_other_systems_have_spans_and_no_headers(app, backend, telemetry):
    received = []

    @backend.receiver("inbox")
    def inbox(message):
        received.append(message)

    backend.send("inbox", {"any": "json"})
    backend.send_many("inbox", [1, 2])
    drain(app)
    assert received == [{"any": "json"}, 1, 2]
    send, batch, *processes = telemetry.spans()
    assert send.attributes["messaging.message.body.size"] == 14
    assert "messaging.message.id" not in send.attributes
    assert batch.attributes["messaging.batch.message_count"] == 2
    assert [span.links for span in processes] == [()] * 3
    assert {span.attributes["flask_backend.endpoint"] for span in processes} == {"inbox"}
    assert "messaging.message.id" not in processes[0].attributes


def test_a_failure_is_an_error_with_its_exception_and_outcome(app, backend, telemetry):
    @backend.task(QUEUE, retry=Retry(max_retries=1))
    def fails():
        raise KeyError("secret")

    fails()
    drain(app)
    testing.move_time(60, app)
    drain(app)
    first, second = telemetry.spans(f"process {QUEUE}")
    assert first.status.status_code is StatusCode.ERROR
    assert first.status.description == "KeyError: 'secret'"
    assert first.attributes["error.type"] == "KeyError"
    assert [span.attributes["flask_backend.outcome"] for span in (first, second)] == ["retried", "buried"]
    assert [span.attributes["flask_backend.attempt"] for span in (first, second)] == [1, 2]
    [event] = first.events
    assert event.name == "exception"
    assert event.attributes["exception.stacktrace"].startswith("Traceback")
    assert 'raise KeyError("secret")' in event.attributes["exception.stacktrace"]
    assert first.links[0].context == second.links[0].context


@pytest.mark.parametrize(
    ("decision", "outcome"),
    [(RetryLater(5), "retried"), (Bury("x"), "buried"), (Discard("x"), "discarded")],
    ids=["RetryLater", "Bury", "Discard"],
)
def test_a_decision_is_no_error(app, backend, telemetry, decision, outcome):
    @backend.task(QUEUE)
    def decides():
        raise decision

    decides()
    drain(app)
    [span] = telemetry.spans(f"process {QUEUE}")
    assert span.status.status_code is StatusCode.UNSET
    assert "error.type" not in span.attributes
    assert span.attributes["flask_backend.outcome"] == outcome
    [point] = telemetry.points("messaging.process.duration")
    assert "error.type" not in point.attributes


def test_a_task_that_is_left_at_its_checkpoint_is_no_error_and_goes_on_in_another_span(app, backend, telemetry):
    @backend.task(QUEUE)
    def long():
        current_job.checkpoint(1)

    long()
    testing.interrupt(app=app)
    drain(app)
    spans = telemetry.spans(f"process {QUEUE}")
    assert [span.attributes["flask_backend.outcome"] for span in spans] == ["interrupted", "done"]
    assert {span.status.status_code for span in spans} == {StatusCode.UNSET}
    assert spans[0].links[0].context == spans[1].links[0].context


def test_an_undecodable_job_is_an_error(app, backend, telemetry):
    @backend.task(QUEUE)
    def hello(): ...

    backend.send(QUEUE, ["no task"])
    drain(app)
    [span] = telemetry.spans(f"process {QUEUE}")
    assert span.attributes["error.type"] == "MessageDecodeError"
    assert span.attributes["flask_backend.outcome"] == "buried"
    assert "flask_backend.endpoint" not in span.attributes


class HostileError(Exception):
    def __str__(self):
        raise SystemExit


def test_hostile_exceptions_are_recorded(app, backend, telemetry):
    @backend.task(QUEUE)
    def fails():
        raise HostileError

    fails()
    drain(app)
    [span] = telemetry.spans(f"process {QUEUE}")
    assert span.attributes["error.type"].endswith("HostileError")


GARBAGE = [
    {"traceparent": "x"},
    {"traceparent": ["00-" + "1" * 32 + "-" + "1" * 16 + "-01"]},
    {"traceparent": 5, "tracestate": {}, "baggage": None},
    {"traceparent": "00-" + "0" * 32 + "-" + "0" * 16 + "-01"},
    {"traceparent": "a" * 1_000, "tracestate": "b" * 8_000, "baggage": "c" * 20_000},
    {"baggage": ",,=,a=%%%,=b,\x00=\x00" * 50},
    {"id": {"a": 1}, "traceparent": "\ud800"},
    {"id": "\ud800", "baggage": "\ud800=\ud800"},
    {"id": "x" * 5_000},
]


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("headers", GARBAGE, ids=range(len(GARBAGE)))
def test_garbage_in_the_headers_costs_only_the_link(app, backend, telemetry, headers):
    ran = []

    @backend.task(QUEUE)
    def hello():
        ran.append(1)

    backend.put(QUEUE, json.dumps({"endpoint": "hello", "headers": headers}).encode(), DEFAULTS, None)
    [run] = drain(app)
    assert (run.error, ran) == (None, [1])
    [span] = telemetry.spans(f"process {QUEUE}")
    assert span.links == ()
    uid = span.attributes.get("messaging.message.id", "")
    assert len(uid) <= 200
    uid.encode()  # an exporter could not send its whole batch otherwise


def test_baggage_crosses_the_queue_and_stays_in_its_job(app, backend, telemetry):
    seen = []

    @backend.task(QUEUE)
    def hello():
        seen.append(baggage.get_all())

    token = context.attach(baggage.set_baggage("user", "al ice"))
    hello()
    context.detach(token)
    hello()
    drain(app)
    assert seen == [{"user": "al ice"}, {}]
    assert baggage.get_all() == {}


def test_async_tasks_and_the_signals_of_a_job_see_its_span(app, backend, telemetry):
    seen = []

    def note(_app, **_):
        seen.append(trace.get_current_span().get_span_context())

    @backend.task(QUEUE)
    async def sleeps():
        await asyncio.sleep(0)
        note(None)
        await asyncio.create_task(asyncio.sleep(0))
        raise ValueError

    sent = signals.task_started, signals.task_failed, signals.task_retried
    for signal in sent:
        signal.connect(note, app)
    try:
        sleeps()
        drain(app)
    finally:
        for signal in sent:
            signal.disconnect(note)
    [span] = telemetry.spans(f"process {QUEUE}")
    assert seen == [span.context] * 4


def test_the_log_line_of_a_failure_is_in_the_span_of_its_job(app, backend, telemetry):
    seen = []

    class Handler(logging.Handler):
        def emit(self, record):
            seen.append((record.name, trace.get_current_span().get_span_context()))

    @backend.task(QUEUE)
    def fails():
        raise KeyError

    handler = Handler()
    logging.getLogger("flask_backend.task").addHandler(handler)
    try:
        fails()
        drain(app)
    finally:
        logging.getLogger("flask_backend.task").removeHandler(handler)
    [span] = telemetry.spans(f"process {QUEUE}")
    assert seen == [("flask_backend.task", span.context)]


def test_it_is_around_the_middleware_of_the_app_and_before_its_headers(app, backend, telemetry):
    seen = []

    @backend.middleware
    def run(_job, proceed):
        seen.append(trace.get_current_span().get_span_context())
        return proceed()

    @backend.schedule_middleware
    def schedule(call, proceed):
        seen.append(call.headers["traceparent"])
        call.headers["tracestate"] = "mine=1"
        return proceed()

    @backend.task(QUEUE)
    def hello(name): ...

    hello("a")
    hello.map(["b", "c"])
    drain(app)
    send, batch, *processes = telemetry.spans()
    one, many = (f"{span.context.trace_id:032x}-{span.context.span_id:016x}" for span in (send, batch))
    assert [header[3:-3] for header in seen[:3]] == [one, many, many]
    assert seen[3:] == [span.context for span in processes]
    assert [dict(span.links[0].context.trace_state) for span in processes] == [{"mine": "1"}] * 3


def test_arguments_that_do_not_fit_are_an_error_of_the_call(backend, telemetry):
    @backend.task(QUEUE)
    def hello(name): ...

    with pytest.raises(TaskArgumentsError):
        hello()
    [send] = telemetry.spans()
    assert send.attributes["error.type"] == "TaskArgumentsError"
    assert telemetry.points("messaging.client.sent.messages") == []


def test_metrics_have_the_advised_buckets_and_attributes(app, backend, telemetry):
    @backend.task(QUEUE, retry=Retry(max_retries=0))
    def divide(by):
        return 1 / by

    divide.map([1, 2, 0])
    divide(3)
    drain(app)
    common = {"messaging.system": "beanstalkd", "messaging.destination.name": QUEUE}
    put = common | {"messaging.operation.name": "put", "messaging.operation.type": "send"}
    process = common | {"messaging.operation.name": "process", "messaging.operation.type": "process"}
    [sent] = telemetry.points("messaging.client.sent.messages")
    assert (sent.value, sent.attributes) == (4, put)
    [duration] = telemetry.points("messaging.client.operation.duration")
    assert (duration.count, duration.attributes) == (2, put)
    [consumed] = telemetry.points("messaging.client.consumed.messages")
    assert (consumed.value, consumed.attributes) == (4, process)
    ran = {point.attributes.get("error.type"): point for point in telemetry.points("messaging.process.duration")}
    assert {kind: point.count for kind, point in ran.items()} == {None: 3, "ZeroDivisionError": 1}
    assert ran["ZeroDivisionError"].attributes == process | {"error.type": "ZeroDivisionError"}
    assert ran[None].explicit_bounds == (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10)


def test_at_once_the_run_is_inside_of_the_call(telemetry):
    _app, backend = make_app("sync://")

    @backend.task(QUEUE)
    def fails():
        raise KeyError("x")

    with pytest.raises(KeyError):
        fails()
    process, send = telemetry.spans()
    assert process.links[0].context.span_id == send.context.span_id
    assert "flask_backend.outcome" not in process.attributes  # nothing is settled there
    assert process.attributes["error.type"] == send.attributes["error.type"] == "KeyError"


def test_with_flasks_own_instrumentation_the_call_is_a_child_of_the_request(app, backend, telemetry):
    @backend.task(QUEUE)
    def hello(): ...

    @app.get("/")
    def index():
        hello()
        return ""

    FlaskInstrumentor().instrument_app(app, tracer_provider=telemetry.traces, meter_provider=telemetry.metrics)
    try:
        app.test_client().get("/")
        drain(app)
    finally:
        FlaskInstrumentor().uninstrument_app(app)
    send, request, process = telemetry.spans()
    assert send.parent.span_id == request.context.span_id
    assert process.links[0].context.span_id == send.context.span_id
    assert process.parent is None


def test_it_works_for_all_backends_whenever_they_are_made(telemetry):
    ran = []
    for name in ("a", "b"):
        app, backend = make_app()

        @backend.task(name)
        def hello():
            ran.append(1)

        hello()
        drain(app)
    assert len(ran) == 2
    assert [span.name for span in telemetry.spans()] == ["send a", "process a", "send b", "process b"]


def test_it_can_be_removed_and_added_again(app, backend, caplog):
    others = set(signals.task_failed.receivers)  # of other tests of this process; their garbage may still go
    telemetry = Telemetry()
    telemetry.instrument()

    @backend.task(QUEUE)
    def hello(): ...

    assert FlaskBackendInstrumentor() is FlaskBackendInstrumentor()
    telemetry.instrument()  # logs a warning, and does nothing
    assert len(tracing.tracers) == 1
    assert "already instrumented" in caplog.text
    FlaskBackendInstrumentor().uninstrument()
    assert tracing.tracers == []
    assert set(signals.task_failed.receivers) <= others
    job = hello()
    assert drain(app)[0].error is None
    assert telemetry.spans() == []
    telemetry.instrument()
    hello()
    drain(app)
    assert len(telemetry.spans()) == 2
    assert job.state() == "done"
    FlaskBackendInstrumentor().uninstrument()


def test_nothing_is_recorded_where_instrumentation_is_suppressed(app, backend, telemetry):
    @backend.task(QUEUE)
    def hello(): ...

    with suppress_instrumentation():
        hello()
    assert telemetry.spans() == []


class Broken(TextMapPropagator):
    fields = frozenset()

    def inject(self, *_args, **_kwargs):
        raise RuntimeError("broken")

    def extract(self, *_args, **_kwargs):
        raise SystemExit


def test_a_tracer_that_fails_changes_nothing(app, backend, telemetry, caplog):
    @backend.task(QUEUE)
    def hello(): ...

    whole = propagate.get_global_textmap()
    propagate.set_global_textmap(Broken())
    try:
        hello()
        hello.map([])
        assert [run.error for run in drain(app)] == [None]
    finally:
        propagate.set_global_textmap(whole)
    assert caplog.text.count("the tracer _Tracer failed") == 3


class Slow(SpanProcessor):
    def __init__(self) -> None:
        self.is_back = threading.Event()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return self.is_back.wait(timeout_millis / 1000)


def test_the_flush_is_bounded(telemetry, caplog):
    slow = Slow()
    telemetry.traces.add_span_processor(slow)
    begun = time.monotonic()
    tracing.flush(0.2)
    waited_s = time.monotonic() - begun
    slow.is_back.set()
    assert 0.2 <= waited_s < 10
    assert "have not sent everything within 0.2 s" in caplog.text


def test_opentelemetry_finds_it():
    [found] = entry_points(group="opentelemetry_instrumentor", name="flask_backend")
    assert found.load() is FlaskBackendInstrumentor
