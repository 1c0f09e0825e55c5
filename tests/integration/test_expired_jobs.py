"""Real workers and calls that expire."""

from __future__ import annotations

import json
import signal
import time

import pytest
from support.waiting import wait_until

APP = """
from flask import Flask
from flask_backend import Backend, Retry, signals

app = Flask(__name__)
backend = Backend(app)

@backend.task("q", retry=Retry(max_retries=1, min_backoff=3, jitter=0))
def say(word):
    print("ran", word, flush=True)
    if word == "fail":
        raise ValueError

@signals.task_discarded.connect
def note(sender, job, error, reason, **facts):
    print("discarded", job.id, job.endpoint, job.attempt, error, reason, flush=True)
"""


@pytest.fixture
def start(command, tmp_path):
    def start(*args: str):
        (tmp_path / "expiring.py").write_text(APP)
        return command(*args, app="expiring")

    return start


def call(broker, word, expires=None, **options):
    headers = {"id": word, "at": time.time()} | ({} if expires is None else {"expires": expires})
    return broker.put("q", json.dumps({"endpoint": "say", "args": [word], "headers": headers}).encode(), **options)


@pytest.mark.parametrize(
    "args", [("worker", "q"), ("supervise", "--workers", "1", "--prefetch", "10")], ids=["worker", "prefetch"]
)
def test_a_worker_deletes_expired_jobs_unrun_and_runs_all_others(start, broker, args):
    now = time.time()
    call(broker, "first", now + 600)
    late = [call(broker, "late", now - 1), call(broker, "late", 1), call(broker, "late", now - 0.001)]
    for word, expires in (("odd", "soon"), ("true", True), ("none", None), ("last", now + 600)):
        call(broker, word, expires)
    running = start(*args)
    running.wait_for_log("ran last")
    wait_until(lambda: broker.is_empty("q"), "the queue is empty")
    lines = [line for line in running.log.splitlines() if line.startswith(("ran", "discarded"))]
    expected = [f"discarded {job} say 1 None expired" for job in late]
    assert lines == ["ran first", *expected, "ran odd", "ran true", "ran none", "ran last"]
    for job in late:
        assert f"s before it could start (job {job}), deleted" in running.log
    running.send(signal.SIGTERM)
    assert running.wait() == 0


def test_a_retry_that_comes_too_late_is_deleted(start, broker):
    job = call(broker, "fail", time.time() + 3600)
    running = start("worker", "q")
    running.wait_for_log("ran fail")
    wait_until(lambda: (broker.job(job) or {}).get("state") == "delayed", "the job waits for its retry")
    late = call(broker, "fail", time.time() + 2.5)
    running.wait_for_log(f"discarded {late} say ")
    if running.log.count("ran fail") > 2:  # both runs of the first job, and the first run of the second one
        assert f"discarded {late} say 2 None expired" in running.log


def test_a_queue_of_expired_jobs_is_empty_soon(start, broker):
    with broker.client("q") as client:
        body = json.dumps({"endpoint": "say", "args": ["late"], "headers": {"expires": 1}}).encode()
        for _ in range(1000):
            client.put(body)
    call(broker, "after")
    running = start("worker", "q")
    running.wait_for_log("ran after")
    wait_until(lambda: broker.is_empty("q"), "the queue is empty")
    assert "ran late" not in running.log
    assert running.log.count("discarded") == 1000


LONG = """
from flask_backend import current_job

@backend.task("q", retry=Retry(min_backoff=3, jitter=0))
def long():
    print("at", current_job.cursor, flush=True)
    if current_job.cursor is None:
        current_job.checkpoint(7)
        raise ValueError
"""


def test_a_job_with_a_cursor_has_started_and_goes_on(command, broker, tmp_path):
    (tmp_path / "expiring.py").write_text(APP + LONG)
    running = command("worker", "q", app="expiring")
    wait_until(lambda: broker.waiting("q") == 1, "the worker reserves")
    headers = {"id": "1", "expires": time.time() + 2.5}
    job = broker.put("q", json.dumps({"endpoint": "long", "headers": headers}).encode())
    wait_until(lambda: broker.job(job) is None, "the job is gone")
    assert ("at 7" in running.log) is ("at None" in running.log)  # it began in time, unless the machine was very slow
