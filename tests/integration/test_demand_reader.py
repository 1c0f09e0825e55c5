"""What a supervisor learns about its queues from a broker, also from one that is away, slow or lies."""

from __future__ import annotations

import time

import pytest
from hypothesis import HealthCheck, given, settings
from support.beanstalkd import free_port
from support.lying import Liar, greetings, scripts

from flask_backend.cli import demand
from flask_backend.cli.demand import QueueReader
from flask_backend.config import Address, Settings
from flask_backend.limit import Limit
from flask_backend.supervisor import Demand


@pytest.fixture
def reader(broker):
    return QueueReader(Settings(Address("127.0.0.1", broker.port)), {"q": None, "other": Limit("gpu", 1)})


def test_a_queue_that_does_not_exist_has_no_jobs(reader):
    assert reader() == {"q": Demand(0, 0), "other": Demand(0, 0)}


def test_ready_jobs_waiting_workers_and_pauses_are_seen(reader, broker):
    broker.put("q", b"1")
    broker.put("q", b"2")
    broker.put("q", b"3", delay=60)
    assert reader()["q"] == Demand(ready=2, waiting=0)
    with broker.client("q") as worker:
        worker.reserve()
        assert reader()["q"] == Demand(ready=1, waiting=0)
        worker.pause_tube("q", 60)
        assert reader()["q"] == Demand(ready=1, waiting=0, is_held_up=True)
    with broker.client("other") as worker:
        worker._sock.sendall(b"reserve\r\n")
        until = time.monotonic() + 20
        while reader()["other"].waiting == 0:
            assert time.monotonic() < until


def test_a_queue_whose_workers_wait_for_its_limit_needs_no_further_ones(reader, broker):
    for queue in ("q", "other"):
        broker.put(queue, b"1")
    with broker.client("flask-backend.limit/gpu") as worker:
        assert reader() == {"q": Demand(1, 0), "other": Demand(1, 0)}
        worker._sock.sendall(b"reserve\r\n")
        until = time.monotonic() + 20
        while not reader()["other"].is_held_up:
            assert time.monotonic() < until
    assert reader()["q"] == Demand(1, 0)


def test_it_keeps_its_connection_and_is_no_worker(reader, broker):
    for _ in range(5):
        assert reader() is not None
    with broker.client("q") as client:
        assert client.stats()["total-connections"] <= 3  # with that of the fixture, and this one
        assert client.stats_tube("q")["current-watching"] == 1


def test_while_the_broker_is_away_there_is_no_answer_and_then_there_is(reader, broker):
    assert reader() is not None
    broker.kill()
    assert reader() is None
    assert reader() is None
    broker.start()
    assert reader() is not None


def test_a_frozen_broker_gives_no_answer_in_time(reader, broker, monkeypatch):
    monkeypatch.setattr(demand, "MAX_TIMEOUT_S", 0.2)
    reader = QueueReader(Settings(Address("127.0.0.1", broker.port)), {"q": None})
    assert reader() is not None
    broker.freeze()
    assert reader() is None
    assert reader() is None
    broker.thaw()
    assert reader() is not None


def test_an_address_where_no_broker_is_gives_no_answer():
    assert QueueReader(Settings(Address("127.0.0.1", free_port())), {"q": None})() is None
    assert QueueReader(Settings(Address("no-such-host.invalid", 11300)), {"q": None})() is None


@pytest.fixture(scope="module")
def liar():
    server = Liar(drip_s=0.01)
    yield server
    server.stop()


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lies=scripts, greeting=greetings)
def test_a_broker_that_lies_gives_no_answer_or_a_possible_one(liar, monkeypatch, lies, greeting):
    monkeypatch.setattr(demand, "MAX_TIMEOUT_S", 0.05)
    liar.tell(lies, greeting)
    reader = QueueReader(Settings(liar.address), {"q": None, "other": Limit("gpu", 1)})
    for _ in range(3):
        answer = reader()
        if answer is not None:
            assert all(0 <= each.ready < 1 << 64 and 0 <= each.waiting < 1 << 64 for each in answer.values())
