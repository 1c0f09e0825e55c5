"""The signals that real workers and real supervisors send."""

from __future__ import annotations

import json
import signal

import pytest
from support.waiting import wait_until

pytestmark = pytest.mark.any_broker

APP = """
import os
import sys
import time

from flask import Flask, current_app
from flask_backend import Backend, Bury, Discard, RetryLater, signals

app = Flask(__name__)
backend = Backend(app)

@backend.task("q")
def succeed(): ...

@backend.task("q")
def fail():
    raise ValueError("no")

@backend.task("q")
def decide(how):
    raise {"later": RetryLater(7), "bury": Bury("odd"), "discard": Discard("old")}[how]

@backend.task("q")
def die():
    os.kill(os.getpid(), 9)

@backend.task("q", time_limit=0.3)
def limited(seconds):
    time.sleep(seconds)

@backend.before_first_task("q")
def hook():
    print("hook", flush=True)

def note(name):
    def receive(sender, **facts):
        assert sender is app is current_app._get_current_object()
        job = facts.pop("job", None)
        facts.pop("ran_s", None)
        if "error" in facts:
            facts["error"] = f"{type(facts['error']).__name__}: {facts['error']}"
        shown = f" {job.endpoint} {job.id} attempt {job.attempt}" if job else ""
        print(f"<{name}{shown} {facts}>", flush=True)
    return receive

receivers = [note(name) for name in os.environ["SIGNALS"].split()]
for name, receive in zip(os.environ["SIGNALS"].split(), receivers):
    getattr(signals, name).connect(receive)

exec(os.environ.get("MORE", ""))
"""
ALL = "task_started task_succeeded task_failed task_retried task_buried task_discarded worker_started worker_stopping"


def call(broker, endpoint, *args, **options):
    return broker.put("q", json.dumps({"endpoint": endpoint, "args": args}).encode(), **options)


@pytest.fixture
def start(command, tmp_path):
    def start(*args: str, names: str = ALL, more: str = ""):
        (tmp_path / "signalling.py").write_text(APP)
        args = args or ("supervise", "--workers", "1")
        return command(*args, app="signalling", SIGNALS=names, MORE=more)

    return start


@pytest.mark.parametrize("args", [("supervise", "--workers", "1"), ("worker", "q")], ids=["supervise", "worker"])
def test_a_worker_sends_the_signals_of_its_life_and_of_its_jobs(start, broker, args):
    running = start(*args)
    running.wait_for_log("<worker_started {'queue': 'q'}>")
    assert running.log.index("hook") < running.log.index("<worker_started")
    done = call(broker, "succeed")
    running.wait_for_log(f"<task_succeeded succeed {done} attempt 1 {{}}>")
    assert f"<task_started succeed {done} attempt 1 {{}}>" in running.log
    failed = call(broker, "fail")
    running.wait_for_log(f"<task_retried fail {failed} attempt 1 {{'error': 'ValueError: no', 'delay_s': ")
    assert f"<task_failed fail {failed} attempt 1 {{'error': 'ValueError: no'}}>" in running.log
    later, buried, discarded = (call(broker, "decide", how) for how in ("later", "bury", "discard"))
    running.wait_for_log(f"<task_retried decide {later} attempt 1 {{'error': 'RetryLater: ', 'delay_s': 7}}>")
    running.wait_for_log(f"<task_buried decide {buried} attempt 1 {{'error': 'Bury: odd', 'reason': 'odd'}}>")
    running.wait_for_log(f"<task_discarded decide {discarded} attempt 1 {{'error': 'Discard: old', 'reason': 'old'}}>")
    assert running.log.count("<task_failed") == 1
    limited = call(broker, "limited", 10)
    running.wait_for_log(f"<task_failed limited {limited} attempt 1 {{'error': 'TaskTimeout: ")
    assert "<worker_stopping" not in running.log
    running.send(signal.SIGTERM)
    assert running.wait() == 0
    assert running.log.count("<worker_stopping {'queue': 'q'}>") == 1


def test_a_job_that_crashes_its_worker_sends_signals_in_a_process_of_its_own(start, broker):
    running = start(names="task_started task_failed task_retried task_buried")
    job_id = call(broker, "die")
    running.wait_for_log(f"<task_failed die {job_id} attempt 1 {{'error': 'WorkerDiedError: worker ")
    running.wait_for_log(f"<task_retried die {job_id} attempt 1 {{'error': 'WorkerDiedError: worker ")
    for crashes in (1, 2):
        wait_until(lambda times=crashes: running.log.count("<task_retried") == times, "the job is released")
        with broker.client("q") as client:
            client.kick_job(job_id)
    running.wait_for_log(f"<task_buried die {job_id} attempt 3 ")
    assert "'reason': 'it has crashed its worker 3 times'" in running.log
    assert running.log.count("<task_failed") == 3


HANGS = """
@signals.task_failed.connect
def hang(_app, **_facts):
    time.sleep(3600)
"""


def test_a_receiver_that_hangs_after_a_crash_neither_undoes_the_settlement_nor_stops_the_supervisor(start, broker):
    running = start(names="", more=HANGS)
    job_id = call(broker, "die")
    wait_until(lambda: broker.job(job_id)["state"] == "delayed", "the job is released")
    done = call(broker, "succeed")
    wait_until(lambda: broker.job(done) is None, "the next worker works")
    running.wait_for_log(f"receivers of the signals about job {job_id}, which crashed its worker, take longer than 5 s")
    running.send(signal.SIGTERM)
    assert running.wait() == 0


BAD = """
@signals.task_started.connect
@signals.task_succeeded.connect
@signals.worker_started.connect
@signals.worker_stopping.connect
def bad(_app, **_facts):
    sys.exit(3)
"""


def test_receivers_that_raise_are_logged_and_end_no_worker(start, broker):
    running = start(names="", more=BAD)
    jobs = [call(broker, "succeed") for _ in range(3)]
    wait_until(lambda: not any(map(broker.job, jobs)), "all are done")
    running.send(signal.SIGTERM)
    assert running.wait() == 0
    for name, times in [("task-started", 3), ("task-succeeded", 3), ("worker-started", 1), ("worker-stopping", 1)]:
        assert running.log.count(f"receiver bad of the signal {name} failed") == times
    assert "worker died" not in running.log
    assert " exited with status" not in running.log


SLOW = """
@signals.task_started.connect
def slow(_app, **_facts):
    time.sleep(1.5)
"""


def test_a_job_is_held_while_the_receivers_of_its_start_run_and_its_time_limit_begins_after_them(start, broker):
    running = start(names="task_succeeded", more=SLOW)
    job_id = call(broker, "limited", 0, ttr=1)
    running.wait_for_log(f"<task_succeeded limited {job_id} attempt 1 ")
    running.send(signal.SIGTERM)  # the reply to the delete may come after that line
    assert running.wait() == 0
    assert "reservation" not in running.log
    assert running.log.count("<task_succeeded") == 1


FORKS = """
@signals.task_succeeded.connect
def fork(_app, **_facts):
    if os.fork() == 0:
        print("child", flush=True)
"""


def test_a_process_that_a_receiver_forks_does_not_become_a_second_worker(start, broker):
    running = start(names="", more=FORKS)
    first, second = call(broker, "succeed"), call(broker, "succeed")
    wait_until(lambda: not broker.job(first) and not broker.job(second), "both are done")
    wait_until(lambda: running.log.count("child\n") == 2, "both receivers have forked")
    running.send(signal.SIGTERM)
    assert running.wait() == 0
    assert running.log.count("child\n") == 2


LOSES = """
@backend.task("q")
def lose():
    print("runs", flush=True)
    while not os.path.exists("gone"):
        time.sleep(0.01)
    raise ValueError("no")

@signals.task_failed.connect
def say(_app, job, error, **_facts):
    print(f"<failed {job.id} {error}>", flush=True)
"""


def test_a_failure_is_announced_even_if_the_broker_is_gone(start, broker, tmp_path):
    running = start(names="task_retried", more=LOSES)
    job_id = call(broker, "lose")
    running.wait_for_log("runs")
    broker.freeze()
    try:
        (tmp_path / "gone").touch()
        running.wait_for_log(f"<failed {job_id} no>")
    finally:
        broker.thaw()
    assert "task_retried" not in running.log


SUPERVISOR = "worker_exited supervisor_ready supervisor_reloaded"


def test_the_signals_about_the_supervisor_and_its_workers_are_sent_in_processes_of_their_own(start, broker):
    running = start(names=SUPERVISOR, more="print('pid', os.getpid(), flush=True)")
    running.wait_for_log("<supervisor_ready {'description': 'ready: q=1', ")
    assert f"'supervisor_pid': {running.pid}, 'generation': 0, 'queues': {{'q': 1}}}}>" in running.log
    job_id = call(broker, "die")
    running.wait_for_log("<worker_exited {'description': 'worker ")
    assert "'queue': 'q', " in running.log
    assert "'exit_kind': 'died_busy', " in running.log
    assert f"'job_id': {job_id}, 'task': 'die', " in running.log
    running.send(signal.SIGHUP)
    running.wait_for_log("<supervisor_reloaded {'description': ")
    assert "'generation': 1, " in running.log
    running.send(signal.SIGTERM)
    assert running.wait() == 0
