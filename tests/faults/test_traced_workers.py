"""Real workers that report to the SDKs of Sentry and OpenTelemetry, through each kind of end that a worker has."""

from __future__ import annotations

import re
import signal
import sys
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest
from flask import Flask
from support import traced
from support.ingest import ingesting, silent_ingest
from support.traced import QUEUE
from support.waiting import wait_until

pytestmark = pytest.mark.any_broker

APP = str(Path(traced.__file__))
# No proxy of the environment is asked for the loopback interface.
DIRECT = {"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}


@pytest.fixture
def tasks(broker):
    app = Flask("producer")
    app.config["BACKEND_CONNECTION_URI"] = broker.uri
    traced.backend.init_app(app)
    with app.app_context():
        yield traced


@pytest.fixture
def ingest():
    with ingesting() as ingest:
        yield ingest


def of_tasks(items) -> Counter[str]:
    return Counter(item["transaction"] for item in items)


def test_sentry_gets_each_failure_once_however_its_worker_ends(supervise, tasks, broker, ingest):
    """Each worker is replaced after a job, killed by it, or interrupts it at its time limit."""
    supervised = supervise("--queue", QUEUE, "--max-tasks", "1", app=APP, workers=2, SENTRY=ingest.dsn, **DIRECT)
    supervised.wait_for_log("ready: ")
    tasks.hello("a")
    tasks.fails("b")
    tasks.dies()
    tasks.slow()
    wait_until(lambda: broker.count(QUEUE, "buried") == 3, "three are buried")
    wait_until(lambda: len(ingest.of_type("event")) >= 3, "the events arrive")
    wait_until(lambda: len(ingest.of_type("transaction")) >= 3, "the transactions arrive")
    assert psutil.Process(supervised.pid).num_threads() == 1
    supervised.send(signal.SIGTERM)
    supervised.wait()
    assert of_tasks(ingest.of_type("transaction")) == {"hello": 1, "fails": 1, "slow": 1}
    events = {event["exception"]["values"][-1]["type"]: event for event in ingest.of_type("event")}
    assert len(ingest.of_type("event")) == 3
    assert set(events) == {"KeyError", "TaskTimeout", "WorkerDiedError"}
    assert events["TaskTimeout"]["transaction"] == "slow"
    died = events["WorkerDiedError"]
    assert died["contexts"]["worker"]["exit_signal"] == signal.SIGKILL
    assert died["contexts"]["worker"]["max_rss_bytes"] > 1 << 20
    assert died["contexts"]["flask_backend"]["task"] == "dies"
    assert died["contexts"]["burial"] == {"reason": "failed once"}
    assert "has started threads" not in supervised.log
    assert "failed" not in re.sub(r"^.*(task fails of|failed once).*$", "", supervised.log, flags=re.MULTILINE)


def test_opentelemetry_gets_each_span_once_through_recycles_a_kill_and_a_reload(supervise, tasks, broker, ingest):
    """The provider is made by the import, with a thread that each fork must replace; only the last flush exports."""
    supervised = supervise("--queue", QUEUE, "--max-tasks", "1", app=APP, workers=2, SPANS=ingest.url, **DIRECT)
    supervised.wait_for_log("ready: ")
    tasks.hello.map(range(6))
    tasks.dies()
    tasks.fails("x")
    wait_until(lambda: len(ingest.spans) == 8, "the spans arrive")
    supervised.send(signal.SIGHUP)
    wait_until(lambda: supervised.log.count("supervisor: ready: ") == 2, "the new code is ready")
    tasks.hello.map(range(6))
    tasks.slow()
    wait_until(lambda: len(ingest.spans) == 15, "the spans arrive")
    supervised.send(signal.SIGTERM)
    supervised.wait()
    assert broker.count(QUEUE, "buried") == 3
    attributes = [span["attributes"] for span in ingest.spans]
    told = Counter((each["flask_backend.endpoint"], each["flask_backend.outcome"]) for each in attributes)
    assert told == {("hello", "done"): 12, ("dies", "buried"): 1, ("fails", "buried"): 1, ("slow", "buried"): 1}
    assert len({span["context"]["span_id"] for span in ingest.spans}) == 15
    assert len({span["pid"] for span in ingest.spans}) == 15
    assert {span["name"] for span in ingest.spans} == {f"process {QUEUE}"}
    assert {each["server.port"] for each in attributes} == {broker.port}
    assert {each["flask_backend.attempt"] for each in attributes} == {1}
    errors = {each["flask_backend.endpoint"]: each.get("error.type") for each in attributes}
    assert errors == {"hello": None, "dies": "WorkerDiedError", "fails": "KeyError", "slow": "TaskTimeout"}


def test_a_provider_that_each_worker_makes_leaves_no_thread_in_the_supervisor(supervise, tasks, ingest):
    supervised = supervise("--queue", QUEUE, app=APP, workers=1, SPANS=ingest.url, IN_WORKERS="1", **DIRECT)
    supervised.wait_for_log("ready: ")
    tasks.hello("a")
    supervised.wait_for_log("hello a")
    assert psutil.Process(supervised.pid).num_threads() == 1
    supervised.send(signal.SIGTERM)
    assert supervised.wait() == 0
    assert [span["name"] for span in ingest.spans] == [f"process {QUEUE}"]
    assert "has started threads" not in supervised.log


def test_opentelemetry_instrument_reaches_the_workers_before_and_after_a_reload(supervise, tasks, broker):
    supervised = supervise(
        *("--queue", QUEUE),
        app=APP,
        workers=1,
        under=[str(Path(sys.executable).with_name("opentelemetry-instrument"))],
        OTEL_TRACES_EXPORTER="console",
        OTEL_METRICS_EXPORTER="none",
        OTEL_LOGS_EXPORTER="none",
        PYTHONWARNINGS="ignore",  # those of other instrumentations
    )
    supervised.wait_for_log("ready: ")
    tasks.hello("a")
    supervised.wait_for_log("hello a")
    supervised.send(signal.SIGHUP)
    wait_until(lambda: supervised.log.count("supervisor: ready: ") == 2, "the new code is ready")
    tasks.hello("b")
    supervised.wait_for_log("hello b")
    supervised.send(signal.SIGTERM)
    assert supervised.wait() == 0
    assert supervised.log.count(f'"name": "process {QUEUE}"') == 2


@pytest.mark.parametrize("command_line", [("supervise", "--queue", QUEUE, "--workers", "1"), ("worker", QUEUE)])
def test_an_ingest_that_is_away_does_not_hold_a_drain(command, tasks, tmp_path, command_line):
    may_end = tmp_path / "may end"
    with silent_ingest() as ingest:
        running = command(
            *command_line,
            *("--drain-timeout", "12"),
            app=APP,
            SENTRY=ingest.dsn,
            SPANS=ingest.url,
            SHUTDOWN_S="0.5",
            **DIRECT,
        )
        tasks.waits(str(may_end))
        running.wait_for_log("waits")
        running.send(signal.SIGTERM)
        may_end.touch()
        begun = time.monotonic()
        assert running.wait() == 0
    assert time.monotonic() - begun < 11  # a part of the drain timeout, at which it would have been killed
    assert "exporters have not sent everything within" in running.log
