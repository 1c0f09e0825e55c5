"""Job.wait: until a job is over, or no longer than asked for."""

from __future__ import annotations

import pickle
import threading
import time
from datetime import UTC, datetime, timedelta

import pytest
from flask import Flask

from flask_backend import (
    Backend,
    BrokerConnectionError,
    Bury,
    JobState,
    OptionError,
    RetryLater,
    testing,
)
from flask_backend.job import Job

QUEUE = "com.example/default"


class Control:
    """A server whose answers are known before."""

    uri = "btq://example"

    def __init__(self, *states) -> None:
        self.states = list(states)
        self.asked_at: list[float] = []

    def state(self, queue, job_id, uid):
        self.asked_at.append(time.monotonic())
        state = self.states.pop(0) if len(self.states) > 1 else self.states[0]
        if isinstance(state, Exception):
            raise state
        return state

    def cancel(self, queue, job_id, uid):
        raise NotImplementedError

    def runs_elsewhere(self):
        return True


def job_with(*states) -> tuple[Job, Control]:
    control = Control(*states)
    return Job(QUEUE, 7, "uid", control.uri, control), control


@pytest.fixture
def no_sleep(monkeypatch):
    """Let time pass without waiting; return the pauses."""
    pauses: list[float] = []
    clock = [0.0]

    def sleep(seconds):
        pauses.append(seconds)
        clock[0] += seconds

    monkeypatch.setattr("flask_backend.job.time.sleep", sleep)
    monkeypatch.setattr("flask_backend.job.time.monotonic", lambda: clock[0])
    return pauses


def test_it_returns_the_last_state(no_sleep):
    assert job_with("ready", "reserved", None)[0].wait(10) is JobState.DONE
    assert (
        job_with("reserved", "delayed", "reserved", "buried")[0].wait(timeout=timedelta(seconds=10)) is JobState.BURIED
    )


def test_a_job_that_is_over_is_not_waited_for(no_sleep):
    job, control = job_with(None)
    assert job.wait(0) is JobState.DONE
    assert len(control.asked_at) == 1
    assert no_sleep == []


def test_the_pauses_grow_to_a_second_and_the_last_look_is_at_the_end(no_sleep):
    job, control = job_with("ready")
    with pytest.raises(TimeoutError, match=rf"job 7 of {QUEUE} is ready after 5.25 s"):
        job.wait(5.25)
    assert no_sleep == [0.05, 0.1, 0.2, 0.4, 0.8, 1.0, 1.0, 1.0, pytest.approx(0.7)]
    assert control.asked_at[-1] == 5.25


def test_the_timeout_names_the_state(no_sleep):
    with pytest.raises(TimeoutError, match="is delayed after 0 s"):
        job_with("delayed")[0].wait(0)


@pytest.mark.parametrize(
    "timeout", [-1, None, "10", True, float("nan"), float("inf"), timedelta(-1), datetime.now(UTC)]
)
def test_an_invalid_timeout_is_an_error(timeout):
    with pytest.raises(OptionError, match="timeout is"):
        job_with(None)[0].wait(timeout)


def test_an_error_of_the_broker_is_raised(no_sleep):
    with pytest.raises(BrokerConnectionError):
        job_with("ready", BrokerConnectionError("away"))[0].wait(10)


def test_an_unpickled_job_cannot_be_waited_for():
    with pytest.raises(TypeError, match="no connection to query"):
        pickle.loads(pickle.dumps(job_with(None)[0])).wait(1)  # noqa: S301  # our own


def app_with(uri):
    app = Flask("example")
    app.config["BACKEND_CONNECTION_URI"] = uri
    backend = Backend(app)

    @backend.task(QUEUE)
    def hello(how="end"):
        if how != "end":
            raise {"bury": Bury("odd"), "later": RetryLater(10)}[how]

    return app, backend, hello


def test_in_memory_a_job_that_nobody_drains_raises_at_once():
    app, _, hello = app_with("memory://")
    job, later, bad = hello(), hello("later"), hello("bury")
    before = time.monotonic()
    with pytest.raises(TimeoutError, match=r"is ready, and in memory:// it runs only in drain\(\)"):
        job.wait(3600)
    testing.drain(app)
    assert job.wait(3600) is JobState.DONE
    assert bad.wait(3600) is JobState.BURIED
    with pytest.raises(TimeoutError, match="is delayed, and in memory"):
        later.wait(3600)
    assert time.monotonic() - before < 60


def test_in_memory_a_job_that_another_thread_drains_is_waited_for():
    app, backend, hello = app_with("memory://")
    begun, go = threading.Event(), threading.Event()

    @backend.task(QUEUE)
    def slow():
        begun.set()
        go.wait(60)

    job, behind = slow(), hello()
    drainer = threading.Thread(target=testing.drain, args=[app])
    drainer.start()
    begun.wait(60)
    with pytest.raises(TimeoutError, match=r"is ready after 0\.01 s"):
        behind.wait(0.01)
    go.set()
    assert job.wait(60) is behind.wait(60) is JobState.DONE
    drainer.join()


def test_in_memory_a_task_that_waits_for_a_job_behind_it_raises_at_once():
    app, backend, hello = app_with("memory://")

    @backend.task(QUEUE)
    def outer():
        inner = hello()
        with pytest.raises(TimeoutError, match="in memory://"):
            inner.wait(3600)
        testing.drain()
        with pytest.raises(TimeoutError, match="in memory://"):
            hello().wait(3600)

    outer()
    testing.drain(app)


def test_a_call_that_runs_at_once_is_done():
    _app, _, hello = app_with("sync://")
    assert hello().wait(0) is JobState.DONE
