"""Faults of the broker: no worker and no job is lost."""

from __future__ import annotations

import json
import os
import random
import signal
import time

import psutil
import pytest
from flask import Flask
from support import workload
from support.beanstalkd import Beanstalkd
from support.proxy import Proxy
from support.waiting import wait_until
from support.workload import QUEUE


@pytest.fixture
def durable_tasks(durable_broker):
    app = Flask("producer")
    app.config["BACKEND_CONNECTION_URI"] = durable_broker.uri
    workload.backend.init_app(app)
    with app.app_context():
        yield workload


def test_a_broker_killed_and_restarted_on_its_binlog_loses_no_job_and_no_worker(
    supervise, durable_broker, durable_tasks, tmp_path
):
    supervised = supervise(broker=durable_broker, workers=2)
    supervised.wait_ready()
    workers = supervised.workers()
    job = durable_tasks.wait_for(str(tmp_path / "go"))
    for n in range(300):
        durable_tasks.note(n)
    supervised.wait_for_line("note 100")
    durable_broker.kill()
    (tmp_path / "go").touch()
    supervised.wait_for_line("waited")  # its delete cannot reach the broker
    durable_broker.start()
    for n in range(300):
        supervised.wait_for_line(f"note {n}")
    wait_until(lambda: durable_broker.is_empty(QUEUE), "the queue is empty")
    supervised.wait_for_log("back at Beanstalkd")
    assert supervised.workers() == workers
    assert durable_broker.job(job.id) is None
    assert sum(supervised.ledger.count(f"note {n}") for n in range(300)) <= 300 + 2  # one job that ran in each worker
    supervised.send(signal.SIGTERM)
    supervised.assert_clean_exit(0)


def test_a_task_that_finished_as_the_broker_was_restarted_is_deleted_late(
    supervise, durable_broker, durable_tasks, tmp_path
):
    supervised = supervise(broker=durable_broker, workers=1)
    supervised.wait_ready()
    durable_tasks.wait_for(str(tmp_path / "go"))
    supervised.wait_for_line("begin waited")
    durable_broker.kill()
    durable_broker.start()
    (tmp_path / "go").touch()
    wait_until(lambda: durable_broker.is_empty(QUEUE), "the job is deleted")
    assert supervised.ledger.count("begin waited") == 1
    supervised.send(signal.SIGTERM)
    supervised.assert_clean_exit(0)


HOOKED = """
import os
from support.workload import QUEUE, backend, write_down

@backend.before_first_task(QUEUE)
def announce():
    write_down(f"announces {os.getpid()}")
    backend.send("com.example/announced", {"pid": os.getpid()})
    write_down(f"announced {os.getpid()}")
"""


@pytest.mark.parametrize("ends", ["works", "drains"])
def test_a_hook_that_needs_the_broker_waits_out_an_outage(supervise, durable_broker, durable_tasks, tmp_path, ends):
    (tmp_path / "hooked.py").write_text(f"{HOOKED}\nfrom support.workload import app\n")
    supervised = supervise("--boot-timeout", "1", broker=durable_broker, workers=2, app="hooked")
    supervised.wait_ready()
    durable_broker.kill()
    killed, _ = supervised.workers()
    os.kill(killed, signal.SIGKILL)
    supervised.wait_for_log("a before_first_task hook needs the broker")
    (new,) = set(supervised.workers()) - {killed, _}
    wait_until(lambda: time.time() - psutil.Process(new).create_time() > 2, "it is past its boot deadline")
    assert supervised.ledger.count(f"announces {new}") > 1
    if ends == "works":
        durable_broker.start()
        supervised.wait_for_line(f"announced {new}")
        wait_until(lambda: durable_broker.waiting(QUEUE) == 2, "both workers wait for jobs")
        durable_tasks.note(1)
        supervised.wait_for_line("note 1")
        assert new in supervised.workers()
    assert supervised.log.count("; replaced") == 1
    supervised.send(signal.SIGTERM)
    assert supervised.wait() == 0
    if ends == "drains":
        durable_broker.start()  # which knows whether a job is held
    supervised.assert_clean_exit(0)


def test_tasks_that_finish_while_the_broker_is_away_run_once(supervise, durable_broker, durable_tasks, tmp_path):
    """The workers of both supervisors wait, even without a job to delete: neither takes the other's finished job."""
    (tmp_path / "other").mkdir()
    supervised = supervise(broker=durable_broker, workers=3)
    other = supervise(broker=durable_broker, workers=2, LEDGER=str(tmp_path / "ledger"))
    wait_until(lambda: durable_broker.waiting(QUEUE) == 5, "all workers wait")
    gate = tmp_path / "gate"
    for n in range(3):
        durable_tasks.wait_for(str(gate), f"waited {n}")
        supervised.wait_for_line(f"begin waited {n}")
    durable_broker.kill()
    gate.touch()
    for n in range(3):
        supervised.wait_for_line(f"waited {n}")
    durable_broker.start()
    wait_until(lambda: durable_broker.is_empty(QUEUE), "all jobs are deleted")
    assert [supervised.ledger.count(f"begin waited {n}") for n in range(3)] == [1, 1, 1]
    assert "twice" not in supervised.log
    for each in (supervised, other):
        each.send(signal.SIGTERM)
        each.assert_clean_exit(0)


def test_tasks_that_still_run_when_the_broker_is_back_are_held_again_and_run_once(
    supervise, durable_broker, durable_tasks, tmp_path
):
    supervised = supervise(broker=durable_broker, workers=4)
    supervised.wait_ready()
    gate = tmp_path / "gate"
    jobs = [durable_tasks.wait_for(str(gate), f"waited {n}") for n in range(2)]
    for n in range(2):
        supervised.wait_for_line(f"begin waited {n}")
    durable_broker.kill()
    durable_broker.start()
    for job in jobs:
        supervised.wait_for_log(f"job {job.id} (wait_for) is held again")
    supervised.wait_reserving(2)
    assert durable_broker.count(QUEUE, "reserved") == 2
    durable_tasks.note("others go on")
    supervised.wait_for_line("note others go on")
    gate.touch()
    wait_until(lambda: durable_broker.is_empty(QUEUE), "all jobs are deleted")
    assert [supervised.ledger.count(f"begin waited {n}") for n in range(2)] == [1, 1]
    supervised.send(signal.SIGTERM)
    supervised.assert_clean_exit(0)


def test_a_job_that_is_held_again_survives_another_restart_and_settles_as_ever(
    supervise, durable_broker, durable_tasks, tmp_path
):
    supervised = supervise(broker=durable_broker, workers=2)
    supervised.wait_ready()
    job = durable_tasks.fail_when(str(tmp_path / "gate"))
    supervised.wait_for_line("begin to fail")
    for times in (1, 2):
        durable_broker.kill()
        durable_broker.start()
        wait_until(lambda times=times: supervised.log.count(f"job {job.id} (fail_when) is held again") == times, "held")
    (tmp_path / "gate").touch()
    supervised.wait_for_log("attempt 1 of 10), next try in")
    assert durable_broker.job(job.id)["state"] == "delayed"
    supervised.send(signal.SIGTERM)
    supervised.assert_clean_exit(0)


def test_a_worker_that_dies_with_a_job_that_is_held_again_is_settled_by_its_supervisor(
    supervise, durable_broker, durable_tasks, tmp_path
):
    supervised = supervise(broker=durable_broker, workers=1)
    supervised.wait_ready()
    job = durable_tasks.wait_for(str(tmp_path / "gate"))
    supervised.wait_for_line("begin waited")
    durable_broker.kill()
    durable_broker.start()
    supervised.wait_for_log(f"job {job.id} (wait_for) is held again")
    os.kill(supervised.workers()[0], signal.SIGKILL)
    wait_until(lambda: durable_broker.job(job.id)["state"] == "delayed", "the job is released with a delay")
    supervised.send(signal.SIGTERM)
    supervised.assert_clean_exit(0)


def test_jobs_that_wait_in_a_worker_go_back_and_the_running_one_is_held_again(
    supervise, durable_broker, durable_tasks, tmp_path
):
    supervised = supervise("--prefetch", "5", broker=durable_broker, workers=1)
    supervised.wait_ready()
    gate = tmp_path / "gate"
    durable_tasks.wait_for(str(gate), "first")
    supervised.wait_for_line("begin first")
    durable_tasks.wait_for(str(gate), "second")
    durable_tasks.note.map(range(3))
    (tmp_path / "gate").touch()
    supervised.wait_for_line("note 2")
    (tmp_path / "gate").unlink()
    durable_tasks.wait_for(str(gate), "third")
    supervised.wait_for_line("begin third")
    durable_broker.kill()
    durable_broker.start()
    supervised.wait_for_log("is held again")
    gate.touch()
    wait_until(lambda: durable_broker.is_empty(QUEUE), "all jobs are deleted")
    assert sorted(supervised.ledger) == sorted(set(supervised.ledger))
    supervised.send(signal.SIGTERM)
    supervised.assert_clean_exit(0)


def test_a_lone_worker_reserves_its_job_again_too(command, durable_broker, durable_tasks, tmp_path):
    worker = command("worker", QUEUE, broker=durable_broker)
    worker.wait_for_log("ready: ")
    durable_tasks.wait_for(str(tmp_path / "gate"))
    worker.wait_for_line("begin waited")
    durable_broker.kill()
    durable_broker.start()
    worker.wait_for_log("is held again")
    (tmp_path / "gate").touch()
    wait_until(lambda: durable_broker.is_empty(QUEUE), "the job is deleted")
    assert worker.ledger.count("begin waited") == 1


def test_a_message_without_its_own_id_may_run_twice_and_that_is_logged(supervise, durable_broker, tmp_path):
    supervised = supervise(broker=durable_broker, workers=1)
    supervised.wait_ready()
    gate = tmp_path / "gate"
    durable_broker.put(QUEUE, json.dumps({"endpoint": "wait_for", "args": [str(gate)]}).encode())
    supervised.wait_for_line("begin waited")
    durable_broker.kill()
    gate.touch()
    supervised.wait_for_line("waited")
    durable_broker.start()
    supervised.wait_for_log("may run twice: its message has no id of its own")
    supervised.wait_for_line("waited", times=2)
    wait_until(lambda: durable_broker.is_empty(QUEUE), "the job is deleted")
    supervised.send(signal.SIGTERM)
    supervised.assert_clean_exit(0)


def test_a_worker_whose_last_task_finished_as_the_broker_was_restarted_is_recycled(
    supervise, durable_broker, durable_tasks, tmp_path
):
    gate = tmp_path / "gate"
    supervised = supervise("--max-tasks", "1", workers=1, broker=durable_broker)
    supervised.wait_ready()
    (first,) = supervised.workers()
    durable_tasks.wait_for(str(gate))
    supervised.wait_for_line("begin waited")
    durable_broker.kill()
    gate.touch()
    supervised.wait_for_log("lost the connection to Beanstalkd")
    durable_broker.start()
    supervised.wait_for_log(f"worker {first} of {QUEUE} is recycled: it has run its maximum number of tasks")
    durable_tasks.note("next")
    supervised.wait_for_line("note next")
    wait_until(lambda: durable_broker.is_empty(QUEUE), "both are deleted")
    assert supervised.ledger.count("waited") == 1
    supervised.send(signal.SIGTERM)
    supervised.assert_clean_exit(0)


def test_a_drain_still_deletes_the_task_that_finished_as_the_broker_was_restarted(
    supervise, durable_broker, durable_tasks, tmp_path
):
    supervised = supervise(broker=durable_broker, workers=1)
    supervised.wait_ready()
    durable_tasks.wait_for(str(tmp_path / "go"))
    supervised.wait_for_line("begin waited")
    supervised.workers()
    supervised.send(signal.SIGTERM)
    supervised.wait_for_log("stopping")
    durable_broker.kill()
    durable_broker.start()
    (tmp_path / "go").touch()
    supervised.assert_clean_exit(0)
    assert durable_broker.is_empty(QUEUE)


def test_a_restarted_broker_without_binlog_keeps_another_job_of_the_same_id(supervise, broker, tasks, tmp_path):
    """Ids restart at 1: the job that looks like the finished one is another and must not be deleted."""
    supervised = supervise(workers=1)
    supervised.wait_ready()
    tasks.wait_for(str(tmp_path / "go"))
    supervised.wait_for_line("begin waited")
    broker.kill()
    broker.start()
    stranger = broker.put("another", b"stranger")
    assert stranger == 1
    (tmp_path / "go").touch()
    supervised.wait_for_log("back at Beanstalkd")
    supervised.wait_reserving(1)
    assert broker.peek(stranger) == b"stranger"
    supervised.send(signal.SIGTERM)
    supervised.assert_clean_exit(0)


@pytest.mark.timeout(120)
def test_a_broker_frozen_for_longer_than_every_timeout_costs_nothing(supervise, broker, tasks, tmp_path):
    supervised = supervise(workers=2, FLASK_BACKEND_TIMEOUT="0.5")
    supervised.wait_ready()
    workers = supervised.workers()
    tasks.wait_for(str(tmp_path / "go"))
    supervised.wait_for_line("begin waited")
    supervised.wait_reserving(1)
    broker.freeze()
    (tmp_path / "go").touch()
    supervised.wait_for_line("waited")
    # One worker notices as it deletes, the other when its reserve gets no answer.
    wait_until(lambda: supervised.log.count("trying again") >= 2, "both workers have noticed", 40)
    broker.thaw()
    supervised.wait_reserving(2)
    tasks.note("still here")
    supervised.wait_for_line("note still here")
    wait_until(lambda: broker.is_empty(QUEUE), "the queue is empty")
    assert supervised.workers() == workers
    supervised.send(signal.SIGTERM)
    supervised.assert_clean_exit(0)


# An app whose workers count as stuck within seconds, and whose resolver hangs while a file exists.
IMPATIENT = """
import os
import socket
import time

from flask_backend.worker import link, processing, worker
from flask_backend.supervisor import deadlines
from support.workload import app

link.RESERVE_S = processing.RESERVE_S = worker.RESERVE_S = 1
link.RECONNECT_MAX_S = worker.RECONNECT_MAX_S = 1.0
deadlines.SILENT_S = 3.0
resolve = socket.getaddrinfo

def hang(*args, **options):
    while os.path.exists(os.environ["RESOLVER_HANGS"]):
        time.sleep(0.01)
    return resolve(*args, **options)

socket.getaddrinfo = hang
"""


@pytest.mark.parametrize("how", ["refused", "unresolved", "frozen"])
def test_a_broker_down_for_longer_than_a_worker_may_be_silent_costs_nothing(supervise, broker, tasks, tmp_path, how):
    gate = tmp_path / "resolver-hangs"
    (tmp_path / "impatient.py").write_text(IMPATIENT)
    supervised = supervise(workers=3, app="impatient", RESOLVER_HANGS=str(gate), FLASK_BACKEND_TIMEOUT="4")
    supervised.wait_ready()
    workers = supervised.workers()
    tasks.sleep(7)
    supervised.wait_for_line("begin slept")
    if how == "unresolved":
        gate.touch()
    if how == "frozen":
        broker.freeze()
    else:
        broker.kill()
    supervised.wait_for_line("slept")  # the task goes on, and takes longer than an idle worker may be silent
    assert supervised.workers() == workers
    gate.unlink(missing_ok=True)
    if how == "frozen":
        broker.thaw()
    else:
        broker.start()
    supervised.wait_reserving(3)
    tasks.note("back")
    supervised.wait_for_line("note back")
    assert supervised.workers() == workers
    assert "no heartbeat" not in supervised.log
    supervised.send(signal.SIGTERM)
    supervised.assert_clean_exit(0)


@pytest.mark.soak
@pytest.mark.timeout(300)
def test_three_minutes_without_a_broker_cost_no_worker(supervise, broker, tasks):
    supervised = supervise(workers=12)
    supervised.wait_ready()
    workers = supervised.workers()
    tasks.sleep(180)
    supervised.wait_for_line("begin slept")
    broker.kill()
    wait_until(lambda: supervised.wrote("slept"), "the task is done, three minutes later", 240)
    assert supervised.workers() == workers
    broker.start()
    supervised.wait_reserving(12)
    tasks.note("back")
    supervised.wait_for_line("note back")
    assert supervised.workers() == workers
    assert supervised.log.count("trying again") == supervised.log.count("back at Beanstalkd") == 12
    supervised.send(signal.SIGTERM)
    supervised.assert_clean_exit(0)


def test_a_frozen_broker_does_not_hinder_a_drain(supervise, broker):
    supervised = supervise(workers=2)
    supervised.wait_ready()
    supervised.workers()
    broker.freeze()
    supervised.send(signal.SIGTERM)
    assert supervised.wait(5) == 0
    broker.thaw()
    supervised.assert_clean_exit(0)


def test_connections_cut_anywhere_in_a_reply_lose_no_job(supervise, broker, tasks):
    rng = random.Random(1)
    proxy = Proxy(broker.port, lambda: rng.randrange(1, rng.choice((300, 3000))))
    try:
        supervised = supervise(workers=3, BACKEND_CONNECTION_URI=proxy.uri)
        supervised.wait_for_log("ready: ")
        workers = wait_until(lambda: len(found := supervised.workers()) == 3 and found, "all workers are there")
        tasks.note.map(range(200))
        for n in range(200):
            supervised.wait_for_line(f"note {n}")
        wait_until(lambda: broker.is_empty(QUEUE), "the queue is empty")
        assert proxy.cuts > 20
        assert supervised.workers() == workers
        assert "Traceback" not in supervised.log
        supervised.send(signal.SIGTERM)
        supervised.assert_clean_exit(0)
    finally:
        supervised.end()
        proxy.close()


@pytest.mark.skipif(Beanstalkd.is_embedded, reason="only beanstalkd has a binlog")
def test_a_job_corrupted_by_the_binlog_is_buried_and_does_not_stop_the_queue(supervise, durable_broker):
    job_id = durable_broker.put(QUEUE, b'{"endpoint": "note", "args": ["mangled"]}')
    durable_broker.kill()
    (binlog,) = durable_broker.binlog.glob("binlog.*")
    content = binlog.read_bytes()
    start = content.index(b'{"endpoint"')
    binlog.write_bytes(content[:start] + bytes(43) + content[start + 43 :])  # the body, and the line break after it
    durable_broker.start()
    supervised = supervise(broker=durable_broker, workers=2)
    wait_until(lambda: durable_broker.count(QUEUE, "buried") == 1, "the job is buried")
    supervised.wait_for_log(f"job {job_id} of {QUEUE} can never run")
    durable_broker.put(QUEUE, b'{"endpoint": "note", "args": ["next"]}')
    supervised.wait_for_line("note next")
    supervised.send(signal.SIGTERM)
    supervised.assert_clean_exit(0)


def test_a_broker_that_dies_at_random_loses_no_job(supervise, durable_broker, durable_tasks):
    rng = random.Random(2)
    # Before the workers start: jobs that beanstalkd 1.12 accepts in one pipeline while others delete may be lost or
    # corrupted in its binlog when it is killed, without us too (see docs/run/beanstalkd.md).
    durable_tasks.note.map(range(2000))
    supervised = supervise(broker=durable_broker, workers=3)
    supervised.wait_for_line("note 0")
    workers = wait_until(lambda: len(found := supervised.workers()) == 3 and found, "all workers are there")
    for goal in (100, rng.randrange(300, 1500)):
        wait_until(lambda goal=goal: len(set(supervised.ledger)) > goal, f"{goal} lines")
        durable_broker.kill()
        durable_broker.start()
    wait_until(lambda: durable_broker.is_empty(QUEUE), "the queue is empty")
    assert {line for line in supervised.ledger if line.startswith("note")} == {f"note {n}" for n in range(2000)}
    assert supervised.workers() == workers
    supervised.send(signal.SIGTERM)
    supervised.assert_clean_exit(0)
