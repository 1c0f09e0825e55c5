"""No body and no exception ends a worker, and a crash while a job is held is attributed to that job."""

from __future__ import annotations

import json
import signal

import pytest
from support.hostile import MAKERS
from support.waiting import wait_until
from support.workload import QUEUE

from flask_backend.message import MAX_DEPTH
from flask_backend.stories import Story

pytestmark = pytest.mark.any_broker

APP = f"""
from support.hostile import MAKERS, Meta, fails, with_class
from support.workload import app, backend, note
from flask_backend import Bury, Discard, Retry, RetryLater

ONCE = Retry(max_retries=0)

@backend.task({QUEUE!r}, retry=ONCE)
def raise_hostile(name):
    raise MAKERS[name]()

@backend.task({QUEUE!r}, retry=ONCE)
def raise_plain(*args, **kwargs):
    raise ValueError("no luck")

@backend.task({QUEUE!r}, retry=ONCE)
def succeed():
    pass

@backend.task({QUEUE!r}, retry=ONCE)
def change_arguments(value):
    value.append(value)
    raise ValueError("no luck")

class Base(ValueError, metaclass=Meta): ...

@backend.task({QUEUE!r}, retry=Retry(on=Base))
def has_hostile_policy():
    raise ValueError("no luck")

@backend.task({QUEUE!r}, retry=Retry(on=KeyError))
def hides_its_class():
    raise MAKERS["__class__ raises"]()

@backend.task({QUEUE!r})
def decide_oddly(number):
    class Silent(Bury):
        def __init__(self): pass
        __class__ = property(fails)
    class Evasive(Bury):
        reason = property(fails, lambda self, value: None)
    class Slow(RetryLater):
        delay_s = property(fails, lambda self, value: None)
    later = RetryLater(7, with_class("Reason", __str__=fails))
    later.delay_s = "soon"
    raise [
        Bury(None), Bury(b"bytes"), Bury(with_class("Reason", __str__=fails)), Bury("x" * 1_000_000),
        Bury("\\x1b[2J\\n"),
        Silent(), Evasive("x"), Discard(object()), later, Slow(7),
    ][number]
"""


@pytest.fixture
def start(supervise, tmp_path):
    def start(code: str = "", workers: int = 2):
        path = tmp_path / "hostile_app.py"
        path.write_text(APP + code)
        supervised = supervise(workers=workers, app=str(path))
        supervised.wait_reserving(workers)
        return supervised

    return start


def call(endpoint: str, *args: object) -> bytes:
    return json.dumps({"endpoint": endpoint, "args": args}).encode()


def nested(depth: int) -> bytes:
    """Return a call whose JSON is nested to the given depth."""
    return b'{"endpoint": "raise_plain", "args": [%b%b]}' % (b"[" * (depth - 2), b"]" * (depth - 2))


def stories(broker) -> dict[int, Story]:
    with broker.client(f"{QUEUE}.failures") as client:
        count = broker.count(f"{QUEUE}.failures", "ready")
        notes = [Story.decode(client.reserve(timeout=0).body) for _ in range(count)]
    return {note.job: note for note in notes}


def assert_unharmed(supervised, broker) -> None:
    """Check that the workers are unchanged and alive."""
    broker.put(QUEUE, call("note", "done"))
    supervised.wait_for_line("note done")
    assert " exited with " not in supervised.log
    assert " was killed " not in supervised.log
    assert "Logging error" not in supervised.log
    supervised.send(signal.SIGTERM)
    supervised.assert_clean_exit(0)


def test_no_exception_ends_a_worker_and_each_has_its_story(start, broker):
    supervised = start()
    jobs = {broker.put(QUEUE, call("raise_hostile", name)): name for name in MAKERS}
    wait_until(
        lambda: broker.count(QUEUE, "buried") == len(jobs), f"all are buried; log:\n{supervised.log[-3000:]}", 40
    )
    told = stories(broker)
    assert set(told) == set(jobs)
    assert all(note.exception and note.traceback and note.reason == "failed once" for note in told.values())
    # A job is buried before its line is written.
    wait_until(lambda: supervised.log.count("task raise_hostile of") >= len(jobs), "all are logged")
    assert supervised.log.count("task raise_hostile of") == len(jobs)
    assert_unharmed(supervised, broker)


def test_no_depth_of_a_body_ends_a_worker(start, broker):
    supervised = start()
    depths = [MAX_DEPTH, MAX_DEPTH + 1, 500, *range(950, 1000, 5), 5_000, 30_000]
    jobs = {depth: broker.put(QUEUE, nested(depth)) for depth in depths}
    wait_until(lambda: broker.count(QUEUE, "buried") == len(jobs), f"all are buried; log:\n{supervised.log[-3000:]}")
    told = stories(broker)
    assert told[jobs.pop(MAX_DEPTH)].message == "no luck"
    reason = f"it can never run: the JSON is nested too deeply: more than {MAX_DEPTH} levels"
    assert {told[job_id].reason for job_id in jobs.values()} == {reason}
    assert_unharmed(supervised, broker)


def test_odd_policies_and_decisions_end_no_worker(start, broker):
    supervised = start()
    policies = [broker.put(QUEUE, call(name)) for name in ("has_hostile_policy", "hides_its_class")]
    decisions = [broker.put(QUEUE, call("decide_oddly", number)) for number in range(10)]
    changed = broker.put(QUEUE, call("change_arguments", [1]))
    wait_until(lambda: broker.count(QUEUE, "buried") == 10, f"they are buried; log:\n{supervised.log[-3000:]}")
    told = stories(broker)
    assert [told[job_id].reason for job_id in policies] == [
        "ValueError cannot be checked against its policy",
        "BadClass cannot be checked against its policy",
    ]
    reasons = [told[job_id].reason for job_id in decisions[:7]]
    assert reasons[:3] == ["", "b'bytes'", "(its str() fails)"]
    assert reasons[3] == "x" * 999 + "…"
    assert reasons[4:] == [r"\x1b[2J\n", "", "(its str() fails)"]
    wait_until(lambda: broker.job(decisions[7]) is None, "it is deleted")
    wait_until(lambda: broker.count(QUEUE, "delayed") == 2, "two are to be retried")
    assert [broker.job(job_id)["state"] for job_id in decisions[8:]] == ["delayed", "delayed"]
    assert told[changed].call == "change_arguments(…)"
    assert_unharmed(supervised, broker)


CRASHES = {
    "telling": "import flask_backend.worker.processing as p; p.settle_failure = fails",
    "decoding": "import flask_backend.worker.processing as p; p.read_call = fails",
    "burying": "import flask_backend.worker.processing as p; p.bury_undecodable = fails",
    "a command": "import flask_backend.broker.connection as b; b.Connection.counters = lambda c, _: c.guard(fails)",
    "letting go": "from flask_backend.worker.heartbeat import Heartbeat; Heartbeat.let_go = fails",
    "the end": "from flask_backend.broker.pipeline import Pipeline as P; P.delete_and_reserve = fails",
}


@pytest.mark.parametrize("crash", CRASHES)
def test_a_crash_of_our_own_code_is_settled_as_its_jobs(start, broker, crash):
    supervised = start(CRASHES[crash])
    body = {"burying": b"nonsense", "the end": call("succeed")}.get(crash, call("raise_plain"))
    job_id = broker.put(QUEUE, body)
    if crash == "burying":  # without a policy of its own: it is retried
        wait_until(lambda: broker.count(QUEUE, "delayed") == 1, f"it is released; log:\n{supervised.log[-3000:]}")
        supervised.wait_for_log(f"job {job_id} has crashed its worker")
        return
    wait_until(lambda: broker.count(QUEUE, "buried") == 1, f"it is buried; log:\n{supervised.log[-3000:]}")
    note = stories(broker)[job_id]
    assert note.reason == "failed once"
    assert note.death["job_id"] == job_id
    supervised.wait_for_log(f"exited with status 1 at job {job_id}")
    assert "while idle" not in supervised.log
