"""Workers that get a stop signal at random instants, under load: no job is lost, no job runs twice."""

from __future__ import annotations

import os
import random
import signal
from collections import Counter
from contextlib import suppress

import pytest
from support.waiting import wait_until
from support.workload import QUEUE

pytestmark = pytest.mark.any_broker


def drive(supervised, tasks, broker, *, jobs: int, terms: int, seed: int) -> Counter[str]:
    """Spread ``terms`` TERMs over ``jobs`` jobs; return how often each job ran."""
    rng = random.Random(seed)
    supervised.wait_ready()
    per_term = jobs // terms
    for turn in range(terms):
        tasks.note.map(range(turn * per_term, (turn + 1) * per_term))
        # Never far ahead of the workers, so that they are busy when the signals arrive.
        wait_until(lambda: broker.count(QUEUE, "ready") < 2 * per_term, "the workers keep up")
        workers = wait_until(supervised.workers, "there is a worker")  # on a busy machine all may be ending
        with suppress(ProcessLookupError):
            os.kill(rng.choice(workers), signal.SIGTERM)
    wait_until(lambda: broker.is_empty(QUEUE), "the queue is empty", 60)
    return Counter(line for line in supervised.ledger if line.startswith("note"))


@pytest.mark.parametrize(
    ("jobs", "terms"),
    [
        (3_000, 150),
        pytest.param(20_000, 1_000, marks=[pytest.mark.soak, pytest.mark.timeout(600)]),
    ],
)
def test_terms_at_random_instants_lose_no_job_and_double_none(supervise, tasks, broker, jobs, terms):
    supervised = supervise(workers=4)
    ran = drive(supervised, tasks, broker, jobs=jobs, terms=terms, seed=terms)
    assert len(ran) == jobs, f"{jobs - len(ran)} of {jobs} jobs lost"
    assert max(ran.values()) == 1, f"{sum(count > 1 for count in ran.values())} jobs ran twice"
    assert "Traceback" not in supervised.log
    supervised.send(signal.SIGTERM)
    supervised.assert_clean_exit(0)


def test_a_drain_of_all_under_load_loses_no_job_and_doubles_none(supervise, tasks, broker):
    ran: Counter[str] = Counter()
    tasks.note.map(range(4_000))
    rng = random.Random(7)
    for _ in range(5):
        supervised = supervise(workers=4)
        supervised.wait_for_log("ready: ")
        goal = len(supervised.ledger) + rng.randrange(100, 500)
        wait_until(lambda goal=goal, supervised=supervised: len(supervised.ledger) > goal, "some jobs are done")
        supervised.send(signal.SIGTERM)
        supervised.assert_clean_exit(0)
        ran = Counter(line for line in supervised.ledger if line.startswith("note"))
        with broker.client(QUEUE) as client:
            assert client.stats_tube(QUEUE)["current-jobs-ready"] == 4_000 - len(ran)
        assert max(ran.values()) == 1
