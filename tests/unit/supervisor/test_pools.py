from __future__ import annotations

import math

import pytest

from flask_backend.supervisor.plan import Bounds, Plan, Pool, Slot
from flask_backend.supervisor.pools import MAX_LEAVING, PoolRecord, Pools
from flask_backend.system.exits import ExitCode

FIRST, SECOND = BOTH = [Slot("q", 0), Slot("q", 1)]


@pytest.fixture
def pool():
    return PoolRecord()


def test_a_pool_whose_children_only_die_is_hopeless(pool):
    for now in range(9):
        assert pool.check_give_up(FIRST, BOTH, None, float(now), progress=0) is None
    hopeless = pool.check_give_up(FIRST, BOTH, None, 9.0, progress=0)
    assert hopeless.code is ExitCode.GAVE_UP
    assert hopeless.reason == "the workers of q have died 10 times within 60 s and finished no job in between"


def test_a_pool_that_has_done_a_job_is_not_hopeless(pool):
    for now in range(30):
        assert pool.check_give_up(FIRST, BOTH, None, float(now), progress=now) is None


def test_a_pool_of_which_no_slot_can_start_is_hopeless(pool):
    assert pool.check_give_up(FIRST, BOTH, ExitCode.CONFIG, 0.0, progress=0) is None
    assert pool.check_give_up(FIRST, BOTH, ExitCode.CONFIG, 0.1, progress=0) is None
    hopeless = pool.check_give_up(SECOND, BOTH, ExitCode.CONFIG, 0.2, progress=0)
    assert hopeless.code is ExitCode.CONFIG
    assert hopeless.reason == "no worker of q can start, for the reason above"


def test_a_pool_that_was_once_ready_can_start(pool):
    pool.was_ever_ready = True
    assert pool.check_give_up(FIRST, [FIRST], ExitCode.CONFIG, 0.0, progress=0) is None


def test_only_the_recycled_slot_ends_its_recycling(pool):
    pool.recycling = FIRST
    pool.end_recycling(SECOND)
    assert pool.recycling == FIRST
    pool.end_recycling(FIRST)
    assert pool.recycling is None


def test_a_slot_that_is_no_longer_wanted_is_not_being_recycled(pool):
    plan = Plan([Pool("q", Bounds.fixed(2))])
    assert not pool.is_recycling(plan)
    pool.recycling = SECOND
    assert pool.is_recycling(plan)
    plan.remove(SECOND)
    assert not pool.is_recycling(plan)


def test_a_child_that_is_ready_ends_the_recycling_of_its_slot(pool):
    pool.recycling = FIRST
    pool.note_ready(SECOND)
    assert pool.was_ever_ready
    assert pool.recycling == FIRST
    pool.note_ready(FIRST)
    assert pool.recycling is None


def test_a_delayed_slot_is_vacant_only_later_and_then_no_longer_awaited():
    pools = Pools(Plan([Pool("q", Bounds.fixed(2))]))
    pools.delay(FIRST, 7.0)
    assert pools.next_at() == 7.0
    assert pools.claim(set(), 6.9) == [SECOND]
    assert pools.claim({SECOND}, 7.0) == [FIRST]
    assert pools.next_at() == math.inf


def test_a_pool_that_is_held_up_has_no_vacant_slot_and_is_not_looked_at_again_before_that_changes():
    pools = Pools(Plan([Pool("q", Bounds.fixed(1)), Pool("other", Bounds.fixed(1))]))
    pools.delay(FIRST, 7.0)
    assert pools.hold_up({"q": MAX_LEAVING, "other": 1}) == {"q"}
    assert pools.hold_up({"q": MAX_LEAVING}) == set()
    assert pools.claim(set(), 8.0) == [Slot("other", 0)]
    assert pools.next_at() == math.inf
    assert pools.hold_up({"q": MAX_LEAVING - 1}) == set()
    assert pools.claim({Slot("other", 0)}, 8.0) == [FIRST]


def test_a_slot_that_is_no_longer_wanted_is_not_awaited():
    pools = Pools(Plan([Pool("q", Bounds.fixed(2))]))
    pools.delay(SECOND, 7.0)
    pools.remove(SECOND)
    assert pools.next_at() == math.inf
