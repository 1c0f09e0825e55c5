"""Asynchronous tasks at their limits, under signals, and at the end of their worker."""

from __future__ import annotations

import json
import re
import signal

import pytest
from support.waiting import wait_until

pytestmark = pytest.mark.any_broker

APP = """
import asyncio
import logging
import os
import signal
import threading
import time
from pathlib import Path

from flask import Flask
from flask_backend import Backend, Retry, RetryLater, TaskTimeout, current_job

new_event_loop = asyncio.new_event_loop


def counted():
    say(f"loop of {os.getpid()}")
    return new_event_loop()


asyncio.new_event_loop = counted
app = Flask(__name__)
backend = Backend(app)
left = []


def say(text):
    fd = os.open(os.environ["LEDGER"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(fd, f"{text}\\n".encode())
    os.close(fd)


async def sleep():
    await asyncio.sleep(600)


async def cleanup():
    try:
        await sleep()
    finally:
        await asyncio.sleep(0.2)
        say("cleaned up")


async def swallow():
    try:
        await sleep()
    except asyncio.CancelledError as error:
        say(f"cancelled: {error}")


async def convert():
    try:
        await sleep()
    except asyncio.CancelledError:
        raise ValueError("converted") from None


async def later():
    try:
        await sleep()
    except asyncio.CancelledError:
        raise RetryLater(600) from None


async def children():
    async def child():
        try:
            await sleep()
        finally:
            say("child ended")

    await asyncio.gather(child(), child())


async def group():
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(sleep())
        tasks.create_task(sleep())


async def shielded():
    await asyncio.shield(sleep())


async def beside():
    async def background():
        while True:
            await asyncio.sleep(0.001)
            deadline = time.monotonic() + 0.01
            while time.monotonic() < deadline:
                pass

    tasks = [asyncio.create_task(background()) for _ in range(3)]
    try:
        await sleep()
    finally:
        say(f"background alive {not any(task.done() for task in tasks)}")
        for task in tasks:
            task.cancel()


async def blocking():
    time.sleep(600)


async def compute():
    while True:
        pass


async def busy():
    while True:
        await asyncio.sleep(0)


async def log():
    while True:
        app.logger.info("again and again")


async def make_tasks():
    async def nothing():
        pass

    while True:
        await asyncio.gather(*(nothing() for _ in range(20)))


async def blocks_and_swallows():
    try:
        time.sleep(600)
    except TaskTimeout:
        say("TaskTimeout")


async def in_a_thread():
    await asyncio.to_thread(threading.Event().wait, 1)
    await sleep()


async def stubborn():
    while True:
        try:
            await sleep()
        except asyncio.CancelledError:
            pass


async def blocked_by_a_background_task():
    async def background():
        time.sleep(600)

    asyncio.create_task(background())
    await sleep()


HOW = {function.__name__: function for function in (
    sleep, cleanup, swallow, convert, later, children, group, shielded, beside, blocking, compute, busy, log,
    make_tasks, blocks_and_swallows, in_a_thread, stubborn, blocked_by_a_background_task,
)}


@backend.task("q", time_limit=0.3, retry=Retry(max_retries=1, min_backoff=1, jitter=0))
async def limited(how):
    say(f"begin {how} {current_job.attempt}")
    try:
        await HOW[how]()
    finally:
        say(f"end {how} {current_job.attempt}")


@backend.task("q")
async def note(text):
    await asyncio.sleep(0.001)
    say(f"note {text}")


@backend.task("q")
async def wait_for(path):
    say("begin wait_for")
    while not Path(path).exists():
        await asyncio.sleep(0.01)
    say("waited")


@backend.task("q")
async def leave_behind(how):
    async def named():
        try:
            await HOW.get(how, sleep)()
        except asyncio.CancelledError:
            if how == "raises":
                raise ValueError("in the end") from None
            raise
        finally:
            await asyncio.sleep(0)
            say(f"{how} ended")

    async def items():
        try:
            yield 1
        finally:
            say("generator closed")

    if how == "generator":
        left.append(items())
        await anext(left[-1])
    elif how == "thread":
        asyncio.get_running_loop().run_in_executor(None, lambda: (time.sleep(1), say("thread ended")))
    elif how == "endless thread":
        threading.Thread(target=threading.Event().wait, daemon=True).start()
        asyncio.get_running_loop().run_in_executor(None, threading.Event().wait, 600)
    else:
        left.append(asyncio.create_task(named(), name="poller"))
        await asyncio.sleep(0.01)


@backend.before_first_task("hooked")
async def hook():
    left.append(asyncio.create_task(sleep(), name="of the hook"))
    await asyncio.sleep(0)


@backend.task("hooked")
def plain():
    say("plain")


@backend.before_first_task("failing")
async def failing_hook():
    left.append(asyncio.create_task(sleep(), name="of the hook"))
    await asyncio.sleep(0)
    raise ValueError("the hook has no database")


@backend.task("failing")
def never():
    pass
"""


@pytest.fixture
def app(tmp_path):
    (tmp_path / "app.py").write_text(APP)
    return str(tmp_path / "app.py")


@pytest.fixture
def supervised(supervise, app):
    def start(*args, workers=1):
        supervised = supervise("--queue", "q", *args, app=app, workers=workers)
        supervised.wait_for_log("ready: ")
        supervised.wait_reserving(workers, "q")
        return supervised

    return start


def call(broker, endpoint, *args, queue="q", **options):
    return broker.put(queue, json.dumps({"endpoint": endpoint, "args": args}).encode(), **options)


ENDED_IN_TIME = [
    "sleep",
    "cleanup",
    "swallow",
    "convert",
    "later",
    "children",
    "group",
    "shielded",
    "beside",
    "blocking",
    "compute",
    "busy",
    "log",
    "make_tasks",
    "blocks_and_swallows",
    "in_a_thread",
]


def test_at_its_limit_a_coroutine_has_ended_before_the_job_is_settled(supervised, broker):
    running = supervised(workers=4)
    workers = running.workers()
    jobs = {call(broker, "limited", how): how for how in ENDED_IN_TIME}
    wait_until(lambda: broker.count("q", "buried") == len(jobs), "the second attempts have failed too")
    for how in ENDED_IN_TIME:
        marks = [line for line in running.ledger if re.fullmatch(rf"(begin|end) {how} \d", line)]
        assert marks == [f"begin {how} 1", f"end {how} 1", f"begin {how} 2", f"end {how} 2"]
    lines = {"cleaned up": 2, "cancelled: the task has reached its time limit": 2, "child ended": 4}
    for line, times in {**lines, "background alive True": 2, "TaskTimeout": 2}.items():
        assert running.ledger.count(line) == times, line
    for job_id in jobs:
        assert f"task limited of q failed (job {job_id}, attempt 1 of 2), next try in 1 s" in running.log
    stories = [json.loads(broker.take("q.failures")) for _ in jobs]
    assert {story["message"] for story in stories} == {"the task has reached its time limit"}
    for story in stories:
        if jobs[story["job"]] in ("sleep", "cleanup", "blocking", "compute"):  # it shows where the coroutine was
            assert f"in {jobs[story['job']]}\n" in story["traceback"]
    assert running.workers() == workers
    assert not re.search("never awaited|was destroyed|never retrieved", running.log)
    running.send(signal.SIGTERM)
    running.assert_clean_exit(0)


@pytest.mark.parametrize("how", ["stubborn", "blocked_by_a_background_task"])
def test_a_coroutine_that_does_not_end_is_killed_with_its_worker_after_the_grace(supervised, broker, how):
    running = supervised("--kill-grace", "0.5")
    victims = running.workers()
    job_id = call(broker, "limited", how)
    running.wait_for_log(f"did not end job {job_id} (limited) at its time limit: its stacks follow, then it is killed")
    running.wait_for_log(f"was killed by signal 9 (Killed, perhaps out of memory) at job {job_id} (limited) after")
    call(broker, "note", "others go on")
    running.wait_for_line("note others go on")
    assert not set(victims) & set(running.workers())
    running.send(signal.SIGQUIT)
    assert running.wait() in (0, 4)


def test_a_quick_coroutine_is_never_hit_by_anothers_limit(supervised, broker):
    running = supervised("--time-limit", "0.3", workers=2)
    for n in range(300):
        call(broker, "limited" if n % 50 == 0 else "note", "sleep" if n % 50 == 0 else n)
    wait_until(lambda: sum(line.startswith("note") for line in running.ledger) == 294, "all notes")
    assert "task note of q failed" not in running.log
    running.send(signal.SIGTERM)
    running.wait()


def test_each_worker_makes_one_loop_after_the_fork(supervised, broker):
    running = supervised(workers=2)
    for n in range(40):
        call(broker, "note", n)
    wait_until(lambda: sum(line.startswith("note") for line in running.ledger) == 40, "all notes")
    made = [int(line.split()[-1]) for line in running.ledger if line.startswith("loop of")]
    assert len(made) == len(set(made)) <= 2
    assert set(made) <= set(running.workers())
    running.send(signal.SIGTERM)
    running.assert_clean_exit(0)


def test_term_lets_a_coroutine_finish(supervised, broker, tmp_path):
    running = supervised()
    call(broker, "wait_for", str(tmp_path / "go"))
    running.wait_for_line("begin wait_for")
    running.send(signal.SIGTERM)
    running.wait_for_log("SIGTERM: stopping")
    (tmp_path / "go").touch()
    running.assert_clean_exit(0)
    assert running.ledger[-1] == "waited"
    assert broker.is_empty("q")


def test_a_drain_that_a_coroutine_outlasts_gives_the_job_back(supervised, broker, tmp_path):
    running = supervised("--drain-timeout", "0.5")
    call(broker, "wait_for", str(tmp_path / "never"))
    running.wait_for_line("begin wait_for")
    running.send(signal.SIGTERM)
    running.assert_clean_exit(4)
    assert broker.count("q", "ready") == 1


@pytest.mark.parametrize("end", ["stop", "recycle"])
def test_leftovers_of_tasks_in_the_loop_end_with_the_worker(supervised, broker, end):
    ways = ["is cancelled", "raises", "generator", "thread"]
    running = supervised(*(["--max-tasks", str(len(ways))] if end == "recycle" else []))
    for how in ways:
        call(broker, "leave_behind", how)
    wait_until(lambda: broker.is_empty("q"), "all are done")
    if end == "stop":
        running.wait_reserving(1, "q")
        running.send(signal.SIGTERM)
        running.assert_clean_exit(0)
    for line in ("is cancelled ended", "raises ended", "generator closed", "thread ended"):
        running.wait_for_line(line)
    left = ", ".join(["poller (leave_behind.<locals>.named)"] * 2)
    assert f"cancelling background tasks that are still pending at the end: {left}\n" in running.log
    assert "ValueError: in the end" in running.log
    assert not re.search("was destroyed|never retrieved|killed", running.log)


def test_leftovers_in_the_loop_do_not_hold_up_a_drain_beyond_its_timeout(supervised, broker):
    running = supervised("--drain-timeout", "2")
    call(broker, "leave_behind", "stubborn")
    call(broker, "leave_behind", "endless thread")
    wait_until(lambda: broker.is_empty("q"), "it is done")
    running.wait_reserving(1, "q")
    running.send(signal.SIGTERM)
    assert running.wait(10) in (0, 4)
    assert "background tasks have not ended 1 s after they were cancelled: poller" in running.log


def test_a_lone_workers_loop_is_shut_down_too(command, app, broker):
    running = command("worker", "q", app=app)
    call(broker, "leave_behind", "is cancelled")
    wait_until(lambda: broker.is_empty("q") and broker.waiting("q") == 1, "it is done")
    running.send(signal.SIGTERM)
    assert running.wait() == 0
    assert running.ledger[-1] == "is cancelled ended"
    assert "still pending at the end: poller" in running.log


def test_a_lone_worker_ends_itself_after_the_grace(command, app, broker):
    running = command("worker", "q", "--kill-grace", "0.5", app=app)
    job_id = call(broker, "limited", "stubborn")
    assert running.wait() == 4
    wait_until(lambda: broker.job(job_id)["state"] == "ready", "the job is ready for others")


def test_a_coroutine_keeps_its_job_beyond_its_ttr(command, app, broker, tmp_path):
    running = command("worker", "q", app=app)
    job_id = call(broker, "wait_for", str(tmp_path / "go"), ttr=1)
    running.wait_for_line("begin wait_for")
    wait_until(lambda: (broker.job(job_id) or {}).get("age", 0) >= 3, "three times the TTR is over")
    assert broker.job(job_id)["timeouts"] == 0
    (tmp_path / "go").touch()
    wait_until(lambda: broker.is_empty("q"), "it is done")


def test_leftovers_of_a_hook_in_the_loop_are_reported_even_if_it_fails(command, app, broker):
    for queue in ("hooked", "failing"):
        running = command("worker", queue, app=app)
        if queue == "hooked":
            call(broker, "plain", queue=queue)
            running.wait_for_line("plain")
            wait_until(lambda: broker.is_empty("hooked"), "it is done")
            running.send(signal.SIGTERM)
        assert running.wait() == (0 if queue == "hooked" else 3)
        assert "still pending at the end: of the hook (sleep)" in running.log
