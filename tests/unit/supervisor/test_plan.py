from __future__ import annotations

import pytest

from flask_backend.supervisor.plan import MAX_CHILDREN, Bounds, Plan, Pool, Slot


@pytest.fixture
def plan():
    return Plan([Pool("a", Bounds.fixed(1)), Pool("b", Bounds(3, 8))])


def hand_over(plan: Plan, *pools: Pool, most: int = MAX_CHILDREN) -> Plan:
    later = Plan(list(pools), most)
    later.resume(plan.hand_over())
    return later


def test_pools_begin_with_their_minimum_and_are_filled_in_turn(plan):
    assert list(plan.slots()) == [Slot("a", 0), Slot("b", 0), Slot("b", 1), Slot("b", 2)]
    assert (plan.total, plan.sizes) == (4, {"a": 1, "b": 3})
    assert str(plan) == "a=1, b=3 (3..8)"


def test_any_slot_can_be_removed_and_the_next_one_takes_its_place(plan):
    plan.remove(Slot("b", 1))
    assert not plan.wants(Slot("b", 1))
    assert plan.slots_of("b") == [Slot("b", 0), Slot("b", 2)]
    plan.add("b")
    plan.add("b")
    assert sorted(plan.slots_of("b")) == [Slot("b", index) for index in range(4)]
    assert plan.size_of("b") == 4
    assert plan.size_of("gone") == 0


def test_bounds_move_together_and_leave_each_pool_at_least_one_child(plan):
    assert plan.move(-2)
    assert (plan.bounds_of("a"), plan.bounds_of("b")) == (Bounds.fixed(1), Bounds(1, 6))
    assert plan.move(-9)
    assert plan.bounds_of("b") == Bounds.fixed(1)
    assert plan.move(+2)
    assert (plan.bounds_of("a"), plan.bounds_of("b")) == (Bounds.fixed(3), Bounds(1, 3))
    assert plan.move(+5)
    assert plan.bounds_of("b") == Bounds(3, 8)  # as wide as before
    assert plan.sizes == {"a": 1, "b": 3}


def test_bounds_move_to_the_systems_limit_and_may_always_move_down():
    plan = Plan([Pool("a", Bounds.fixed(1)), Pool("b", Bounds(1, 3))], most=5)
    assert not plan.move(+1)
    assert plan.bounds_of("b") == Bounds(1, 3)
    assert Plan([Pool("a", Bounds.fixed(9))], most=5).move(-1)
    full = Plan([Pool("a", Bounds.fixed(MAX_CHILDREN))], most=1 << 20)
    assert not full.move(+1)


def test_a_later_image_goes_on_with_sizes_and_moved_bounds(plan):
    plan.add("b")
    plan.move(+1)
    later = hand_over(plan, Pool("b", Bounds(3, 8)), Pool("new", Bounds.fixed(2)))
    assert later.sizes == {"b": 4, "new": 2}
    assert later.bounds_of("b") == Bounds(4, 9)
    later.move(-1)
    assert later.bounds_of("b") == Bounds(3, 8)


@pytest.mark.parametrize(("bounds", "size"), [(Bounds(1, 3), 3), (Bounds(5, 9), 5), (Bounds(2, 9), 4)])
def test_bounds_that_are_configured_differently_count_and_the_size_is_kept_within_them(plan, bounds, size):
    plan.add("b")
    plan.move(+1)
    later = hand_over(plan, Pool("b", bounds))
    assert later.bounds_of("b") == bounds
    assert later.size_of("b") == size


def test_moved_bounds_for_which_there_is_no_room_any_longer_are_dropped(plan):
    plan.move(+4)
    later = hand_over(plan, Pool("a", Bounds.fixed(1)), Pool("b", Bounds(3, 8)), most=13)
    assert (later.bounds_of("a"), later.bounds_of("b")) == (Bounds.fixed(5), Bounds(3, 8))
