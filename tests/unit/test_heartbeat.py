"""The heartbeat of a worker, without its thread."""

from __future__ import annotations

import logging
import time
from types import SimpleNamespace

import pytest

from flask_backend.broker.wire import ReservedJob
from flask_backend.errors import BrokerConnectionError
from flask_backend.worker.heartbeat import Heartbeat, WorkerLease


def refuse():
    raise BrokerConnectionError("it is away")


@pytest.mark.parametrize("lets_go", [True, False])
def test_a_connection_that_the_worker_closes_after_its_task_is_not_lost(caplog, lets_go):
    connection = SimpleNamespace(is_cut=False)

    def show(_text):
        """End the task while the heartbeat is busy with the title."""
        connection.is_cut = True
        if lets_go:
            heartbeat.let_go()

    heartbeat = Heartbeat(
        SimpleNamespace(show=show, progress=None),
        interrupt=pytest.fail,
        leave=pytest.fail,
        connect=refuse,
        take_over=pytest.fail,
        is_stopping=lambda: False,
        leaves_when_stuck=False,
    )
    began = time.monotonic() - 1
    lease = WorkerLease(heartbeat, SimpleNamespace(connection=connection), ReservedJob(7, b""), began, ())
    lease.label, lease.started, lease.touch_at = "long", began, float("inf")
    heartbeat.hold(lease)
    with caplog.at_level(logging.WARNING):
        heartbeat._tick(shown=False)
    assert bool(caplog.records) is not lets_go
    heartbeat.let_go()
