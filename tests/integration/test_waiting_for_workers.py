"""Waiting for jobs that real workers run."""

from __future__ import annotations

import pytest
from support.waiting import wait_until
from support.workload import QUEUE

from flask_backend import BrokerConnectionError, JobState


def test_it_ends_with_the_job(command, tasks, broker):
    job = tasks.note("a")
    with pytest.raises(TimeoutError, match=r"is ready after 0\.1 s"):
        job.wait(0.1)
    command("worker", QUEUE)
    wait_until(lambda: broker.waiting(QUEUE) == 1, "the worker reserves")
    assert job.wait(60) is JobState.DONE


def test_a_broker_that_goes_away_ends_it_with_an_error(tasks, broker):
    job = tasks.note("a")
    broker.stop()
    with pytest.raises(BrokerConnectionError):
        job.wait(60)
