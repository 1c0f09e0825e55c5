"""Workers that reserve several jobs at a time: each held job is kept, given back or settled on its own."""

from __future__ import annotations

import json
import os
import signal
from collections import Counter

import pytest
from support.waiting import wait_until
from support.workload import QUEUE


def put(broker, endpoint: str, *args, **options) -> int:
    return broker.put(QUEUE, json.dumps({"endpoint": endpoint, "args": args}).encode(), **options)


@pytest.fixture
def start(supervise):
    """Start a worker whose first reserve gets up to eight of the ready jobs."""

    def start(*args: str):
        supervised = supervise("--prefetch", "8", *args, workers=1)
        supervised.wait_for_log("ready: ")
        return supervised

    return start


def test_jobs_that_wait_behind_a_long_one_are_kept(start, broker, tmp_path):
    gate = tmp_path / "gate"
    jobs = [put(broker, "wait_for", str(gate), ttr=1), *(put(broker, "note", n, ttr=1) for n in range(7))]
    supervised = start()
    supervised.wait_for_line("begin waited")
    wait_until(lambda: broker.job(jobs[0])["age"] >= 4, "several times to run are over")
    for job_id in jobs:
        stats = broker.job(job_id)
        assert (stats["state"], stats["reserves"], stats["timeouts"]) == ("reserved", 1, 0)
    gate.touch()
    wait_until(lambda: broker.is_empty(QUEUE), "all are done")
    assert [line for line in supervised.ledger if line.startswith("note")] == [f"note {n}" for n in range(7)]
    supervised.send(signal.SIGTERM)
    supervised.assert_clean_exit(0)


def test_a_drain_gives_back_jobs_that_have_not_begun_and_it_counts_as_no_attempt(start, broker, tmp_path):
    gate = tmp_path / "gate"
    put(broker, "note", "first", priority=1)
    put(broker, "wait_for", str(gate), priority=2)
    waiting = [put(broker, "note", n, priority=3) for n in range(5)]
    supervised = start()
    supervised.wait_for_line("begin waited")
    wait_until(lambda: broker.count(QUEUE, "reserved") == 6, "the finished one is deleted")
    supervised.send(signal.SIGTERM)
    supervised.wait_for_log("SIGTERM: stopping")
    gate.touch()
    supervised.assert_clean_exit(0)
    for job_id in waiting:
        stats = broker.job(job_id)
        assert (stats["state"], stats["pri"], stats["releases"], stats["reserves"]) == ("ready", 3, 0, 1)
    assert supervised.ledger[1:] == ["note first", "begin waited", "waited"]
    assert broker.count(QUEUE, "ready") == 5


def test_a_failure_among_them_is_settled_alone(start, broker):
    jobs = [put(broker, "note", "before"), put(broker, "fail"), put(broker, "note", "after"), put(broker, "nonsense")]
    bad = broker.put(QUEUE, b"no json")
    put(broker, "note", "last")
    supervised = start()
    supervised.wait_for_line("note last")
    wait_until(lambda: broker.count(QUEUE, "ready") + broker.count(QUEUE, "reserved") == 0, "all are settled")
    assert (broker.job(jobs[1])["state"], broker.job(jobs[3])["state"]) == ("delayed", "delayed")
    assert broker.job(bad)["state"] == "buried"
    assert supervised.ledger[1:] == ["note before", "fail", "note after", "note last"]
    supervised.send(signal.SIGTERM)
    supervised.assert_clean_exit(0)


@pytest.mark.parametrize("how", ["kill", "0"])
def test_a_worker_that_dies_at_one_of_them_gives_only_the_others_back_at_once(start, broker, tmp_path, how):
    """Those that it has finished are deleted, although their deletions wait for the next one."""
    put(broker, "note", "before")
    put(broker, "note", "just before")
    deadly = put(broker, "die_once", how, str(tmp_path / "marker"))
    for n in range(5):
        put(broker, "note", n)
    supervised = start()
    supervised.wait_for_line("note 4")
    assert broker.job(deadly)["state"] == "delayed"
    supervised.wait_for_line("survived")
    counts = Counter(line for line in supervised.ledger if line.startswith("note"))
    assert counts == {"note before": 1, "note just before": 1, **{f"note {n}": 1 for n in range(5)}}
    supervised.send(signal.SIGTERM)
    supervised.assert_clean_exit(0)


def test_a_worker_reserves_only_as_many_jobs_as_it_may_still_run(start, broker):
    for _ in range(11):
        put(broker, "pid")
    supervised = start("--max-tasks", "3")
    wait_until(lambda: broker.is_empty(QUEUE), "all are done")
    counts = Counter(line for line in supervised.ledger if line.startswith("pid"))
    assert list(counts.values()) == [3, 3, 3, 2]
    supervised.send(signal.SIGTERM)
    supervised.assert_clean_exit(0)


def test_a_job_lost_while_it_waited_is_left_to_its_new_holder(start, broker, tmp_path):
    """The worker is stopped for longer than its jobs may be silent, and another one takes the jobs it can get."""
    if not broker.is_embedded:
        pytest.skip("Beanstalkd 1.12 misses the end of a time to run now and then")
    gate = tmp_path / "gate"
    put(broker, "wait_for", str(gate), ttr=60)
    for n in range(7):
        put(broker, "note", n, ttr=1)
    supervised = start()
    supervised.wait_for_line("begin waited")
    (worker,) = supervised.workers()
    with broker.client(QUEUE) as client:
        os.kill(worker, signal.SIGSTOP)
        taken = client.reserve(timeout=20)
        os.kill(worker, signal.SIGCONT)
        supervised.wait_for_log("lost the reservation of job")
        gate.touch()
        wait_until(lambda: broker.count(QUEUE, "ready") + broker.count(QUEUE, "reserved") == 1, "ours is left")
        name = f"note {json.loads(taken.body)['args'][0]}"
        assert name not in supervised.ledger
        client.delete(taken)
    supervised.send(signal.SIGTERM)
    supervised.assert_clean_exit(0)


@pytest.mark.parametrize("value", ["0", "101", "many"])
def test_an_invalid_number_is_reported(supervise, value):
    supervised = supervise("--prefetch", value)
    assert supervised.wait() == 2
    assert "Invalid value for '--prefetch'" in supervised.log
