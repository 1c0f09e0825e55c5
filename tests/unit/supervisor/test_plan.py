from __future__ import annotations

import pytest

from flask_backend.supervisor.plan import MAX_CHILDREN, Plan, Pool, Slot


def test_pools_are_filled_in_turn():
    slots = list(Plan([Pool("a", 1), Pool("b", 3)]).slots())
    assert slots == [Slot("a", 0), Slot("b", 0), Slot("b", 1), Slot("b", 2)]


def test_resizing_leaves_each_pool_at_least_one_child():
    plan = Plan([Pool("a", 1), Pool("b", 3)])
    plan.resize(-1)
    assert plan.pools == [Pool("a", 1), Pool("b", 2)]
    plan.resize(+2)
    assert plan.pools == [Pool("a", 3), Pool("b", 4)]
    assert plan.wants(Slot("a", 2))
    assert not plan.wants(Slot("a", 3))


def test_no_plan_exceeds_the_maximum():
    plan = Plan([Pool("a", MAX_CHILDREN)])
    plan.resize(+1)
    assert plan.total == MAX_CHILDREN
    assert not plan.resize(+1)
    with pytest.raises(ValueError, match="too many"):
        Plan([Pool("a", MAX_CHILDREN), Pool("b", 1)])


def test_a_plan_grows_to_the_systems_limit_and_may_always_shrink():
    plan = Plan([Pool("a", 1), Pool("b", 3)], most=5)
    assert not plan.resize(+1)
    assert plan.total == 4
    assert Plan([Pool("a", 9)], most=5).resize(-1)
