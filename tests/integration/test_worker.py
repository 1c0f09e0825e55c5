"""One worker, in the foreground, against a real server: how it handles each kind of job."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import pytest
from support.beanstalkd import Beanstalkd
from support.waiting import wait_until
from support.workload import INBOX, QUEUE

from flask_backend.broker.producer import Producer
from flask_backend.config import Address, Settings
from flask_backend.options import Options
from flask_backend.stories import Story


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
    tasks.asynchronous("x")
    worker.wait_for_line("async x")


ASYNC_APP = """
import asyncio
import functools

from flask import Flask, current_app, g
from flask_backend import Backend, current_job

app = Flask(__name__)
backend = Backend(app)


def logged(function):
    @functools.wraps(function)
    def wrapper(*args):
        return function(*args)

    return wrapper


async def say(text):
    loops.add(id(asyncio.get_running_loop()))
    await asyncio.sleep(0.001)
    print(text, current_app.name, bool(current_job), len(loops), flush=True)


class Sender:
    __name__ = "sender"

    async def __call__(self):
        await say("sender")


loops = set()
hook = backend.before_first_task("q")(functools.partial(say, "hook"))
hook = backend.task("q", endpoint="sender")(Sender())
wrapped = backend.task("q", endpoint="wrapped")(logged(say))
forgotten = backend.task("q", endpoint="forgotten")(lambda: say("never"))


@backend.task("q")
def runs_another():
    wrapped.run("run")


@backend.task("q", endpoint="leave")
async def leave(how):
    await asyncio.sleep(0)
    raise {each.__name__: each for each in (SystemExit, KeyboardInterrupt, asyncio.CancelledError)}[how]


@backend.task("q")
async def stop():
    asyncio.get_running_loop().stop()
    await say("stopped")


@backend.task("q")
async def run_away():
    async def leave():
        raise SystemExit("of a background task")

    asyncio.create_task(leave())
    await asyncio.sleep(60)


@backend.task("q")
async def fork():
    import os
    pid = os.fork()
    await say(f"after the fork {pid > 0}") if pid else None
    if pid:
        os.wait()
"""


@pytest.fixture
def async_worker(command, broker, tmp_path):
    (tmp_path / "app.py").write_text(ASYNC_APP)
    return command("worker", "q", app=str(tmp_path / "app.py"))


def call(broker, endpoint, *args):
    return broker.put("q", json.dumps({"endpoint": endpoint, "args": args}).encode())


def test_any_async_callable_is_awaited_in_one_loop_hooks_too(async_worker, broker):
    call(broker, "sender")
    call(broker, "wrapped", "wrapped")
    call(broker, "runs_another")
    call(broker, "stop")
    call(broker, "wrapped", "last")
    async_worker.wait_for_log("last app True 1")
    for line in ("hook app False 1", "sender app True 1", "wrapped app True 1", "run app True 1", "stopped app True 1"):
        assert f"{line}\n" in async_worker.log
    wait_until(lambda: broker.is_empty("q"), "all are done")


def test_a_coroutine_that_is_not_awaited_fails_the_job_with_a_sentence(async_worker, broker):
    job_id = call(broker, "forgotten")
    async_worker.wait_for_log("TaskResultError: forgotten() returned a coroutine, which has not run")
    wait_until(lambda: broker.count("q", "delayed") == 1, "it will be tried again")
    assert f"task forgotten of q failed (job {job_id}, attempt 1 of 10), next try in" in async_worker.log
    assert "RuntimeWarning" not in async_worker.log


@pytest.mark.parametrize("how", ["SystemExit", "KeyboardInterrupt", "CancelledError"])
def test_the_worker_and_its_loop_survive_any_exception_of_a_coroutine(async_worker, broker, how):
    call(broker, "leave", how)
    wait_until(lambda: broker.count("q", "delayed") == 1, "the job is delayed")
    call(broker, "wrapped", "still here")
    async_worker.wait_for_log("still here app True 1")


def test_an_exit_of_a_background_task_ends_the_job_and_not_the_loop(async_worker, broker):
    call(broker, "run_away")
    async_worker.wait_for_log("SystemExit: of a background task")
    wait_until(lambda: broker.count("q", "delayed") == 1, "the job is delayed")
    call(broker, "wrapped", "still here")
    async_worker.wait_for_log("still here app True 1")


def test_a_process_forked_by_a_coroutine_does_not_go_on_in_the_loop(async_worker, broker):
    call(broker, "fork")
    async_worker.wait_for_log("after the fork True app True 1")
    call(broker, "wrapped", "after")
    async_worker.wait_for_log("after app True 1")
    wait_until(lambda: broker.is_empty("q"), "all are done")
    assert async_worker.log.count("after app") == 1
    assert "never retrieved" not in async_worker.log


def test_a_queue_may_be_called_default_and_only_its_workers_count_there(broker, tmp_path, command):
    code = "from flask import Flask\nfrom flask_backend import Backend\napp = Flask(__name__)\nbackend = Backend(app)\n"
    (tmp_path / "app.py").write_text(
        f"{code}\n@backend.task('default')\ndef hello():\n    print('hello', flush=True)\n"
    )
    running = command("worker", "default", app="app")
    wait_until(lambda: broker.waiting("default") == 1, "the worker reserves")
    producer = Producer(Settings(Address("127.0.0.1", broker.port)))
    producer.put("default", b'{"endpoint": "hello"}', Options())
    running.wait_for_log("hello\n")
    assert broker.tube("default")["current-watching"] == 2  # the worker, and the client that asks


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


def test_after_ten_failures_the_job_is_buried_whole_and_a_kick_allows_ten_more(worker, tasks, broker):
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
    """Advance the time for the job."""
    with broker.client(QUEUE) as client:
        client.kick_job(job_id)


def stories(broker, queue=QUEUE) -> list[Story]:
    with broker.client(f"{queue}.failures") as client:
        return [Story.decode(client.reserve(timeout=0).body) for _ in range(broker.count(f"{queue}.failures", "ready"))]


def test_a_buried_job_explains_itself(worker, tasks, broker):
    job = tasks.choosy("retried")
    wait_until(lambda: broker.count(QUEUE, "delayed") == 1, "delayed")
    assert stories(broker) == []
    _make_due(broker, job.id)
    wait_until(lambda: broker.count(QUEUE, "buried") == 1, "buried")
    [note] = stories(broker)
    assert (note.job, note.queue, note.reason) == (job.id, QUEUE, "failed twice")
    assert (note.endpoint, note.call, note.exception) == ("choosy", 'choosy("retried")', "ValueError")
    assert (note.message, note.attempts, note.allowed) == ("no luck", 2, 2)
    assert (note.pid, note.death) == (worker.pid, None)
    assert note.traceback.startswith("Traceback (most recent call last):\n  File ")
    assert "workload.py" in note.traceback.splitlines()[1]
    assert note.scheduled_at < note.buried_at <= time.time()


@pytest.mark.parametrize(
    ("queue", "body", "reason", "endpoint"),
    [
        (QUEUE, b"not json", "it can never run: the body is not JSON in UTF-8", None),
        (INBOX, b"\xff", "it can never run: the body is not JSON in UTF-8", None),
        (QUEUE, b'{"endpoint": "choosy", "args": ["never"]}', "KeyError is not retried", "choosy"),
        (QUEUE, b'{"endpoint": "choosy", "args": ["not on"]}', "OSError is not retried", "choosy"),
        (QUEUE, b'{"endpoint": "decide", "args": ["bury"]}', "no such user", "decide"),
    ],
)
def test_a_job_that_is_not_retried_explains_itself_too(command, broker, queue, body, reason, endpoint):
    command("worker", queue)
    job_id = broker.put(queue, body)
    wait_until(lambda: broker.count(queue, "buried") == 1, "buried")
    [note] = stories(broker, queue)
    assert note.reason.startswith(reason)
    assert (note.job, note.attempts, note.endpoint) == (job_id, 1, endpoint)


def test_a_broker_without_room_for_the_story_does_not_prevent_a_burial(command, tmp_path):
    broker = Beanstalkd(max_job_size=100)
    running = command("worker", QUEUE, broker=broker)
    job_id = broker.put(QUEUE, b'{"endpoint": "choosy", "args": ["never"]}')
    wait_until(lambda: broker.count(QUEUE, "buried") == 1, "buried")
    running.wait_for_log(f"cannot store the story of the buried job {job_id}")
    running.end()
    broker.stop()


def test_after_a_thousand_stories_of_a_queue_the_first_of_its_kind_in_a_minute_is_whole(worker, tasks, broker):
    tasks.backend.send_many(f"{QUEUE}.failures", [{}] * 1000, priority=2**32 - 1)
    for kind in ("never", "never", "not on"):
        tasks.choosy(kind)
    wait_until(lambda: broker.count(QUEUE, "buried") == 3, "buried")
    notes = [Story.decode(broker.take(f"{QUEUE}.failures")) for _ in range(3)]
    notes.sort(key=lambda note: note.job)
    assert [note.exception for note in notes] == ["KeyError", "KeyError", "OSError"]
    assert [(note.traceback is not None, note.call is not None) for note in notes] == [
        (True, True),
        (False, False),
        (True, True),
    ]


def test_the_apps_own_policy_is_for_tasks_without_one(command, broker):
    running = command("worker", QUEUE, FLASK_BACKEND_RETRY='{"max_retries": 1, "min_backoff": 50}')
    job_id = broker.put(QUEUE, b'{"endpoint": "fail"}')
    running.wait_for_log(f"task fail of {QUEUE} failed (job {job_id}, attempt 1 of 2), next try in")
    assert 50 <= broker.job(job_id)["delay"] <= 75
    job_id = broker.put(QUEUE, b'{"endpoint": "choosy", "args": ["retried"]}')
    running.wait_for_log(f"task choosy of {QUEUE} failed (job {job_id}, attempt 1 of 2), next try in")
    assert 5 <= broker.job(job_id)["delay"] <= 8


def test_a_task_may_decide_itself_and_that_is_not_an_error(worker, tasks, broker):
    later, bury, discard = (tasks.decide(how) for how in ("later", "bury", "discard"))
    wait_until(lambda: broker.job(discard.id) is None, "deleted")
    assert (state(broker, later), broker.job(later.id)["delay"]) == ("delayed", 30)
    assert state(broker, bury) == "buried"
    for line in (
        f"INFO [{worker.pid}] flask_backend.task: task decide of {QUEUE} asks to be retried later: busy (job ",
        f"task decide of {QUEUE} decided Bury: no such user (job {bury.id}, attempt 1 of 3), buried\n",
        f"task decide of {QUEUE} decided Discard: too late (job {discard.id}, attempt 1 of 3), deleted\n",
    ):
        worker.wait_for_log(line)
    assert "Traceback" not in worker.log
    assert "ERROR" not in worker.log
    for attempt in (2, 3):
        wait_until(lambda: state(broker, later) == "delayed", "delayed")
        _make_due(broker, later.id)
        worker.wait_for_line("decide later", attempt)
    wait_until(lambda: state(broker, later) == "buried", "the retries are used up")


def test_a_task_knows_its_job(worker, tasks, broker):
    job = tasks.tell_job("fail")
    worker.wait_for_line(f"job {job.id} {QUEUE} tell_job 1 True ['at', 'id'] True")
    for attempt in range(2, 11):
        wait_until(lambda: state(broker, job) == "delayed", "delayed")
        _make_due(broker, job.id)
        worker.wait_for_line(f"job {job.id} {QUEUE} tell_job {attempt} {attempt < 10} ['at', 'id'] True")
    job_id = broker.put(QUEUE, b'{"endpoint": "tell_job"}')
    worker.wait_for_line(f"job {job_id} {QUEUE} tell_job 1 True [] True")


def test_a_process_forked_by_a_task_sends_nothing_to_the_broker(worker, tasks, broker):
    tasks.tell_job("fork")
    worker.wait_for_line("in a fork: the job is held by the process that this one was forked from")
    wait_until(lambda: broker.is_empty(QUEUE), "the job is done")


def test_a_time_limit_during_a_broker_command_stops_neither_the_worker_nor_its_touches(worker, tasks, broker):
    for _ in range(12):
        tasks.touch_for_ever()
    worker.wait_for_line("TaskTimeout", 12)
    job_id = broker.put(QUEUE, b'{"endpoint": "sleep", "args": [2.5]}', ttr=1)
    worker.wait_for_line("slept")
    wait_until(lambda: broker.job(job_id) is None, "the job was held for all the time")
    assert worker.ledger.count("begin slept") == 1


def test_a_task_that_lost_its_job_learns_it_from_a_touch(worker, broker):
    broker.put(QUEUE, b'{"endpoint": "tell_job", "args": ["touch"]}')
    worker.wait_for_line("touched")
    broker.stop()
    broker.start()
    tasks_job = broker.put(QUEUE, b'{"endpoint": "note", "args": ["after"]}')
    worker.wait_for_line("note after")
    assert broker.job(tasks_job) is None


@pytest.mark.parametrize("how", ["sys.exit", "interrupt", "generator", "recursion"])
def test_the_worker_survives_any_exception_of_a_task_and_keeps_the_job(worker, tasks, broker, how):
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
def test_a_job_that_can_never_succeed_is_buried_at_once_and_whole(command, broker, queue, body):
    running = command("worker", queue)
    job_id = broker.put(queue, body, priority=3)
    wait_until(lambda: broker.count(queue, "buried") == 1, "the job is buried")
    assert broker.peek(job_id) == body
    assert broker.job(job_id)["pri"] == 3
    running.wait_for_log(f"job {job_id} of {queue} can never run")


@pytest.mark.parametrize("body", [b'{"endpoint": "hello_2"}', b'{"endpoint": "note", "args": [1, 2, 3]}'])
def test_a_job_that_a_newer_version_may_know_is_retried(worker, broker, body):
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


def test_the_title_shows_a_task_that_takes_long(worker, tasks, tmp_path):
    import psutil

    title = lambda: " ".join(psutil.Process(worker.pid).cmdline()).strip()  # noqa: E731
    assert title() == f"flask-backend: worker {QUEUE} [idle]"
    tasks.wait_for(str(tmp_path / "go"))
    wait_until(lambda: title().startswith(f"flask-backend: worker {QUEUE} [wait_for 1s]"), "the title shows the task")
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
        time.sleep(0.05)  # the system may merge simultaneous signals
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


def test_objects_of_a_failed_task_are_freed_without_a_collection(command, broker):
    running = command("worker", QUEUE)
    for _ in range(5):
        broker.put(QUEUE, b'{"endpoint": "fail_holding"}')
    wait_until(lambda: broker.count(QUEUE, "delayed") == 5, "all have failed")
    assert [line for line in running.ledger if line.startswith("held")] == ["held 0"] * 5


def test_a_job_deleted_by_hand_while_it_runs_is_logged_and_not_an_error(worker, tasks, broker, tmp_path):
    job_id = broker.put(QUEUE, json.dumps({"endpoint": "hold_gil", "args": [2.5]}).encode(), ttr=1)
    worker.wait_for_line("begin hold_gil")
    # The heartbeat cannot run. The server does not always expire the job; then delete it.
    deadline = time.monotonic() + 2
    while time.monotonic() < deadline and broker.job(job_id)["state"] == "reserved":
        time.sleep(0.01)
    if broker.job(job_id)["state"] == "ready":
        with broker.client(QUEUE) as client:
            client.delete(job_id)
        worker.wait_for_log("may run twice")
    tasks.note("still here")
    worker.wait_for_line("note still here")


URLS = """
from flask import Flask, url_for
from flask_backend import Backend

app = Flask(__name__)
app.config["BACKEND_BASE_URL"] = "https://example.com/shop"
backend = Backend(app)

@app.get("/orders/<int:order>")
def order(order): ...

@backend.before_first_task("q")
def hook():
    print("hook:", url_for("order", order=1), flush=True)

@backend.task("q")
def task():
    print("task:", url_for("order", order=2, _external=False), url_for("order", order=3), flush=True)

@backend.receiver("inbox")
def receive(message):
    print("receiver:", url_for("order", order=message), flush=True)
"""


def test_tasks_receivers_and_hooks_make_urls_in_a_real_worker(broker, tmp_path, command):
    (tmp_path / "urls.py").write_text(URLS)
    running = command("supervise", "--workers", "1", app="urls")
    call(broker, "task")
    broker.put("inbox", b"4")
    running.wait_for_log("hook: https://example.com/shop/orders/1\n")
    running.wait_for_log("task: /shop/orders/2 https://example.com/shop/orders/3\n")
    running.wait_for_log("receiver: https://example.com/shop/orders/4\n")
