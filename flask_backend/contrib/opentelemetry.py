"""Spans and metrics of OpenTelemetry, for all backends of a process. Needs the extra ``opentelemetry``.

``opentelemetry-instrument`` finds the instrumentor; otherwise call it, once, before the first job of a worker::

    from flask_backend.contrib.opentelemetry import FlaskBackendInstrumentor

    FlaskBackendInstrumentor().instrument()

Names and attributes are those of the semantic conventions for messaging 1.44, which are still in development.
"""

from __future__ import annotations

import atexit
import os
import threading
import time
from collections.abc import Callable, Collection, Generator, Mapping, MutableMapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

try:
    from opentelemetry import context as contexts
    from opentelemetry import metrics, propagate, trace
    from opentelemetry._logs import get_logger_provider
    from opentelemetry.context import Context
    from opentelemetry.instrumentation.instrumentor import BaseInstrumentor  # type: ignore[attr-defined]  # untyped
    from opentelemetry.instrumentation.utils import is_instrumentation_enabled
    from opentelemetry.propagators.textmap import Getter, Setter
except ImportError as error:
    raise type(error)(
        f"{error}: flask_backend.contrib.opentelemetry needs `pip install flask-backend[opentelemetry]`",
        name=error.name,
    ) from error

from flask_backend import __version__, signals
from flask_backend.config import Address, StandIn
from flask_backend.current import CurrentJob
from flask_backend.decisions import TaskDecision
from flask_backend.errors import BrokerError
from flask_backend.system.loggers import get_logger
from flask_backend.tracebacks import in_users_code, message_of, name_of, traceback_of
from flask_backend.tracing import Processing, Sending, tracers
from flask_backend.visible import visible

from .headers import BAGGAGE, header_text, merge_baggage

logger = get_logger("flask_backend.contrib")

PARENT_VARIABLE = "OTEL_PYTHON_FLASK_BACKEND_PARENT"
_SCHEMA = "https://opentelemetry.io/schemas/1.44.0"
# In seconds: the conventions advise these for both histograms.
_BUCKETS = [0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10]
_MAX_ID = 200  # characters of a message's id: any producer may have chosen it

_Attributes = dict[str, str | int]


class FlaskBackendInstrumentor(BaseInstrumentor):  # type: ignore[misc]  # untyped
    """Records a span and metrics for each send of messages and for each attempt at a job.

    ``instrument()`` takes these options:

    ``tracer_provider``, ``meter_provider``
        By default the global ones, also if they are set later.
    ``parent`` (False)
        A job's span belongs to a trace of its own, with a link to the span that has sent the job. With True it is a
        child of that span, in the same trace; it has the link too. The environment variable
        ``OTEL_PYTHON_FLASK_BACKEND_PARENT=true`` changes the default.
    """

    _tracer: _Tracer | None = None

    def instrumentation_dependencies(self) -> Collection[str]:
        return ()  # it is a part of the package that it instruments

    def _instrument(self, **options: Any) -> None:
        parent = options.get("parent")
        if parent is None:
            parent = os.environ.get(PARENT_VARIABLE, "").strip().lower() == "true"
        self._tracer = _Tracer(options.get("tracer_provider"), options.get("meter_provider"), is_child=bool(parent))
        self._tracer.connect()
        tracers.append(self._tracer)

    def _uninstrument(self, **_options: Any) -> None:
        if self._tracer is not None:
            tracers.remove(self._tracer)
            self._tracer.disconnect()
            self._tracer = None


@dataclass(slots=True)
class _Attempt:
    """What the signals tell about the current attempt."""

    job: CurrentJob
    error: BaseException | None = None
    outcome: str | None = "done"


_current: ContextVar[_Attempt | None] = ContextVar("flask_backend.contrib.opentelemetry", default=None)


class _Tracer:
    def __init__(
        self,
        tracer_provider: trace.TracerProvider | None,
        meter_provider: metrics.MeterProvider | None,
        *,
        is_child: bool,
    ) -> None:
        self._providers = tracer_provider, meter_provider
        self._is_child = is_child
        name = "flask_backend.contrib.opentelemetry"
        self._tracer = trace.get_tracer(name, __version__, tracer_provider, _SCHEMA)
        meter = metrics.get_meter(name, __version__, meter_provider, _SCHEMA)
        self._sent = meter.create_counter(
            "messaging.client.sent.messages", "{message}", "Number of messages that the producer has tried to send"
        )
        self._send_duration = meter.create_histogram(
            "messaging.client.operation.duration",
            "s",
            "Duration of an operation of the client",
            explicit_bucket_boundaries_advisory=_BUCKETS,
        )
        self._consumed = meter.create_counter(
            "messaging.client.consumed.messages", "{message}", "Number of messages that were delivered to the app"
        )
        self._process_duration = meter.create_histogram(
            "messaging.process.duration",
            "s",
            "Duration of the processing of a message",
            explicit_bucket_boundaries_advisory=_BUCKETS,
        )
        self._receivers = (
            (signals.task_failed, self._on_failed),
            (signals.task_retried, self._on_retried),
            (signals.task_buried, self._on_buried),
            (signals.task_discarded, self._on_discarded),
            (signals.task_interrupted, self._on_interrupted),
        )

    def connect(self) -> None:
        for signal, receiver in self._receivers:
            signal.connect(receiver)

    def disconnect(self) -> None:
        for signal, receiver in self._receivers:
            signal.disconnect(receiver)

    # -- sending ---------------------------------------------------------------------------------------------

    @contextmanager
    def sending(self, sending: Sending, /) -> Generator[None]:
        if not is_instrumentation_enabled():
            yield
            return
        common = _common(sending.queue, sending.broker, "put", "send")
        span = self._tracer.start_span(
            f"send {sending.queue}", kind=trace.SpanKind.PRODUCER, attributes=common | _named(sending)
        )
        begun = time.perf_counter()
        token = contexts.attach(trace.set_span_in_context(span))
        failed: BaseException | None = None
        try:
            propagate.inject(sending.headers, setter=_HEADERS)
            yield
        except BaseException as error:
            failed = error
            raise
        finally:
            contexts.detach(token)
            if sending.is_batch:
                span.set_attribute("messaging.batch.message_count", sending.sent)
            elif sending.size is not None:
                span.set_attribute("messaging.message.body.size", sending.size)
            _end(span, failed)
            self._measure_send(sending, common, failed, time.perf_counter() - begun)
            failed = None  # its traceback refers to this frame

    def _measure_send(
        self, sending: Sending, common: _Attributes, failed: BaseException | None, duration_s: float
    ) -> None:
        with_error = common if failed is None else common | {"error.type": name_of(failed)}
        if sending.sent:
            self._sent.add(sending.sent, common)
        elif isinstance(failed, BrokerError):  # else it was refused before it was sent
            self._sent.add(1, with_error)
        self._send_duration.record(duration_s, with_error)

    # -- processing ------------------------------------------------------------------------------------------

    @contextmanager
    def processing(self, processing: Processing, /) -> Generator[None]:
        job, is_over = processing.job, processing.ran_s is not None
        common = _common(job.queue, processing.broker, "process", "process")
        now_ns = time.time_ns()
        # From an empty context: nothing of an earlier job is in it.
        sender = propagate.extract(job.headers, Context(), getter=_HEADERS)
        creation = trace.get_current_span(sender).get_span_context()
        context = sender if self._is_child else trace.set_span_in_context(trace.INVALID_SPAN, sender)
        span = self._tracer.start_span(
            f"process {job.queue}",
            context,
            kind=trace.SpanKind.CONSUMER,
            attributes=common | _described(processing),
            links=[trace.Link(creation)] if creation.is_valid else [],
            start_time=now_ns - int((processing.ran_s or 0.0) * 1e9),
        )
        processing.needs_attempt |= span.is_recording()
        begun = time.perf_counter()
        attempt = _Attempt(job, outcome=None if is_over else "done")
        current = _current.set(attempt)
        token = contexts.attach(trace.set_span_in_context(span, context))
        try:
            yield
        finally:
            contexts.detach(token)
            _current.reset(current)
            if job.known_attempts is not None:
                span.set_attribute("flask_backend.attempt", job.known_attempts.number)
            if attempt.outcome is not None:
                span.set_attribute("flask_backend.outcome", attempt.outcome)
            _end(span, attempt.error)
            if not is_over:  # a process that settles a crash lives too shortly to be counted
                with_error = common if attempt.error is None else common | {"error.type": name_of(attempt.error)}
                self._consumed.add(1, common)
                self._process_duration.record(time.perf_counter() - begun, with_error)
            attempt.error = None

    def _on_failed(self, _app: object, *, job: CurrentJob, error: BaseException, **_facts: Any) -> None:
        if (attempt := _attempt_at(job)) is not None:
            attempt.error, attempt.outcome = error, None  # known with the next signal, if the broker can be asked

    def _on_retried(self, _app: object, *, job: CurrentJob, **_facts: Any) -> None:
        _note_outcome(job, "retried")

    def _on_buried(self, _app: object, *, job: CurrentJob, **_facts: Any) -> None:
        _note_outcome(job, "buried")

    def _on_discarded(self, _app: object, *, job: CurrentJob, **_facts: Any) -> None:
        _note_outcome(job, "discarded")

    def _on_interrupted(self, _app: object, *, job: CurrentJob, **_facts: Any) -> None:
        _note_outcome(job, "interrupted")

    # -- the end ---------------------------------------------------------------------------------------------

    def flush(self, within_s: float, /) -> None:
        """Export what the providers have, within this time, which exporters often exceed when the ingest is away."""
        own_traces, own_metrics = self._providers
        providers = (
            own_traces or trace.get_tracer_provider(),
            own_metrics or metrics.get_meter_provider(),
            get_logger_provider(),
        )
        flushing = [_start(flush) for each in providers if (flush := getattr(each, "force_flush", None)) is not None]
        deadline = time.monotonic() + within_s
        for thread in flushing:
            thread.join(max(0.0, deadline - time.monotonic()))
        if any(thread.is_alive() for thread in flushing):
            logger.warning(
                "OpenTelemetry's exporters have not sent everything within %.3g s; the rest is lost", within_s
            )
            for each in providers:  # which would wait for up to 30 s
                atexit.unregister(getattr(each, "shutdown", each.__class__))


def _start(step: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=step, name="flask-backend-flush", daemon=True)
    thread.start()
    return thread


def _attempt_at(job: CurrentJob) -> _Attempt | None:
    attempt = _current.get()
    return attempt if attempt is not None and attempt.job is job else None


def _note_outcome(job: CurrentJob, outcome: str) -> None:
    if (attempt := _attempt_at(job)) is not None:
        attempt.outcome = outcome


def _end(span: trace.Span, error: BaseException | None) -> None:
    if error is not None and span.is_recording() and not isinstance(error, TaskDecision):
        name, message = name_of(error), message_of(error)
        span.set_attribute("error.type", name)
        span.add_event(
            "exception",
            {
                "exception.type": name,
                "exception.message": message,
                "exception.stacktrace": traceback_of(error, in_users_code(error)),
            },
        )
        span.set_status(trace.Status(trace.StatusCode.ERROR, f"{name}: {message}" if message else name))
    span.end()


def _common(queue: str, broker: Address | StandIn, name: str, operation: str) -> _Attributes:
    """Return the attributes that spans and metrics share. Their values are few."""
    attributes: _Attributes = {
        "messaging.system": "beanstalkd",
        "messaging.operation.name": name,
        "messaging.operation.type": operation,
        "messaging.destination.name": queue,
    }
    if isinstance(broker, Address):
        attributes |= {"server.address": broker.host, "server.port": broker.port}
    return attributes


def _named(sending: Sending) -> _Attributes:
    attributes: _Attributes = {}
    if sending.uid is not None:
        attributes["messaging.message.id"] = sending.uid
    if sending.endpoint is not None:
        attributes["flask_backend.endpoint"] = sending.endpoint
    return attributes


def _described(processing: Processing) -> _Attributes:
    job = processing.job
    attributes: _Attributes = {"flask_backend.job_id": job.id}
    if job.endpoint:
        attributes["flask_backend.endpoint"] = job.endpoint
    if isinstance(uid := job.headers.get("id"), str):
        attributes["messaging.message.id"] = visible(uid, _MAX_ID)
    if processing.size is not None:
        attributes["messaging.message.body.size"] = processing.size
    return attributes


class _Headers(Getter[Mapping[str, Any]], Setter[MutableMapping[str, Any]]):
    """How propagators read and write the headers of a message. Those that arrive may be any JSON."""

    def get(self, carrier: Mapping[str, Any], key: str) -> list[str] | None:
        value = header_text(carrier.get(key))
        return [value] if value else None

    def keys(self, carrier: Mapping[str, Any]) -> list[str]:
        return list(carrier)

    def set(self, carrier: MutableMapping[str, Any], key: str, value: str) -> None:
        # Another tracer may have written its own items, which are newer than those that came with a message.
        carrier[key] = (
            merge_baggage(carrier[key], value) if key == BAGGAGE and isinstance(carrier.get(key), str) else value
        )


_HEADERS = _Headers()
