"""A worker whose broker is unreachable, with a clock that the test moves: no socket, no wait."""

from __future__ import annotations

import random

import pytest
from flask import Flask

from flask_backend import Backend
from flask_backend.errors import BrokerConnectionError
from flask_backend.supervisor.children import Child
from flask_backend.supervisor.deadlines import SILENT_S, Deadlines
from flask_backend.supervisor.plan import Slot
from flask_backend.supervisor.states import ChildEvent
from flask_backend.worker import link, worker
from flask_backend.worker.host import Foreground
from flask_backend.worker.link import RECONNECT_MAX_S, RESERVE_S
from flask_backend.worker.options import WorkerOptions
from flask_backend.worker.worker import Worker

QUEUE = "q"
HOUR_S = 3600.0


class Clock:
    """Advance when something waits; ``on_move`` looks at each moment before that."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.on_move = lambda: None

    def move(self, seconds: float) -> None:
        self.now += seconds
        self.on_move()


class Row(Foreground):
    """The supervisor's view of a worker that has no job."""

    activity = kill_at = left_at = None

    def __init__(self, clock: Clock) -> None:
        super().__init__(QUEUE)
        self._clock = clock
        self.live()

    def show_state(self, _state) -> None:
        pass

    def live(self, silent_ns: int = 0) -> None:
        self.alive_at = self._clock.now + silent_ns / 1e9


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def reasons(clock, monkeypatch):
    """Have a worker wait for a broker; return why its supervisor would have killed it, as the clock moved."""

    def wait(attempt, hours: float, timeout_s: float = 5.0) -> list[str]:
        app = Flask(__name__)
        app.config["BACKEND_TIMEOUT"] = timeout_s
        backend = Backend(app)
        backend.task(QUEUE)(print)
        row = Row(clock)
        child = Child(Slot(QUEUE, 0), pid=1, row=row, started=clock.now)
        child.apply(ChildEvent.REPORTED_READY)
        waiting = Worker(app, backend.settings_of(app), backend.queues[QUEUE], row, WorkerOptions(drain_timeout_s=25.0))
        reasons, until = [], clock.now + hours * HOUR_S

        def look():
            if reason := Deadlines(60.0, 25.0).reason_to_kill(child, clock.now):
                reasons.append(reason)
            if clock.now >= until:
                waiting._stop.requested = True

        def stop_wait(timeout_s, *_args, **_options):
            clock.move(timeout_s)
            return False

        clock.on_move = look
        monkeypatch.setattr(waiting._stop, "wait", stop_wait)
        monkeypatch.setattr(link, "Connection", attempt)
        monkeypatch.setattr(link, "Pipeline", lambda connection: connection)
        waiting._serve()
        assert clock.now >= until
        return reasons

    return wait


def refused(*_args, **_options):
    raise BrokerConnectionError("cannot connect to Beanstalkd: Connection refused")


def test_a_worker_that_waits_for_its_broker_for_a_day_does_not_count_as_stuck(reasons):
    assert reasons(refused, hours=24) == []


@pytest.mark.parametrize("longest_s", [SILENT_S + 1, HOUR_S])
def test_a_connection_attempt_may_take_as_long_as_the_resolver_and_the_network_take(reasons, clock, longest_s):
    rng = random.Random(1)

    def hang(*_args, **_options):
        clock.move(rng.choice([0.0, 5.0, longest_s]))
        raise BrokerConnectionError("cannot connect to Beanstalkd: Temporary failure in name resolution")

    assert reasons(hang, hours=24) == []


class Frozen:
    """A connection and its pipeline; the server never answers, so the worker waits in full for each reply."""

    is_reserving = is_awaiting = False
    pending_deletes = ()

    def __init__(self, *_args, **_options) -> None:
        self._fd = 0
        self.connection = self

    def fileno(self) -> int:
        return self._fd

    def reserve(self, wait_s: int, _count: int) -> None:
        assert wait_s == RESERVE_S
        self.is_reserving = self.is_awaiting = True

    def take_jobs(self) -> list:
        return []

    pop_pending_deletes = pop_expired = take_jobs

    def has_old_jobs(self, _queue: str, _within_s: float) -> bool:
        return False

    def close(self) -> None:
        self._fd = -1

    give_back = close


@pytest.mark.parametrize("timeout_s", [5.0, SILENT_S, HOUR_S])
def test_a_frozen_broker_costs_no_worker_however_long_the_app_lets_it_wait_for_an_answer(
    reasons, monkeypatch, timeout_s
):
    monkeypatch.setattr(worker.StopSignals, "poll_with", lambda *_args: None)
    assert reasons(Frozen, hours=24, timeout_s=timeout_s) == []


def test_a_worker_that_hangs_between_two_attempts_is_still_detected(reasons, clock, monkeypatch):
    def hang(*_args):
        clock.move(SILENT_S + 1)
        return RECONNECT_MAX_S

    monkeypatch.setattr(link.Backoff, "next", hang)
    assert "has sent no heartbeat for 121 s" in reasons(refused, hours=0.01)[0]
