"""One worker, in the foreground, against a real server: what it does with each kind of job."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import pytest
from support.waiting import wait_until
from support.workload import INBOX, QUEUE


@pytest.fixture
def worker(command, broker):
    running = command("worker", QUEUE)
    wait_until(lambda: broker.waiting(QUEUE) == 1, "the worker reserves")
    return running


def state(broker, job) -> str | None:
    stats = broker.job(job.id)
    return stats and stats["state"]


def test_a_task_runs_once_in_a_fresh_app_context_and_its_job_is_deleted(worker, tasks, broker):
    tasks.context("a")
    tasks.context("b")
    worker.wait_for_line("teardown b")
    assert worker.ledger[1:] == ["support.workload a", "teardown a", "support.workload b", "teardown b"]
    wait_until(lambda: broker.is_empty(QUEUE), "the queue is empty")


def test_the_hook_runs_once_before_the_first_task(worker, tasks):
    tasks.pid()
    tasks.pid()
    worker.wait_for_line(f"pid {worker.pid}", 2)
    assert worker.ledger == [f"hook {worker.pid}", f"pid {worker.pid}", f"pid {worker.pid}"]


def test_a_task_can_schedule_tasks(worker, tasks):
    tasks.chain("from a task")
    worker.wait_for_line("note from a task")


def test_a_task_may_be_asynchronous(worker, tasks):
    pytest.importorskip("asgiref", reason="async tasks need flask[async]")
    tasks.asynchronous("x")
    worker.wait_for_line("async x")


def test_a_receiver_gets_every_json_message(command, broker):
    running = command("worker", INBOX)
    for body in (b'{"any": "json"}', b'"text"', b"null", b'[1, "\xc3\xa4"]', b"  7 "):
        broker.put(INBOX, body)
    for line in ("inbox {'any': 'json'}", "inbox 'text'", "inbox None", "inbox [1, 'ä']", "inbox 7"):
        running.wait_for_line(line)
    assert running.ledger[0] == f"inbox_hook {running.pid}"
    wait_until(lambda: broker.is_empty(INBOX), "the queue is empty")


@pytest.mark.parametrize("queue", [QUEUE, INBOX])
def test_a_failure_is_logged_with_its_traceback_and_released_with_a_delay(command, tasks, broker, queue):
    running = command("worker", queue)
    job_id = broker.put(queue, b'"fail"') if queue == INBOX else tasks.fail().id
    wait_until(lambda: broker.count(queue, "delayed") == 1, "the job is delayed")
    stats = broker.job(job_id)
    assert (stats["releases"], 1 <= stats["delay"] <= 2, stats["pri"]) == (1, True, 65536)
    name, error = ("inbox", "no such message") if queue == INBOX else ("fail", "no luck")
    running.wait_for_log(f"task {name} of {queue} failed (job {job_id}, attempt 1 of 10), next try in")
    running.wait_for_log(f"ValueError: {error}")
    assert "workload.py" in running.log


def test_the_jobs_own_priority_is_kept(worker, broker):
    job_id = broker.put(QUEUE, b'{"endpoint": "fail"}', priority=7)
    wait_until(lambda: broker.count(QUEUE, "delayed") == 1, "the job is delayed")
    assert broker.job(job_id)["pri"] == 7


def test_after_ten_failures_the_job_is_buried_whole_and_a_kick_gives_it_ten_more(worker, tasks, broker):
    job = tasks.fail("ä")
    body = broker.peek(job.id)
    for attempt in range(1, 11):
        worker.wait_for_line("fail", attempt)
        if attempt < 10:
            wait_until(lambda: broker.count(QUEUE, "delayed") == 1, "delayed")
            _make_due(broker, job.id)
    wait_until(lambda: broker.count(QUEUE, "buried") == 1, "buried")
    worker.wait_for_log("attempt 10 of 10), buried: failed 10 times")
    assert broker.peek(job.id) == body
    _make_due(broker, job.id)
    worker.wait_for_line("fail", 11)
    wait_until(lambda: broker.count(QUEUE, "delayed") == 1, "delayed again, not buried")


def _make_due(broker, job_id):
    """Let time pass for the job."""
    with broker.client(QUEUE) as client:
        client.kick_job(job_id)


@pytest.mark.parametrize("how", ["sys.exit", "interrupt", "generator", "recursion"])
def test_whatever_a_task_raises_the_worker_lives_and_the_job_is_kept(worker, tasks, broker, how):
    tasks.leave(how)
    wait_until(lambda: broker.count(QUEUE, "delayed") == 1, "the job is delayed")
    tasks.note("still here")
    worker.wait_for_line("note still here")


@pytest.mark.parametrize(
    ("queue", "body"),
    [
        (QUEUE, b"\xff\x00"),
        (QUEUE, b""),
        (QUEUE, b"not json"),
        (QUEUE, b"[1, 2]"),
        (QUEUE, b'{"endpoint": 5}'),
        (QUEUE, b'{"endpoint": "note", "args": "x"}'),
        (QUEUE, b"[" * 60_000),
        (INBOX, b"\xff\x00"),
        (INBOX, b"{" * 60_000),
    ],
)
def test_what_can_never_succeed_is_buried_at_once_and_whole(command, broker, queue, body):
    running = command("worker", queue)
    job_id = broker.put(queue, body, priority=3)
    wait_until(lambda: broker.count(queue, "buried") == 1, "the job is buried")
    assert broker.peek(job_id) == body
    assert broker.job(job_id)["pri"] == 3
    running.wait_for_log(f"job {job_id} of {queue} can never run")


@pytest.mark.parametrize("body", [b'{"endpoint": "hello_2"}', b'{"endpoint": "note", "args": [1, 2, 3]}'])
def test_what_a_newer_version_may_know_is_retried(worker, broker, body):
    job_id = broker.put(QUEUE, body)
    wait_until(lambda: broker.count(QUEUE, "delayed") == 1, "the job is delayed")
    assert broker.peek(job_id) == body
    if b"hello_2" in body:
        worker.wait_for_log("has no task 'hello_2' in this version of the app; it has asynchronous, chain,")


def test_jobs_of_older_deployments_without_headers_run(worker, broker):
    broker.put(QUEUE, b'{"endpoint": "note", "args": ["old"], "kwargs": {}}')
    broker.put(QUEUE, b'{"kwargs": {"text": "older"}, "endpoint": "note", "unknown": 1}')
    worker.wait_for_line("note old")
    worker.wait_for_line("note older")


@pytest.mark.parametrize("ttr", [1, 2])
def test_a_task_longer_than_its_ttr_keeps_its_job(worker, broker, ttr):
    job_id = broker.put(QUEUE, json.dumps({"endpoint": "sleep", "args": [ttr * 2.5]}).encode(), ttr=ttr)
    worker.wait_for_line("begin slept")
    while not worker.wrote("slept"):
        stats = broker.job(job_id)
        assert stats is None or (stats["state"], stats["timeouts"]) == ("reserved", 0)
        time.sleep(0.02)
    wait_until(lambda: broker.is_empty(QUEUE), "the job is deleted")
    assert worker.ledger.count("begin slept") == 1


def test_the_ttr_is_kept_alive_while_draining(worker, broker):
    broker.put(QUEUE, b'{"endpoint": "sleep", "args": [3]}', ttr=1)
    worker.wait_for_line("begin slept")
    worker.send(signal.SIGTERM)
    assert worker.wait() == 0
    assert worker.wrote("slept")
    assert broker.is_empty(QUEUE)


def test_the_title_tells_the_task_that_takes_long(worker, tasks, tmp_path):
    import psutil

    title = lambda: " ".join(psutil.Process(worker.pid).cmdline()).strip()  # noqa: E731
    assert title() == f"flask-backend: worker {QUEUE} [idle]"
    tasks.wait_for(str(tmp_path / "go"))
    wait_until(lambda: title().startswith(f"flask-backend: worker {QUEUE} [wait_for 1s]"), "the title tells the task")
    (tmp_path / "go").touch()
    wait_until(lambda: title() == f"flask-backend: worker {QUEUE} [idle]", "the title is as before")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
def test_an_idle_worker_stops_at_once(worker, number):
    start = time.monotonic()
    worker.send(number)
    assert worker.wait() == 0
    assert time.monotonic() - start < 2


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_busy_worker_finishes_its_task_and_takes_no_other(worker, tasks, broker, tmp_path, number):
    tasks.wait_for(str(tmp_path / "go"))
    job = tasks.note("later")
    worker.wait_for_line("begin waited")
    worker.send(number)
    (tmp_path / "go").touch()
    assert worker.wait() == 0
    assert worker.ledger[-1] == "waited"
    assert state(broker, job) == "ready"


@pytest.mark.parametrize(
    "numbers", [(signal.SIGTERM, signal.SIGTERM), (signal.SIGINT, signal.SIGINT), (signal.SIGQUIT,)]
)
def test_a_second_signal_or_quit_gives_the_job_back_at_once(worker, tasks, broker, numbers):
    job = tasks.sleep(60)
    worker.wait_for_line("begin slept")
    for number in numbers:
        worker.send(number)
        time.sleep(0.05)  # the system may merge signals that come together
    assert worker.wait() == 4
    wait_until(lambda: state(broker, job) == "ready", "the job is ready for others")


def test_a_drain_ends_at_its_timeout(command, tasks, broker):
    running = command("worker", QUEUE, "--drain-timeout", "0.5")
    job = tasks.sleep(60)
    running.wait_for_line("begin slept")
    running.send(signal.SIGTERM)
    assert running.wait() == 4
    wait_until(lambda: state(broker, job) == "ready", "the job is ready for others")


def test_a_failing_hook_is_exit_3_with_its_traceback(command, broker):
    running = command("worker", QUEUE, HOOK_FAILS="1")
    assert running.wait() == 3
    assert "RuntimeError: the hook has no database" in running.log
    assert "workload.py" in running.log


def test_a_task_that_forks_and_returns_makes_no_second_worker(worker, tasks, broker):
    tasks.fork_and_return()
    tasks.note("after")
    worker.wait_for_line("note after")
    assert worker.ledger.count("note after") == 1
    forked = next(int(line.split()[1]) for line in worker.ledger if line.startswith("forked"))
    wait_until(lambda: not Path(f"/proc/{forked}").exists(), "the fork is gone")
    assert broker.waiting(QUEUE) <= 1


def test_a_task_may_start_processes_and_terminate_them(worker, tasks, broker):
    tasks.use_multiprocessing()
    worker.wait_for_line("terminated True")
    worker.wait_for_line("note from a helper")
    wait_until(lambda: broker.is_empty(QUEUE), "the queue is empty")
    assert worker.ledger.count("terminated True") == 1


def test_what_a_failed_task_held_is_freed_without_a_collection(command, broker):
    running = command("worker", QUEUE)
    for _ in range(5):
        broker.put(QUEUE, b'{"endpoint": "fail_holding"}')
    wait_until(lambda: broker.count(QUEUE, "delayed") == 5, "all have failed")
    assert [line for line in running.ledger if line.startswith("held")] == ["held 0"] * 5


def test_a_job_deleted_by_hand_while_it_runs_is_no_error_but_said(worker, tasks, broker, tmp_path):
    job_id = broker.put(QUEUE, json.dumps({"endpoint": "hold_gil", "args": [2.5]}).encode(), ttr=1)
    worker.wait_for_line("begin hold_gil")
    # The heartbeat cannot run; where the server lets the time to run expire (it does not always), take the job away.
    deadline = time.monotonic() + 2
    while time.monotonic() < deadline and broker.job(job_id)["state"] == "reserved":
        time.sleep(0.01)
    if broker.job(job_id)["state"] == "ready":
        with broker.client(QUEUE) as client:
            client.delete(job_id)
        worker.wait_for_log("may run twice")
    tasks.note("still here")
    worker.wait_for_line("note still here")
