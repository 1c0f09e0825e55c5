"""Events and transactions of Sentry's own SDK, in memory; see faults/test_traced_workers.py for real workers."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import weakref

import pytest
import sentry_sdk
from opentelemetry import baggage, context
from sentry_sdk.integrations.dedupe import DedupeIntegration
from sentry_sdk.integrations.flask import FlaskIntegration
from sentry_sdk.integrations.logging import LoggingIntegration
from sentry_sdk.transport import Transport
from support.in_memory import make_app

from flask_backend import (
    Bury,
    ConfigError,
    Discard,
    Retry,
    RetryLater,
    TaskTimeout,
    current_job,
    testing,
    tracing,
)
from flask_backend.contrib.opentelemetry import FlaskBackendInstrumentor
from flask_backend.contrib.sentry import FlaskBackendIntegration
from flask_backend.options import DEFAULTS

QUEUE = "com.example/default"
ONCE = Retry(max_retries=0)


class Ingest(Transport):
    """Keeps all events and transactions."""

    def __init__(self, options=None) -> None:
        super().__init__(options)
        self.items: list[dict] = []
        self.flushed: list[float] = []

    def capture_envelope(self, envelope) -> None:
        for item in envelope.items:
            payload = item.payload.json or json.loads(item.payload.get_bytes() or b"{}")
            self.items.append({"item": item.type, **payload})

    def flush(self, timeout, callback=None) -> None:
        self.flushed.append(timeout)

    @property
    def events(self) -> list[dict]:
        return [item for item in self.items if item["item"] == "event"]

    @property
    def transactions(self) -> list[dict]:
        return [item for item in self.items if item["item"] == "transaction"]

    @property
    def spans(self) -> list[dict]:
        return [span for item in self.items if item["item"] == "span" for span in item["items"]]


def start(*integrations, **options) -> Ingest:
    """Start the SDK, with those of its integrations that change little of this process."""
    ingest = Ingest()
    ours = integrations or [FlaskBackendIntegration()]
    sentry_sdk.init(
        dsn="http://key@127.0.0.1:9/1",
        transport=ingest,
        integrations=[*ours, FlaskIntegration(), LoggingIntegration(), DedupeIntegration()],
        default_integrations=False,
        release="1",
        **{"traces_sample_rate": 1.0} | options,
    )
    return ingest


ours: list = []  # the integration's tracer, which the SDK sets up once in a process


@pytest.fixture(autouse=True)
def end():
    """Leave nothing to other tests of this process."""
    tracing.tracers += ours
    with sentry_sdk.isolation_scope(), sentry_sdk.new_scope():
        yield
        sentry_sdk.get_client().close()
        sentry_sdk.get_global_scope().set_client(None)
    ours[:] = tracing.tracers
    tracing.tracers.clear()


@pytest.fixture
def ingest():
    return start()


def drain(app):
    return testing.drain(app, raise_errors=False)


def retry_until_buried(app, attempts: int) -> None:
    for _ in range(attempts):
        drain(app)
        testing.move_time(3600, app)


def test_the_trace_crosses_the_queue(app, backend, ingest):
    @backend.task(QUEUE)
    def hello(name): ...

    with sentry_sdk.start_transaction(name="request", op="http.server"):
        job = hello("world")
    drain(app)
    request, process = ingest.transactions
    [publish] = request["spans"]
    assert (publish["op"], publish["description"]) == ("queue.publish", "hello")
    trace = process["contexts"]["trace"]
    assert (trace["op"], process["transaction"], process["transaction_info"]) == (
        "queue.process",
        "hello",
        {"source": "task"},
    )
    assert trace["trace_id"] == request["contexts"]["trace"]["trace_id"]
    assert trace["parent_span_id"] == publish["span_id"]
    assert trace["status"] == "ok"
    common = {
        "messaging.system": "beanstalkd",
        "messaging.destination.name": QUEUE,
        "messaging.message.id": job.uid,
        "messaging.message.body.size": publish["data"]["messaging.message.body.size"],
    }
    assert publish["data"].items() >= common.items()
    assert trace["data"].items() >= {**common, "messaging.message.retry.count": 0}.items()
    assert 0 <= trace["data"]["messaging.message.receive.latency"] < 60_000
    assert process["tags"] == {"flask_backend.queue": QUEUE, "flask_backend.task": "hello"}
    assert process["contexts"]["flask_backend"] == {
        "queue": QUEUE,
        "task": "hello",
        "job_id": job.id,
        "id": job.uid,
        "attempt": 1,
    }


def test_a_map_is_one_span(app, backend, ingest):
    @backend.task(QUEUE)
    def hello(name): ...

    with sentry_sdk.start_transaction(name="request"):
        hello.map(["a", "b"])
    drain(app)
    request, *processes = ingest.transactions
    [publish] = request["spans"]
    assert publish["data"]["messaging.batch.message_count"] == 2
    assert [each["contexts"]["trace"]["parent_span_id"] for each in processes] == [publish["span_id"]] * 2


def test_messages_to_other_systems_get_no_headers(app, backend, ingest):
    received = []

    @backend.receiver("inbox")
    def inbox(message):
        received.append(message)

    with sentry_sdk.start_transaction(name="request"):
        backend.send("inbox", {"any": "json"})
    drain(app)
    assert received == [{"any": "json"}]
    request, process = ingest.transactions
    assert [span["op"] for span in request["spans"]] == ["queue.publish"]
    assert process["contexts"]["trace"]["trace_id"] != request["contexts"]["trace"]["trace_id"]


def test_a_failure_is_reported_once_at_its_last_attempt(app, backend, ingest):
    @backend.task(QUEUE, retry=Retry(max_retries=2))
    def fails():
        sentry_sdk.add_breadcrumb(message=f"attempt {current_job.attempt}")
        logging.getLogger("app").warning("about to fail")
        raise KeyError("secret")

    with sentry_sdk.start_transaction(name="request"):
        job = fails()
    retry_until_buried(app, 3)
    assert job.state() == "buried"
    [event] = ingest.events
    [raised] = event["exception"]["values"]
    assert (raised["type"], raised["value"]) == ("KeyError", "'secret'")
    assert raised["mechanism"] == {"type": "flask_backend", "handled": False}
    assert raised["stacktrace"]["frames"][-1]["function"] == "fails"
    assert event["level"] == "error"
    assert event["transaction"] == "fails"
    assert event["contexts"]["flask_backend"]["attempt"] == 3
    assert event["contexts"]["burial"] == {"reason": "failed 3 times"}
    assert "args" not in event["contexts"]["flask_backend"]
    assert [each["message"] for each in event["breadcrumbs"]["values"]] == ["attempt 3", "about to fail"]
    _request, *attempts = ingest.transactions
    traces = [each["contexts"]["trace"] for each in attempts]
    assert [trace["status"] for trace in traces] == ["internal_error"] * 3
    assert [trace["data"]["messaging.message.retry.count"] for trace in traces] == [0, 1, 2]
    assert event["contexts"]["trace"]["span_id"] == traces[2]["span_id"]
    assert len({trace["trace_id"] for trace in traces}) == 1


def test_an_exception_that_is_never_retried_is_reported_at_once(app, backend, ingest):
    @backend.task(QUEUE, retry=Retry(never=KeyError))
    def fails():
        raise KeyError

    fails()
    drain(app)
    [event] = ingest.events
    assert event["contexts"]["burial"] == {"reason": "KeyError is not retried"}


@pytest.mark.parametrize(("every", "reported"), [(1, [1, 2, 3, 4, 5]), (2, [2, 4]), (None, [])])
def test_attempts_of_tasks_without_limit_are_reported_by_option(app, backend, every, reported):
    ingest = start(FlaskBackendIntegration(report_every=every))

    @backend.task(QUEUE, retry=Retry(max_retries=None))
    def fails():
        raise KeyError

    fails()
    retry_until_buried(app, 5)
    assert [event["contexts"]["flask_backend"]["attempt"] for event in ingest.events] == reported


@pytest.mark.parametrize("every", [0, -1, True, "2", 1.5])
def test_an_invalid_option_is_an_error(every):
    with pytest.raises(ConfigError, match="expected a whole number from 1"):
        FlaskBackendIntegration(report_every=every)


@pytest.mark.parametrize("decision", [RetryLater(5), Bury("x"), Discard("x")], ids=lambda each: type(each).__name__)
def test_decisions_are_not_reported(app, backend, decision):
    ingest = start(FlaskBackendIntegration(report_every=1))

    @backend.task(QUEUE)
    def decides():
        raise decision

    decides()
    drain(app)
    assert ingest.events == []
    assert ingest.transactions[-1]["contexts"]["trace"]["status"] == "ok"


def test_a_job_that_may_no_longer_retry_later_is_reported(app, backend, ingest):
    @backend.task(QUEUE, retry=ONCE)
    def decides():
        raise RetryLater(5, "not ready")

    decides()
    drain(app)
    [event] = ingest.events
    assert event["exception"]["values"][0]["type"] == "RetryLater"
    assert event["contexts"]["burial"] == {"reason": "failed once"}


def test_an_undecodable_job_is_reported(app, backend, ingest):
    @backend.task(QUEUE)
    def hello(): ...

    backend.send(QUEUE, ["no task"])
    drain(app)
    [event] = ingest.events
    assert event["exception"]["values"][0]["type"] == "MessageDecodeError"
    assert event["transaction"] == QUEUE


def test_an_exception_that_the_task_has_reported_is_not_reported_again(app, backend, ingest):
    def fail():
        try:
            {}["missing"]
        except KeyError as error:
            sentry_sdk.capture_exception(error)
            raise

    @backend.task(QUEUE, retry=ONCE)
    def fails():
        fail()

    @backend.task(QUEUE, retry=ONCE)
    async def fails_later():
        fail()

    fails()
    fails_later()
    assert len(drain(app)) == 2
    assert [event["transaction"] for event in ingest.events] == ["fails", "fails_later"]


def test_one_exception_object_of_two_jobs_is_reported_for_both_and_not_kept(app, backend, ingest, caplog):
    class Large: ...

    kept = []
    always = KeyError("the same")

    @backend.task(QUEUE, retry=ONCE)
    def fails():
        large = Large()
        kept.append(weakref.ref(large))
        raise always

    fails()
    fails()
    with caplog.at_level(logging.CRITICAL, "flask_backend.task"):  # pytest keeps records, and their exceptions
        drain(app)
    assert len(ingest.events) == 2
    always.__traceback__ = None
    gc.collect()
    assert [each() for each in kept] == [None, None]


def test_a_time_limit_has_its_own_group_and_status(app, backend, ingest):
    @backend.task(QUEUE, retry=ONCE)
    def slow():
        raise TaskTimeout("the task has reached its time limit")

    slow()
    drain(app)
    [event] = ingest.events
    assert event["fingerprint"] == ["flask_backend", "TaskTimeout", QUEUE, "slow"]
    assert ingest.transactions[0]["contexts"]["trace"]["status"] == "deadline_exceeded"


@pytest.mark.parametrize(
    ("options", "is_sent"),
    [
        ({}, False),
        pytest.param(
            {"send_default_pii": True},
            True,
            marks=pytest.mark.filterwarnings("ignore:The send_default_pii option is deprecated"),
        ),
        ({"data_collection": {"queues": True}}, True),
        ({"data_collection": {"queues": False}}, False),
    ],
)
def test_arguments_are_sent_only_if_the_app_allows_it(app, backend, options, is_sent):
    ingest = start(**options)

    @backend.task(QUEUE, retry=ONCE)
    def fails(name, *, times):
        raise KeyError

    fails("alice", times=3)
    drain(app)
    [event] = ingest.events
    facts = event["contexts"]["flask_backend"]
    assert (facts.get("args"), facts.get("kwargs")) == ((["alice"], {"times": 3}) if is_sent else (None, None))


def test_nothing_of_a_job_stays_for_the_next_one(app, backend, ingest):
    @backend.task(QUEUE, retry=ONCE)
    def fails(name):
        sentry_sdk.set_tag("name", name)
        sentry_sdk.set_user({"id": name})
        sentry_sdk.add_breadcrumb(message=name)
        raise KeyError

    fails.map(["a", "b"])
    drain(app)
    assert [event["tags"]["name"] for event in ingest.events] == ["a", "b"]
    assert [len(event["breadcrumbs"]["values"]) for event in ingest.events] == [1, 1]
    sentry_sdk.capture_message("later")
    assert "name" not in ingest.events[-1].get("tags", {})
    assert "flask_backend" not in ingest.events[-1]["contexts"]


def test_before_send_and_the_sampler_see_the_job(app, backend):
    seen = []

    def before_send(event, hint):
        seen.append((hint["exc_info"][0], event["contexts"]["flask_backend"]["task"]))

    def sample(sampling):
        if job := sampling.get("flask_backend_job"):
            seen.append((job["task"], job["queue"], job["args"], job["kwargs"]))
        return 0.0

    ingest = start(before_send=before_send, traces_sampler=sample, traces_sample_rate=None)

    @backend.task(QUEUE, retry=ONCE)
    def fails(name):
        raise KeyError

    fails("x")
    drain(app)
    assert seen == [("fails", QUEUE, ["x"], {}), (KeyError, "fails")]
    assert ingest.items == []


def test_without_tracing_events_are_in_the_trace_of_the_request(app, backend):
    ingest = start(traces_sample_rate=None)

    @backend.task(QUEUE, retry=ONCE)
    def fails():
        raise KeyError

    fails()
    sentry_sdk.capture_message("in the request")
    drain(app)
    request, event = ingest.events
    assert event["contexts"]["trace"]["trace_id"] == request["contexts"]["trace"]["trace_id"]
    assert ingest.transactions == []


def test_traces_are_not_propagated_by_option(app, backend):
    start(FlaskBackendIntegration(propagate_traces=False))
    headers = []

    @backend.task(QUEUE)
    def hello():
        headers.append(set(current_job.headers))

    hello()
    drain(app)
    assert headers == [{"id", "at"}]


@pytest.mark.parametrize(
    "headers",
    [
        {"sentry-trace": "x", "baggage": "y"},
        {"sentry-trace": 5, "baggage": ["a"]},
        {"sentry-trace": "1" * 9_000, "baggage": "sentry-trace_id=" + "1" * 9_000},
        {"sentry-trace": "\ud800", "baggage": "sentry-\ud800=%%%", "id": "\ud800"},
        {"baggage": "sentry-sample_rand=nonsense,sentry-sample_rate=x,sentry-sampled=maybe"},
        {"id": {"a": []}, "at": "yesterday"},
    ],
)
def test_garbage_in_the_headers_changes_nothing(app, backend, ingest, headers):
    ran = []

    @backend.task(QUEUE, retry=ONCE)
    def fails():
        ran.append(1)
        raise KeyError

    backend.put(QUEUE, json.dumps({"endpoint": "fails", "headers": headers}).encode(), DEFAULTS, None)
    drain(app)
    assert ran == [1]
    assert len(ingest.events) == len(ingest.transactions) == 1


def test_lines_of_the_app_are_still_events_and_ours_are_not(app, backend):
    ingest = start()

    @backend.task(QUEUE, retry=Retry(max_retries=1))
    def fails():
        logging.getLogger("app").error("trouble")
        raise KeyError

    fails()
    retry_until_buried(app, 2)
    assert [event.get("logger") for event in ingest.events] == ["app", "app", None]


def test_async_tasks_have_the_span_of_their_job(app, backend, ingest):
    @backend.task(QUEUE)
    async def sleeps():
        with sentry_sdk.start_span(op="inner"):
            await asyncio.sleep(0)

    sleeps()
    drain(app)
    [transaction] = ingest.transactions
    assert [span["op"] for span in transaction["spans"]] == ["inner"]


def test_at_once_the_exception_is_that_of_the_caller(ingest):
    app, backend = make_app("sync://")

    @backend.task(QUEUE)
    def fails():
        raise KeyError

    @app.get("/")
    def index():
        fails()

    assert app.test_client().get("/").status_code == 500
    [event] = ingest.events
    assert event["exception"]["values"][-1]["mechanism"]["type"] == "flask"
    process, request = ingest.transactions
    assert (process["transaction"], request["transaction"]) == ("fails", "index")
    assert process["contexts"]["trace"]["trace_id"] == request["contexts"]["trace"]["trace_id"]


def test_without_the_integration_nothing_is_done(app, backend):
    start()
    ingest = start(LoggingIntegration())

    @backend.task(QUEUE, retry=ONCE)
    def fails():
        raise KeyError

    fails()
    drain(app)
    tracing.flush(1)
    assert ingest.items == []
    assert ingest.flushed == []


def test_the_flush_takes_at_most_the_sdks_own_timeout():
    ingest = start(shutdown_timeout=1.5)
    tracing.flush(60)
    tracing.flush(1)
    assert ingest.flushed == [1.5, pytest.approx(1, abs=0.5)]


def test_streamed_spans(app, backend):
    ingest = start(trace_lifecycle="stream")

    @backend.task(QUEUE, retry=ONCE)
    def fails():
        raise KeyError

    fails()  # outside of a trace: no span
    with sentry_sdk.traces.start_span(name="request"):
        job = fails()
    drain(app)
    sentry_sdk.get_client().span_batcher.flush()
    spans = [(span["name"], {key: each["value"] for key, each in span["attributes"].items()}) for span in ingest.spans]
    ops = [attributes.get("sentry.op") for _, attributes in spans]
    assert ops == ["queue.publish", None, "queue.process", "queue.process"]
    assert spans[0][1]["messaging.message.id"] == job.uid
    assert (
        spans[3][1].items()
        >= {
            "messaging.message.id": job.uid,
            "messaging.message.retry.count": 0,
            "sentry.segment.name.source": "task",
        }.items()
    )
    assert ingest.spans[3]["parent_span_id"] == ingest.spans[0]["span_id"]
    assert ingest.spans[3]["status"] == "error"
    assert len(ingest.events) == 2


@pytest.mark.parametrize("order", ["sentry first", "opentelemetry first"])
def test_both_integrations_share_the_baggage(app, backend, order):
    ingest = start()
    FlaskBackendInstrumentor().instrument()
    if order == "opentelemetry first":
        tracing.tracers.reverse()
    headers = []

    @backend.task(QUEUE)
    def first():
        headers.append(dict(current_job.headers))
        second()

    @backend.task(QUEUE)
    def second():
        headers.append(dict(current_job.headers))

    token = context.attach(baggage.set_baggage("user", "alice"))
    try:
        with sentry_sdk.start_transaction(name="request"):
            first()
        drain(app)
    finally:
        context.detach(token)
        FlaskBackendInstrumentor().uninstrument()
    request, one, two = ingest.transactions
    for sent in headers:
        items = dict(item.split("=") for item in sent["baggage"].split(","))
        assert items["user"] == "alice"
        assert items["sentry-trace_id"] == request["contexts"]["trace"]["trace_id"]
        assert len(items) == len(sent["baggage"].split(","))
    assert two["contexts"]["trace"]["trace_id"] == one["contexts"]["trace"]["trace_id"]


def test_the_sdks_other_integrations_may_be_absent(app, backend):
    ingest = start(disabled_integrations=[LoggingIntegration(), DedupeIntegration()])

    @backend.task(QUEUE, retry=ONCE)
    def fails():
        raise KeyError

    fails()
    drain(app)
    assert len(ingest.events) == 1
