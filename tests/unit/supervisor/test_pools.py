from __future__ import annotations

import pytest

from flask_backend.supervisor.plan import Plan, Pool, Slot
from flask_backend.supervisor.pools import PoolRecord
from flask_backend.system.exits import ExitCode

FIRST, SECOND = Slot("q", 0), Slot("q", 1)


@pytest.fixture
def pool():
    return PoolRecord()


def test_a_pool_whose_children_only_die_is_hopeless(pool):
    for now in range(9):
        assert pool.check_give_up(FIRST, 2, None, float(now), progress=0) is None
    hopeless = pool.check_give_up(FIRST, 2, None, 9.0, progress=0)
    assert hopeless.code is ExitCode.GAVE_UP
    assert hopeless.reason == "the workers of q have died 10 times within 60 s and finished no job in between"


def test_a_pool_that_has_done_a_job_is_not_hopeless(pool):
    for now in range(30):
        assert pool.check_give_up(FIRST, 2, None, float(now), progress=now) is None


def test_a_pool_of_which_no_slot_can_start_is_hopeless(pool):
    assert pool.check_give_up(FIRST, 2, ExitCode.CONFIG, 0.0, progress=0) is None
    assert pool.check_give_up(FIRST, 2, ExitCode.CONFIG, 0.1, progress=0) is None
    hopeless = pool.check_give_up(SECOND, 2, ExitCode.CONFIG, 0.2, progress=0)
    assert hopeless.code is ExitCode.CONFIG
    assert hopeless.reason == "no worker of q can start, for the reason above"


def test_a_pool_that_was_once_ready_can_start(pool):
    pool.was_ever_ready = True
    assert pool.check_give_up(FIRST, 1, ExitCode.CONFIG, 0.0, progress=0) is None


def test_only_the_recycled_slot_ends_its_recycling(pool):
    pool.recycling = FIRST
    pool.end_recycling(SECOND)
    assert pool.recycling == FIRST
    pool.end_recycling(FIRST)
    assert pool.recycling is None


def test_a_slot_that_is_no_longer_wanted_is_not_being_recycled(pool):
    plan = Plan([Pool("q", 2)])
    assert not pool.is_recycling(plan)
    pool.recycling = SECOND
    assert pool.is_recycling(plan)
    plan.resize(-1)
    assert not pool.is_recycling(plan)


def test_a_child_that_is_ready_ends_the_recycling_of_its_slot(pool):
    pool.recycling = FIRST
    pool.note_ready(SECOND)
    assert pool.was_ever_ready
    assert pool.recycling == FIRST
    pool.note_ready(FIRST)
    assert pool.recycling is None
