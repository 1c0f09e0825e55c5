"""Looking at queues again and again, through an outage of the broker."""

from __future__ import annotations

from queue import SimpleQueue

import pytest
from support.waiting import wait_until

from flask_backend.config import Settings, parse_broker
from flask_backend.errors import BrokerConnectionError, QueueNameError
from flask_backend.operations import live
from flask_backend.operations.live import QueueWatch


@pytest.fixture
def watch(broker, monkeypatch):
    monkeypatch.setattr(live, "EVERY_S", 0.05)
    watch = QueueWatch(Settings(parse_broker(broker.uri)), lambda: None)
    watch.names = ["q", "missing"]
    watch.start()
    yield watch
    watch.stop()


def test_the_chosen_queues_are_looked_at_with_rates_and_waits(watch, broker):
    broker.put("other", b"x")
    broker.put("q", b"x")
    wait_until(lambda: "q" in watch.latest.rates, "there are two looks")
    assert list(watch.latest.queues) == ["q"]
    assert (watch.latest.queues["q"].ready, watch.latest.next_waits["q"]) == (1, pytest.approx(0, abs=30))
    for _ in range(20):
        broker.put("q", b"x")
    wait_until(lambda: watch.latest.rates["q"].put > 0, "the rate is seen")
    watch.names = None
    wait_until(lambda: sorted(watch.latest.queues) == ["other", "q"], "all are shown")
    assert watch.latest.error is None


def test_an_outage_is_shown_requests_fail_at_once_and_then_all_goes_on(watch, broker):
    broker.put("q", b"x")
    wait_until(lambda: watch.latest.queues and watch.latest.queues["q"].ready == 1, "it is seen")
    results = SimpleQueue()
    watch.ask(lambda console: console.pause("q", 10), results.put)
    assert results.get(timeout=20) is True
    watch.ask(lambda console: console.queue("a b"), results.put)  # the connection stays usable
    assert isinstance(results.get(timeout=20), QueueNameError)
    broker.stop()
    wait_until(lambda: watch.latest.error, "the outage is noticed")
    assert watch.latest.away_since is not None
    assert watch.latest.queues["q"].ready == 1  # as last seen
    watch.ask(lambda console: console.pause("q", 10), results.put)
    assert isinstance(results.get(timeout=20), BrokerConnectionError)
    broker.start()
    broker.put("q", b"x")
    wait_until(lambda: watch.latest.error is None and watch.latest.queues, "it answers again")
    assert watch.latest.away_since is None
