"""An app whose workers report to the ingest of a test: to ``SENTRY``, a DSN, and to ``SPANS``, a URL.

With ``IN_WORKERS`` the provider of spans is made in each worker, and not by the import.
"""

from __future__ import annotations

import json
import os
import signal
import time
import urllib.request
import warnings

from flask import Flask

from flask_backend import Backend, Retry
from flask_backend.signals import worker_started

QUEUE = "com.example/traced"
ONCE = Retry(max_retries=0)

if dsn := os.environ.get("SENTRY"):
    warnings.filterwarnings("ignore", r"\s*Eventlet is deprecated")  # the SDK imports it where it is installed
    import sentry_sdk

    from flask_backend.contrib.sentry import FlaskBackendIntegration

    sentry_sdk.init(
        dsn=dsn,
        integrations=[FlaskBackendIntegration()],
        traces_sample_rate=1.0,
        release="1",
        shutdown_timeout=float(os.environ.get("SHUTDOWN_S", "2")),
    )

if url := os.environ.get("SPANS"):
    from opentelemetry import trace
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

    from flask_backend.contrib.opentelemetry import FlaskBackendInstrumentor

    class Exporter(SpanExporter):
        def export(self, spans):
            told = [json.loads(span.to_json()) | {"pid": os.getpid()} for span in spans]
            body = json.dumps(told).encode()
            opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
            opener.open(urllib.request.Request(url, body), timeout=60).close()  # noqa: S310  # the test's own
            return SpanExportResult.SUCCESS

    def set_up_tracing(*_args, **_facts):
        provider = TracerProvider()
        # By itself it would export long after the end of the test.
        provider.add_span_processor(BatchSpanProcessor(Exporter(), schedule_delay_millis=600_000))
        trace.set_tracer_provider(provider)

    if "IN_WORKERS" in os.environ:
        worker_started.connect(set_up_tracing)
    else:
        set_up_tracing()
    FlaskBackendInstrumentor().instrument()

app = Flask(__name__)
app.config.from_prefixed_env()
backend = Backend(app)


@backend.task(QUEUE)
def hello(name):
    app.logger.warning("hello %s", name)


@backend.task(QUEUE, retry=ONCE)
def fails(name):
    raise KeyError(name)


@backend.task(QUEUE, retry=ONCE)
def dies():
    os.kill(os.getpid(), signal.SIGKILL)


@backend.task(QUEUE, retry=ONCE, time_limit=0.3)
def slow():
    time.sleep(60)  # until its time limit


@backend.task(QUEUE)
def waits(path):
    """Wait for a file, so that the test decides when the task ends."""
    app.logger.warning("waits")
    while not os.path.exists(path):  # noqa: PTH110
        time.sleep(0.01)
