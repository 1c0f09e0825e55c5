"""Jobs that crash their worker: settled on the dead worker's connection, before another worker can get them."""

from __future__ import annotations

import re
import signal

import pytest
from support.waiting import wait_until
from support.workload import QUEUE

DEATH = r"worker \d+ of \S+ (?:was killed|exited) .* at job (\d+) .*; replaced"


def test_the_job_of_a_dead_worker_is_released_with_a_delay_and_runs_again(supervise, tasks, broker, tmp_path):
    supervised = supervise(workers=2)
    supervised.wait_ready()
    job = tasks.die_once("kill", str(tmp_path / "marker"))
    wait_until(lambda: (broker.job(job.id) or {}).get("state") == "delayed", "the job is delayed")
    stats = broker.job(job.id)
    assert (stats["releases"], stats["reserves"], 1 <= stats["delay"] <= 2) == (1, 1, True)
    supervised.wait_for_log(f"job {job.id} has crashed its worker (worker")
    supervised.wait_for_line("survived")
    wait_until(lambda: broker.is_empty(QUEUE), "the queue is empty")
    supervised.send(signal.SIGTERM)
    supervised.assert_clean_exit(0)


def test_no_other_worker_gets_the_job_before_it_is_settled(supervise, tasks, broker, tmp_path):
    """Seven idle workers wait for the job and do not get it."""
    supervised = supervise(workers=8)
    supervised.wait_ready()
    job_id = broker.put(QUEUE, b'{"endpoint": "leave", "args": ["kill"]}')
    wait_until(lambda: broker.job(job_id)["state"] == "delayed", "the job is delayed")
    assert broker.job(job_id)["reserves"] == 1
    assert supervised.ledger.count("leave kill") == 1
    supervised.send(signal.SIGTERM)
    supervised.assert_clean_exit(0)


def test_the_third_crash_buries_the_job_whole_with_its_story_and_a_kick_allows_three_more(supervise, broker):
    supervised = supervise(workers=2)
    supervised.wait_ready()
    body = b'{"endpoint": "leave", "args": ["kill"]}'
    job_id = broker.put(QUEUE, body, priority=5)
    wait_until(lambda: broker.count(QUEUE, "buried") == 1, "the job is buried")
    assert broker.peek(job_id) == body
    assert broker.job(job_id)["pri"] == 5
    assert len(re.findall(DEATH, supervised.log)) == 3
    supervised.wait_for_log(f"job {job_id} is buried: it has crashed its worker 3 times (worker")
    assert "was killed by signal 9 (Killed, perhaps out of memory)" in supervised.log.partition("is buried")[2]
    supervised.wait_reserving(2)
    # The count of crashes begins again when the process that has buried the job has ended.
    wait_until(lambda: len(supervised.children()) == 2, "only the workers are left")
    with broker.client(QUEUE) as client:
        client.kick_job(job_id)
    wait_until(lambda: broker.job(job_id)["state"] == "delayed", "the job has another three")
    supervised.send(signal.SIGTERM)
    supervised.assert_clean_exit(0)


@pytest.mark.timeout(120)
def test_poison_of_all_kinds_does_not_keep_good_jobs_from_being_done(supervise, tasks, broker):
    supervised = supervise("--max-memory-hard", "200M", "--kill-grace", "0.5", workers=4)
    supervised.wait_ready()
    poison = [("leave", ["kill"]), ("leave", ["segv"]), ("leave", ["exit 0"]), ("leave", ["exit 7"]), ("devour", [])]
    poison += [("limited", ["stubborn"]), *poison[:4]]
    messages = [{"endpoint": "note", "args": [n]} for n in range(2_000)]
    for index, (endpoint, args) in enumerate(poison):
        messages.insert(index * 150, {"endpoint": endpoint, "args": args})
    tasks.backend.send_many(QUEUE, messages)
    wait_until(lambda: broker.count(QUEUE, "buried") == 10, "all poison is buried", 90)
    wait_until(lambda: broker.jobs() == 20, "only their stories are left")
    notes = [line for line in supervised.ledger if line.startswith("note")]
    assert sorted(notes) == sorted(f"note {n}" for n in range(2_000))
    assert len(re.findall(DEATH, supervised.log)) == 30
    supervised.wait_reserving(4)
    supervised.send(signal.SIGTERM)
    supervised.assert_clean_exit(0)


def test_a_drain_waits_until_the_job_of_a_worker_that_just_died_is_settled(supervise, tasks, broker, tmp_path):
    supervised = supervise(workers=2)
    supervised.wait_ready()
    job_id = broker.put(QUEUE, b'{"endpoint": "leave", "args": ["kill"]}')
    supervised.wait_for_line("leave kill")
    supervised.send(signal.SIGTERM)
    supervised.assert_clean_exit(0)
    assert broker.job(job_id)["state"] == "delayed"
