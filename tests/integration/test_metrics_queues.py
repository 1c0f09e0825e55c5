"""What the metrics ask the broker, and how long they wait for it."""

from __future__ import annotations

import threading
from contextlib import closing

import pytest
from support.beanstalkd import free_port
from support.waiting import wait_until

from flask_backend.broker.connection import Connection
from flask_backend.config import Address, Settings
from flask_backend.metrics import queues
from flask_backend.metrics.queues import QueueReader, QueueState, read_queues
from flask_backend.names import schedule_tube
from flask_backend.periodic.definition import Definition
from flask_backend.periodic.token import Entry, Release, Token
from flask_backend.periodic.when import Every


@pytest.fixture
def settings(broker):
    return Settings(Address("127.0.0.1", broker.port))


def test_the_state_of_each_queue_is_read_also_of_one_that_does_not_exist(broker, settings):
    broker.put("q", b"x")
    broker.put("q", b"x", delay=100)
    with broker.client("q") as client:
        client.pause_tube("q", 100)
        with closing(Connection(settings.address, 5, watch="q")):  # a worker
            [empty, q] = read_queues(settings, ["unused", "q"])
    assert empty == QueueState("unused")
    assert (q.ready, q.delayed, q.reserved, q.buried, q.watchers) == (1, 1, 0, 0, 2)
    assert 90 < q.paused_s <= 100
    assert 0 <= q.next_wait_s < 60


def test_the_wait_of_a_job_that_came_back_is_unknown_and_its_body_does_not_matter(broker, settings):
    broker.put("q", b"x" * 60_000)
    with broker.client("q") as client:
        client.release(client.reserve())
        [state] = read_queues(settings, ["q"])
    assert (state.ready, state.next_wait_s) == (1, None)


def test_scrapes_that_follow_soon_get_the_same_answer(broker, settings, monkeypatch):
    reader = QueueReader(settings, ["q"])
    first = reader.ask()
    broker.put("q", b"x")
    assert reader.ask() is first
    monkeypatch.setattr(queues, "FRESH_S", 0)
    assert reader.ask().queues[0].ready == 1


def test_without_a_server_there_is_no_answer():
    reader = QueueReader(Settings(Address("127.0.0.1", port := free_port())), ["q"])
    assert reader.ask() == queues.Answer(f"127.0.0.1:{port}", None)


def test_a_question_that_hangs_is_asked_once_and_its_late_answer_is_not_used(settings, monkeypatch):
    """As the lookup of a name does without its server: no timeout of ours ends it."""
    monkeypatch.setattr(queues, "WITHIN_S", 0.05)
    monkeypatch.setattr(queues, "FRESH_S", 0)
    asked, gate = [], threading.Event()

    def hang(_settings, _names):
        asked.append(1)
        gate.wait(20)
        return [QueueState("q", ready=len(asked))]

    monkeypatch.setattr(queues, "read_queues", hang)
    reader = QueueReader(settings, ["q"])
    assert [reader.ask().queues for _ in range(3)] == [None] * 3
    assert len(asked) == 1
    gate.set()
    wait_until(lambda: not reader._thread.is_alive(), "the answer is there, late")
    assert reader.ask().queues == [QueueState("q", ready=2)]


def test_periodic_tasks_of_the_app_are_read_and_removed_ones_left_out(broker, settings):
    entries = {name: Entry(Definition(name, "q", "hello", Every(60)), 60) for name in ("a", "removed")}
    broker.put(schedule_tube("q"), Token("q", 1, Release(), entries).encode())
    answer = QueueReader(settings, ["q"], {"q": {"a"}, "none": {"b"}}).ask()
    [queue] = answer.scheduled
    assert [(each.name, each.next) for each in queue.schedules] == [("a", 120)]
