"""Sentry: traces that cross the queue, and the failures of tasks. Needs the extra ``sentry``.

Initialise the SDK where the app is imported, for web processes and workers alike::

    import sentry_sdk
    from flask_backend.contrib.sentry import FlaskBackendIntegration

    sentry_sdk.init(dsn="https://...", integrations=[FlaskBackendIntegration()])

It starts its threads at the first event, in each worker.
"""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

try:
    import sentry_sdk
    from sentry_sdk.integrations import Integration
    from sentry_sdk.integrations.dedupe import DedupeIntegration
    from sentry_sdk.integrations.logging import ignore_logger
    from sentry_sdk.scope import Scope, should_send_default_pii
    from sentry_sdk.tracing import TransactionSource
    from sentry_sdk.utils import event_from_exception
except ImportError as error:
    raise type(error)(
        f"{error}: flask_backend.contrib.sentry needs `pip install flask-backend[sentry]`", name=error.name
    ) from error

from flask_backend import signals
from flask_backend.current import CurrentJob
from flask_backend.decisions import Bury, TaskDecision
from flask_backend.errors import ConfigError, TaskTimeout, WorkerDiedError
from flask_backend.message import scheduled_at
from flask_backend.tracing import Processing, Sending, tracers
from flask_backend.visible import visible

from .headers import BAGGAGE, header_text, merge_baggage

if TYPE_CHECKING:
    from sentry_sdk.types import Event

_ORIGIN = "auto.queue.flask_backend"
_TRACE = "sentry-trace"
_MAX_ID = 200  # characters of a message's id: any producer may have chosen it
# The first logs what is reported here. The second is that of a process that forks, and so must not start the SDK's
# threads.
_IGNORED_LOGGERS = ("flask_backend.task", "flask_backend.supervisor")


class FlaskBackendIntegration(Integration):
    """Reports a job that fails for good, once, and a transaction for each attempt at a job.

    ``report_every`` (None)
        Report every n-th attempt that is retried, too: with 1 each one. Tasks that are retried without limit are never
        reported otherwise. By default a failure is reported when its job is buried, after the last attempt.
    ``propagate_traces`` (True)
        Whether calls carry their trace to the worker, in the headers of their message.

    Raises :exc:`~flask_backend.ConfigError` for an invalid value.
    """

    identifier = "flask_backend"
    origin = _ORIGIN

    def __init__(self, *, report_every: int | None = None, propagate_traces: bool = True) -> None:
        if report_every is not None and (type(report_every) is not int or report_every < 1):
            raise ConfigError(f"report_every is {report_every!r}; expected a whole number from 1, or None")
        self.report_every = report_every
        self.propagate_traces = propagate_traces

    @staticmethod
    def setup_once() -> None:
        for name in _IGNORED_LOGGERS:
            ignore_logger(name)
        signals.task_failed.connect(_on_failed)
        signals.task_retried.connect(_on_retried)
        signals.task_buried.connect(_on_buried)
        tracers.append(_Tracer())


def _integration() -> FlaskBackendIntegration | None:
    """Return the integration of the current client: a later ``sentry_sdk.init`` may be without it."""
    return sentry_sdk.get_client().get_integration(FlaskBackendIntegration)


def _is_streaming() -> bool:
    """Whether the SDK sends spans one by one, instead of transactions."""
    options: dict[str, Any] = sentry_sdk.get_client().options
    experiments: dict[str, Any] = options.get("_experiments") or {}
    return "stream" in (options.get("trace_lifecycle"), experiments.get("trace_lifecycle"))


class _Span:
    """A span of either kind; without one, its methods do nothing."""

    def __init__(self, span: Any = None, *, is_streamed: bool = False) -> None:
        self._span = span
        self._is_streamed = is_streamed

    @property
    def is_sampled(self) -> bool:
        return bool(getattr(self._span, "sampled", False))

    def set(self, name: str, value: object) -> None:
        if self._span is not None:
            (self._span.set_attribute if self._is_streamed else self._span.set_data)(name, value)

    def set_status(self, status: str) -> None:
        if self._span is None:
            return
        if self._is_streamed:
            self._span.status = "ok" if status == "ok" else "error"
        else:
            self._span.set_status(status)


@dataclass(slots=True)
class _Attempt:
    """The current attempt, its span, and the exceptions that it has reported itself."""

    job: CurrentJob
    span: _Span
    reported: list[BaseException]


_current: ContextVar[_Attempt | None] = ContextVar("flask_backend.contrib.sentry", default=None)


class _Tracer:
    @contextmanager
    def sending(self, sending: Sending, /) -> Generator[None]:
        integration = _integration()
        if integration is None:
            yield
            return
        with _publish(sending.endpoint or sending.queue) as span:
            if integration.propagate_traces:
                _write_headers(sending.headers)
            try:
                yield
            finally:
                _describe(span, sending.queue, sending.uid, sending.size)
                if sending.is_batch:
                    span.set("messaging.batch.message_count", sending.sent)

    @contextmanager
    def processing(self, processing: Processing, /) -> Generator[None]:
        if _integration() is None:
            yield
            return
        job, reported = processing.job, list[BaseException]()
        with sentry_sdk.isolation_scope() as scope:
            scope.clear_breadcrumbs()
            scope.add_event_processor(lambda event, hint: _add_job(event, hint, processing, reported))
            try:
                with _process(processing) as span, _as_current(_Attempt(job, span, reported)):
                    _describe(span, job.queue, job.headers.get("id"), processing.size)
                    if (at := scheduled_at(job.headers)) is not None:
                        span.set("messaging.message.receive.latency", round(max(0.0, time.time() - at) * 1000, 3))
                    span.set_status("ok")
                    processing.needs_attempt |= span.is_sampled
                    yield
                    if job.known_attempts is not None:
                        span.set("messaging.message.retry.count", job.known_attempts.number - 1)
            finally:
                # Both keep exceptions, and with them the objects in the frames of the task.
                reported.clear()
                DedupeIntegration.reset_last_seen()

    def flush(self, within_s: float, /) -> None:
        if _integration() is not None:
            client = sentry_sdk.get_client()
            client.flush(timeout=min(within_s, client.options["shutdown_timeout"]))


# -- spans and their headers -------------------------------------------------------------------------------------


@contextmanager
def _publish(name: str) -> Generator[_Span]:
    if not _is_streaming():
        with sentry_sdk.start_span(op="queue.publish", name=name, origin=_ORIGIN) as span:
            yield _Span(span)
        return
    from sentry_sdk import traces

    if traces.get_current_span() is None:  # a span of its own would be a trace
        yield _Span()
        return
    with traces.start_span(name, {"sentry.op": "queue.publish", "sentry.origin": _ORIGIN}) as streamed:
        yield _Span(streamed, is_streamed=True)


@contextmanager
def _process(processing: Processing) -> Generator[_Span]:
    """Continue the trace of the sender, with a span, unless the run is over because it has killed its worker."""
    job, is_over = processing.job, processing.ran_s is not None
    headers = {name: value for name in (_TRACE, BAGGAGE) if (value := header_text(job.headers.get(name)))}
    name = job.endpoint or job.queue
    about_job = {"flask_backend_job": _facts(processing) | {"args": processing.args, "kwargs": processing.kwargs}}
    if not _is_streaming():
        source = TransactionSource.TASK
        transaction = sentry_sdk.continue_trace(headers, op="queue.process", name=name, source=source, origin=_ORIGIN)
        if is_over:
            yield _Span()
            return
        with sentry_sdk.start_transaction(transaction, custom_sampling_context=about_job) as span:
            yield _Span(span)
        return
    from sentry_sdk import traces

    traces.continue_trace(headers)
    if is_over:
        yield _Span()
        return
    Scope.set_custom_sampling_context(about_job)
    attributes: dict[str, Any] = {"sentry.op": "queue.process", "sentry.origin": _ORIGIN}
    attributes["sentry.segment.name.source"] = "task"
    with traces.start_span(name, attributes, parent_span=None) as streamed:
        yield _Span(streamed, is_streamed=True)


@contextmanager
def _as_current(attempt: _Attempt) -> Generator[None]:
    token = _current.set(attempt)
    try:
        yield
    finally:
        _current.reset(token)


def _describe(span: _Span, queue: str, uid: object, size: int | None) -> None:
    span.set("messaging.system", "beanstalkd")
    span.set("messaging.destination.name", queue)
    if isinstance(uid, str):
        span.set("messaging.message.id", visible(uid, _MAX_ID))
    if size is not None:
        span.set("messaging.message.body.size", size)


def _write_headers(headers: dict[str, Any]) -> None:
    if trace := sentry_sdk.get_traceparent():
        headers[_TRACE] = trace
    if baggage := sentry_sdk.get_baggage():
        headers[BAGGAGE] = merge_baggage(baggage, headers.get(BAGGAGE))


# -- events ------------------------------------------------------------------------------------------------------


def _on_failed(_app: object, *, job: CurrentJob, error: BaseException, **_facts: Any) -> None:
    if (attempt := _attempt_at(job)) is not None:
        attempt.span.set_status("deadline_exceeded" if isinstance(error, TaskTimeout) else "internal_error")


def _on_retried(_app: object, *, job: CurrentJob, error: BaseException, **_facts: Any) -> None:
    integration, attempts = _integration(), job.known_attempts
    if integration is None or integration.report_every is None or attempts is None:
        return
    if attempts.number % integration.report_every == 0 and not isinstance(error, TaskDecision):
        _report(job, error, None)


def _on_buried(_app: object, *, job: CurrentJob, error: BaseException, reason: str, **_facts: Any) -> None:
    # Bury is the task's own decision. A job that is buried after RetryLater has used up its retries.
    if _integration() is not None and not isinstance(error, Bury):
        _report(job, error, reason)


def _attempt_at(job: CurrentJob) -> _Attempt | None:
    attempt = _current.get()
    return attempt if attempt is not None and attempt.job is job else None


def _report(job: CurrentJob, error: BaseException, reason: str | None) -> None:
    attempt = _attempt_at(job)
    # The SDK's own check for duplicates does not see those of an async task, which has a context of its own.
    if attempt is not None and any(each is error for each in attempt.reported):
        return
    mechanism = {"type": "flask_backend", "handled": False}
    event, hint = event_from_exception(error, client_options=sentry_sdk.get_client().options, mechanism=mechanism)
    if reason is not None:
        event.setdefault("contexts", {})["burial"] = {"reason": reason}
    if isinstance(error, WorkerDiedError):
        event.setdefault("contexts", {})["worker"] = error.facts
    if isinstance(error, TaskTimeout | WorkerDiedError):
        # It has no traceback, or one of wherever the task was.
        end = [str(error.facts.get("exit_signal"))] if isinstance(error, WorkerDiedError) else []
        event["fingerprint"] = ["flask_backend", type(error).__name__, job.queue, job.endpoint, *end]
    sentry_sdk.capture_event(event, hint=hint)


def _add_job(event: Event, hint: dict[str, Any], processing: Processing, reported: list[BaseException]) -> Event:
    if exc_info := hint.get("exc_info"):
        reported.append(exc_info[1])
    facts = _facts(processing)
    tags = event.setdefault("tags", {})
    for name in ("queue", "task"):
        tags.setdefault(f"flask_backend.{name}", facts[name])
    if processing.args is not None and _may_send_arguments():
        facts |= {"args": processing.args, "kwargs": processing.kwargs}
    event.setdefault("contexts", {})["flask_backend"] = facts
    return event


def _facts(processing: Processing) -> dict[str, Any]:
    job = processing.job
    facts: dict[str, Any] = {"queue": job.queue, "task": job.endpoint, "job_id": job.id, "id": job.headers.get("id")}
    if job.known_attempts is not None:
        facts["attempt"] = job.known_attempts.number
    return facts


def _may_send_arguments() -> bool:
    collection = sentry_sdk.get_client().options.get("data_collection")
    if collection is not None and collection.get("provided_by_user"):
        return bool(collection.get("queues"))
    return should_send_default_pii()
