from __future__ import annotations

import math

import pytest

from flask_backend.deaths import Exit


@pytest.fixture
def ended():
    return []


@pytest.fixture
def start(helpers, ended):
    return lambda **options: helpers.start("a helper", lambda _accept_signals: 0, ended.append, **options)


def test_a_helper_is_in_the_table_until_its_exit_which_is_reported_once(helpers, start, ended):
    helper = start()
    assert helper.pid in helpers
    exit_ = Exit(helper.pid, 0, None)
    helpers.end(exit_)
    helpers.end(exit_)
    assert ended == [exit_]
    assert len(helpers) == 0


def test_a_helper_is_killed_at_its_deadline_and_stays_until_it_is_collected(helpers, start, processes, clock):
    early, late = start(within_s=1.0), start(within_s=2.0)
    assert helpers.next_at() == clock.now + 1
    helpers.kill_overdue(clock.now + 0.9)
    assert processes.killed == []
    helpers.kill_overdue(clock.now + 1)
    assert processes.killed == [early.pid]
    assert (early.is_overdue, late.is_overdue) == (True, False)
    assert early.pid in helpers
    assert helpers.next_at() == clock.now + 2


def test_a_helper_without_a_deadline_is_not_killed(helpers, start, processes):
    start()
    assert helpers.next_at() == math.inf
    helpers.kill_overdue(1e9)
    assert processes.killed == []


def test_a_dismissed_helper_is_killed_and_its_exit_is_not_reported(helpers, start, processes, ended):
    helper = start(within_s=1.0)
    helpers.dismiss(helper)
    helpers.end(Exit(helper.pid, None, 9))
    assert processes.killed == [helper.pid]
    assert ended == []
    assert helpers.next_at() == math.inf


def test_a_helper_may_be_started_again_when_it_ends(helpers):
    started = []

    def serve(exit_=None):
        started.append(exit_)
        return helpers.start("a server", lambda _accept_signals: 0, serve)

    first = serve()
    helpers.end(Exit(first.pid, 1, None))
    assert len(started) == 2
    assert len(helpers) == 1
    assert first.pid not in helpers


def test_a_fork_that_the_system_refuses_leaves_no_helper(helpers, start, processes):
    processes.refuses = True
    with pytest.raises(OSError, match="no more processes"):
        start()
    assert len(helpers) == 0
