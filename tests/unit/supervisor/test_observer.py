from __future__ import annotations

import os
from types import SimpleNamespace

import pytest

from flask_backend.deaths import Exit
from flask_backend.supervisor import observer as module
from flask_backend.supervisor.demand import Demand
from flask_backend.supervisor.observer import HUNG_S, RESTART_MAX_S, SILENT_S, STABLE_S, Observer

LOOKS = {"q": Demand(3, 0), "other": Demand(0, 7, is_held_up=True)}


@pytest.fixture
def lifeline():
    read_end, write_end = os.pipe()
    yield SimpleNamespace(read_end=read_end, write_end=write_end)
    os.close(read_end)


@pytest.fixture
def observer(helpers, clock, lifeline):
    return Observer(lambda: LOOKS, ["q", "other"], SimpleNamespace(lifeline=lifeline), helpers, clock)


def die(observer, helpers, pid, number=9):
    helpers.end(Exit(pid, None, number))


def the_only(helpers):
    [helper] = helpers
    return helper


def test_without_pools_that_scale_there_is_no_helper(helpers, clock):
    for observer in (Observer(dict, [], None, helpers, clock), Observer(None, ["q"], None, helpers, clock)):
        observer.keep(clock.now)
        assert list(observer.answers()) == []
        observer.note_silence(clock.now + 100)
        observer.stop()
    assert len(helpers) == 0


def test_the_helper_looks_until_the_supervisor_is_gone(observer, lifeline, monkeypatch):
    looks = []
    monkeypatch.setattr(module, "SAMPLE_S", 0.0)

    def look():
        looks.append(None)
        if len(looks) == 3:
            os.close(lifeline.write_end)
        return LOOKS

    observer._look = look
    assert observer._observe(lambda: None) == 0
    assert len(looks) == 3
    assert {pool: demand for pool, _, demand in observer.answers()} == LOOKS
    assert list(observer.answers()) == []  # each sample is seen once


def test_a_sample_that_is_being_written_is_not_seen(observer):
    observer._write(LOOKS)
    observer._words[1] = 0  # the time of the first pool
    assert [pool for pool, _, _ in observer.answers()] == ["other"]


def test_a_pool_without_an_answer_has_no_sample_and_numbers_of_any_size_are_kept(observer):
    observer._write({"q": Demand(1 << 70, 0)})
    [(pool, _, demand)] = observer.answers()
    assert (pool, demand.ready) == ("q", (1 << 64) - 1)


def test_a_helper_that_shows_no_sign_of_life_is_killed_and_one_that_does_is_not(observer, helpers, processes, clock):
    observer.keep(clock.now)
    helper = the_only(helpers)
    for _ in range(5):
        clock.now += HUNG_S / 2
        observer._words[0] = int(clock.now * 1e9)
        observer.keep(clock.now)
        helpers.kill_overdue(clock.now)
    assert processes.killed == []
    clock.now += HUNG_S + 1
    observer.keep(clock.now)
    helpers.kill_overdue(clock.now)
    assert processes.killed == [helper.pid]


def test_dead_helpers_are_replaced_with_growing_delays(observer, helpers, clock, caplog):
    delays = []
    for _ in range(8):
        observer.keep(clock.now)
        died = clock.now
        die(observer, helpers, the_only(helpers).pid)
        while not len(helpers):
            clock.now += 0.5
            observer.keep(clock.now)
        delays.append(clock.now - died)
    assert delays == [1, 2, 4, 8, 16, 30, 30, RESTART_MAX_S]
    assert "the process that looks at the queues was killed by signal 9" in caplog.text
    clock.now += STABLE_S + 1
    die(observer, helpers, the_only(helpers).pid)
    assert caplog.messages[-1].endswith("; another one starts in 1 s")


def test_a_fork_that_the_system_refuses_is_tried_again(observer, helpers, processes, clock, caplog):
    processes.refuses = True
    observer.keep(clock.now)
    assert caplog.messages == [
        "the process that looks at the queues cannot be forked: no more processes; another one starts in 1 s"
    ]
    processes.refuses = False
    observer.keep(clock.now)
    assert len(helpers) == 0
    clock.now += 1
    observer.keep(clock.now)
    assert len(helpers) == 1


def test_silence_and_its_end_are_logged_once(observer, clock, caplog):
    observer.note_silence(clock.now)
    for _ in range(3):
        clock.now += SILENT_S
        observer.note_silence(clock.now)
    observer._write(LOOKS)
    clock.now = observer._words[1] / 1e9
    assert list(observer.answers())
    observer.note_silence(clock.now)
    assert [message.partition(":")[0] for message in caplog.messages] == [
        "no answer about the queues",
        "there are answers about the queues again",
    ]


def test_a_stopped_observer_begins_again(observer, helpers, processes, clock):
    observer.keep(clock.now)
    first = the_only(helpers)
    observer.stop()
    assert processes.killed == [first.pid]
    assert len(helpers) == 0
    observer.keep(clock.now)
    assert the_only(helpers) is not first
