from __future__ import annotations

import math

import pytest

from flask_backend.deaths import Exit
from flask_backend.supervisor.helpers import Helpers
from flask_backend.supervisor.links import Links
from flask_backend.supervisor.service import MOST_EVERY_S, START_EVERY_S, STOP_S, OldService, Service, ServiceHelper


@pytest.fixture
def closed():
    return []


@pytest.fixture
def links():
    return Links(None, None, None, None, None, service=7)


@pytest.fixture
def helpers(links, processes, clock):
    return Helpers(links, processes, clock)


@pytest.fixture
def keeper(helpers, links, processes, clock, closed):
    service = Service("serves tea", lambda _accept, _lifeline: 0, "127.0.0.1:80", 7, lambda: closed.append(1))
    return ServiceHelper(service, helpers, links, processes, clock)


def test_one_helper_is_kept_running(keeper, processes, helpers):
    for _ in range(3):
        keeper.keep()
    assert processes.spawned == ["the process that serves tea"]
    assert (len(helpers), keeper.next_at()) == (1, math.inf)


def test_a_dead_helper_is_replaced_at_once_unless_it_has_just_begun(keeper, processes, helpers, clock, caplog):
    keeper.keep()
    clock.now += START_EVERY_S
    helpers.end(Exit(1, None, 9))
    keeper.keep()
    helpers.end(Exit(2, 1, None))
    assert keeper.next_at() == clock.now + 2 * START_EVERY_S
    keeper.keep()
    assert len(processes.spawned) == 2
    clock.now = keeper.next_at()
    keeper.keep()
    assert len(processes.spawned) == 3
    first, second = (record.message for record in caplog.records)
    assert first.startswith("the process that serves tea was killed by signal 9")
    assert first.endswith("replaced at once")
    assert second == "the process that serves tea exited with status 1; replaced in 2.0 s"


def test_helpers_that_keep_dying_are_started_less_and_less_often_until_one_lives_long(keeper, helpers, clock):
    def delay_s(pid, lived_s=0.0):
        keeper.keep()
        clock.now += lived_s
        helpers.end(Exit(pid, 1, None))
        after_s = keeper.next_at() - clock.now
        clock.now = max(clock.now, keeper.next_at())
        return after_s

    assert [delay_s(pid) for pid in range(1, 8)] == [1, 2, 4, 8, 16, 30, 30]
    assert delay_s(8, lived_s=MOST_EVERY_S) == 0
    assert delay_s(9) == START_EVERY_S


def test_a_fork_that_the_system_refuses_is_tried_again_later(keeper, processes, clock, caplog):
    processes.refuses = True
    keeper.keep()
    keeper.keep()
    assert [record.message for record in caplog.records] == [
        "cannot fork the process that serves tea: no more processes"
    ]
    processes.refuses = False
    clock.now = keeper.next_at()
    keeper.keep()
    assert len(processes.spawned) == 1


def test_a_stop_asks_the_helper_to_end_once_and_it_is_not_replaced(keeper, processes, helpers, clock, closed, caplog):
    keeper.keep()
    keeper.stop()
    keeper.stop()
    assert processes.drained == [1]
    helpers.end(Exit(1, 0, None))
    clock.now += START_EVERY_S
    keeper.keep()
    assert (len(processes.spawned), keeper.next_at(), caplog.records) == (1, math.inf, [])
    keeper.close()
    assert closed == [1]


def test_the_helper_of_an_earlier_image_is_asked_to_end_and_gets_some_time(keeper, processes, helpers, clock):
    keeper.keep()
    assert keeper.hand_over() == OldService("127.0.0.1:80", 7, 1)
    keeper.adopt(OldService("127.0.0.1:80", 7, 42))
    assert processes.drained == [42]
    assert helpers.next_at() == clock.now + STOP_S
    keeper.adopt(OldService("127.0.0.1:80", 7, None))  # it had just died
    assert processes.drained == [42]


def test_without_a_service_nothing_is_started(helpers, links, processes, clock):
    keeper = ServiceHelper(None, helpers, links, processes, clock)
    keeper.keep()
    keeper.stop()
    keeper.close()
    assert (processes.spawned, keeper.hand_over(), keeper.next_at()) == ([], None, math.inf)
