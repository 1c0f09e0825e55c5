from __future__ import annotations

import pytest
from fakes import NoProcesses

from flask_backend.supervisor import Descriptors, Notifier, Terminal
from flask_backend.supervisor.inbox import Inbox
from flask_backend.supervisor.links import Lifeline, Links
from flask_backend.supervisor.loans import Loans
from flask_backend.supervisor.plan import Bounds, Plan, Pool, Slot
from flask_backend.supervisor.pools import Pools
from flask_backend.supervisor.scaling import Scaling
from flask_backend.supervisor.scoreboard import Scoreboard
from flask_backend.supervisor.states import ChildEvent
from flask_backend.supervisor.workers import Workers


@pytest.fixture
def pools():
    return Pools(Plan([Pool("q", Bounds(4, 8))]))


@pytest.fixture
def workers(clock):
    terminal = Terminal(was_there=True, ignores_hangup=False)
    links = Links(Inbox(terminal), Lifeline(), Loans(), Notifier(""), Descriptors(soft=1000, base=10))
    yield Workers(lambda _context: 0, Scoreboard({"q": ["task"]}, 10), links, NoProcesses(), clock)
    links.loans.close_all()


@pytest.fixture
def scaling(pools, workers):
    return Scaling(pools, workers.children)


def start(workers, index):
    workers.start(Slot("q", index))
    *_, child = workers.children
    child.apply(ChildEvent.REPORTED_READY)
    return child


def test_bounds_move_a_size_only_as_far_as_they_must(pools, scaling):
    pools.plan.add("q")
    assert scaling.move(+1)
    assert (pools.plan.bounds_of("q"), pools.plan.size_of("q")) == (Bounds(5, 9), 5)
    scaling.move(+1)
    assert (pools.plan.bounds_of("q"), pools.plan.size_of("q")) == (Bounds(6, 10), 6)
    scaling.move(-5)
    assert (pools.plan.bounds_of("q"), pools.plan.size_of("q")) == (Bounds(1, 5), 5)


def test_a_shrink_costs_as_little_as_possible(pools, workers, scaling):
    idle, busy, draining = (start(workers, index) for index in range(3))
    busy.row.begin(7)
    workers.drain(draining)
    removed = []
    for size in (3, 2, 1):
        before = set(pools.plan.slots_of("q"))
        scaling.move(size - pools.plan.bounds_of("q").maximum)
        removed += before - set(pools.plan.slots_of("q"))
    assert removed == [Slot("q", 3), draining.slot, idle.slot]  # the first one is vacant
    assert pools.plan.slots_of("q") == [busy.slot]


def test_a_worker_that_starts_goes_before_an_idle_one_and_the_last_one_first(pools, workers, scaling):
    start(workers, 0)
    workers.start(Slot("q", 1))
    start(workers, 2)
    start(workers, 3)
    scaling.move(-5)
    assert pools.plan.slots_of("q") == [Slot("q", 0), Slot("q", 2), Slot("q", 3)]
    scaling.move(-1)
    assert pools.plan.slots_of("q") == [Slot("q", 0), Slot("q", 2)]


def test_the_child_of_a_slot_that_has_left_does_not_count(pools, workers, scaling):
    for index in range(4):
        start(workers, index).row.begin(7)
    first, *_ = workers.children
    first.row.end(None)
    first.row.leave()
    scaling.move(-5)
    assert Slot("q", 0) not in pools.plan.slots_of("q")
