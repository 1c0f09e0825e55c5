"""A long task with checkpoints, whose workers are stopped, reloaded, killed and interrupted.

Hundreds of faults at random moments: test_endurance.py.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess

import pytest
from support.supervised import COMMAND, Command, title
from support.waiting import wait_until

from flask_backend.broker.cursors import Owner
from flask_backend.names import is_cursor_tube
from flask_backend.system import page

QUEUE = "q"
APP = """
import os
import time

from flask import Flask
from flask_backend import Backend, Discard, Retry, current, current_job

current.SAVE_EVERY_S = float(os.environ.get("SAVE_EVERY_S", "5"))
app = Flask(__name__)
backend = Backend(app)

def say(text):
    fd = os.open(os.environ["LEDGER"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(fd, f"{text}\\n".encode())
    os.close(fd)

@backend.task("q", time_limit=float(os.environ.get("LIMIT", "60")), retry=Retry(max_retries=None, max_backoff=1))
def long(name, to, pause=0.01):
    start = current_job.cursor or 0
    say(f"{name} from {start} attempt {current_job.attempt} in {os.getpid()}")
    for number in range(start + 1, to + 1):
        time.sleep(pause)  # it works
        say(f"{name} {number}")
        current_job.progress(number, to)
        current_job.checkpoint(number)
    say(f"{name} done")

@backend.task("q")
def short():
    say("short")
"""


@pytest.fixture
def start(command, tmp_path):
    def start(*args: str, workers: int = 1, **environment: str):
        (tmp_path / "checkpointing.py").write_text(APP)
        args = args or ("supervise", "--workers", str(workers))
        running = command(*args, app="checkpointing", **environment)
        running.wait_for_log("ready: ")
        return running

    return start


def call(broker, name, to, pause=0.01, uid="u"):
    headers = {"headers": {"id": uid}} if uid else {}
    return broker.put(QUEUE, json.dumps({"endpoint": "long", "args": [name, to, pause], **headers}).encode())


def numbers(running, name="a"):
    words = [line.split() for line in running.ledger]
    return [int(line[1]) for line in words if line[0] == name and len(line) == 2 and line[1] != "done"]


def starts(running, name="a"):
    words = [line.split() for line in running.ledger]
    return [(int(line[2]), int(line[4])) for line in words if line[0] == name and line[1] == "from"]


def cursors(broker):
    with broker.client(QUEUE) as client:
        return [tube for tube in client.tubes() if is_cursor_tube(tube)]


def assert_done_once(running, broker, to, name="a"):
    running.wait_for_line(f"{name} done")
    wait_until(lambda: cursors(broker) == [], "its cursor is gone")
    assert running.ledger.count(f"{name} done") == 1
    assert sorted(set(numbers(running, name))) == list(range(1, to + 1))


def last_pid(running):
    return int([line.split()[-1] for line in running.ledger if " from " in line][-1])


@pytest.mark.skipif(not page.read_process(os.getpid()), reason="needs /proc")
def test_progress_is_shown_in_the_title_and_on_the_status_page(start, broker):
    running = start()
    call(broker, "a", 10_000)

    def shown():
        [queue] = page.find(running.pid)[running.pid].page.queues
        return queue.workers[0].progress

    done, total = wait_until(shown, "the page has it")
    assert total == 10_000
    wait_until(lambda: shown()[0] > done, "it changes")
    status = subprocess.run([*COMMAND, "status", "--json"], capture_output=True, text=True, check=True)
    [told] = [each for each in json.loads(status.stdout) if each["pid"] == running.pid]
    [worker] = told["workers"]
    assert worker["progress"]["total"] == 10_000
    assert re.fullmatch(rf"long \d+s {worker['progress']['done']}/10000", worker["activity"])
    found = wait_until(lambda: re.search(r"\[long \d+s (\d+)/10000\]", title(last_pid(running))), "its title")
    assert 0 < int(found[1]) <= shown()[0]


@pytest.mark.parametrize("args", [(), ("worker", QUEUE)], ids=["supervised", "alone"])
def test_a_stop_leaves_the_task_at_a_checkpoint_uncounted_and_exits_with_0(start, broker, args):
    running = start(*args)
    job_id = call(broker, "a", 400)
    wait_until(lambda: len(numbers(running)) > 5, "it is under way")
    running.send(signal.SIGTERM)
    assert running.wait() == 0
    assert f"job {job_id} (long) is left at its checkpoint, and goes on in another worker" in running.log
    job = broker.job(job_id)
    assert (job["state"], job["releases"], job["buries"]) == ("ready", 0, 0)
    assert cursors(broker) == [Owner(job_id, QUEUE, "u").tube]
    done = len(numbers(running))
    assert done < 400
    again = start(*args)
    assert_done_once(again, broker, 400)
    assert numbers(again) == list(range(1, 401))  # each step ran once
    assert starts(again) == [(0, 1), (done, 1)]


def test_a_reload_and_a_recycle_leave_it_too_and_other_jobs_pass(start, broker):
    running = start()
    call(broker, "a", 300, uid=None)
    broker.put(QUEUE, b'{"endpoint": "short"}')
    wait_until(lambda: len(numbers(running)) > 5, "it is under way")
    running.send(signal.SIGHUP)
    wait_until(lambda: len(starts(running)) == 2, "it goes on in the new code")
    wait_until(lambda: len(numbers(running)) > 60, "it is under way again")
    os.kill(last_pid(running), signal.SIGTERM)
    wait_until(lambda: len(starts(running)) == 3, "it goes on after a drain of its worker")
    assert_done_once(running, broker, 300)
    assert numbers(running) == list(range(1, 301))
    assert {attempt for _, attempt in starts(running)} == {1}
    running.wait_for_line("short")


def test_a_kill_and_a_time_limit_go_on_at_the_last_saved_cursor(start, broker):
    running = start(SAVE_EVERY_S="0", LIMIT="1.5")
    call(broker, "a", 300)
    wait_until(lambda: len(numbers(running)) > 20, "it is under way")
    os.kill(last_pid(running), signal.SIGKILL)
    assert_done_once(running, broker, 300)
    assert len(numbers(running)) <= 300 + len(starts(running))  # at most the step that it died in runs again
    assert "TaskTimeout" in running.log
    assert [attempt for _, attempt in starts(running)] == list(range(1, len(starts(running)) + 1))


@pytest.fixture
def start_durable(durable_broker, tmp_path):
    started = []

    def start(*args, **environment):
        (tmp_path / "checkpointing.py").write_text(APP)
        started.append(Command(durable_broker, tmp_path, *args, app="checkpointing", **environment))
        return started[-1]

    yield start
    for running in started:
        running.end()


def test_a_task_whose_job_another_worker_holds_ends_at_its_next_checkpoint(start_durable, durable_broker):
    running = start_durable("worker", QUEUE, SAVE_EVERY_S="1000")
    call(durable_broker, "a", 100_000)
    wait_until(lambda: len(numbers(running)) > 20, "it is under way")
    running.send(signal.SIGSTOP)
    durable_broker.kill()
    durable_broker.start()
    with durable_broker.client(QUEUE) as another:
        another.reserve(timeout=0)
        running.send(signal.SIGCONT)
        running.wait_for_log("JobNotFoundError: this worker no longer holds job 1")
        assert durable_broker.job(1)["state"] == "reserved"
    wait_until(lambda: len(starts(running)) == 2, "it is run again")
    running.send(signal.SIGTERM)
    assert running.wait() == 0


def test_a_broker_that_is_away_does_not_stop_it(start_durable, durable_broker):
    running = start_durable("supervise", "--workers", "1", SAVE_EVERY_S="0")
    call(durable_broker, "a", 300)
    wait_until(lambda: len(numbers(running)) > 20, "it is under way")
    durable_broker.kill()
    running.wait_for_log("the cursor of job 1 is not saved")
    durable_broker.start()
    assert_done_once(running, durable_broker, 300)
    assert numbers(running) == list(range(1, 301))


def test_cursors_whose_jobs_are_gone_are_swept(start, broker):
    running = start(workers=2)
    call(broker, "a", 100_000, uid="gone")
    wait_until(lambda: len(numbers(running)) > 5, "it is under way")
    os.kill(last_pid(running), signal.SIGTERM)
    wait_until(lambda: len(starts(running)) == 2, "it has been left")
    running.send(signal.SIGTERM)
    running.wait()
    [tube] = cursors(broker)
    with broker.client(QUEUE) as client:
        client.delete(1)
    running = start(SAVE_EVERY_S="0")
    call(broker, "b", 5, uid="other")
    running.wait_for_line("b done")
    wait_until(lambda: tube not in cursors(broker), "the orphan is gone")
