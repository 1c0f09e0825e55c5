from __future__ import annotations

import pytest
from fakes import NoProcesses

from flask_backend.supervisor import Demand, Descriptors, Notifier, ServiceManager, Terminal
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
    links = Links(Inbox(terminal), Lifeline(), Loans(), Notifier(ServiceManager()), Descriptors(soft=1000, base=10))
    yield Workers(lambda _context: 0, Scoreboard({"q": ["task"]}, 10), links, NoProcesses(), clock)
    links.loans.close_all()


@pytest.fixture
def scaling(pools, workers):
    return Scaling(pools, workers.children, Samples())


class Samples:
    """In place of the observer: the samples that a test has put there."""

    def __init__(self):
        self.new = []

    def keep(self, _now):
        pass

    note_silence = keep

    def answers(self):
        while self.new:
            yield self.new.pop(0)


@pytest.fixture
def see(scaling, clock):
    """Have the queue look the same for some seconds, at most until the pool changes."""

    def see(demand, seconds=100):
        before = scaling._plan.size_of("q")
        for _ in range(seconds):
            clock.now += 1
            scaling._observer.new.append(("q", clock.now, demand))
            scaling.scale(clock.now)
            if (size := scaling._plan.size_of("q")) != before:
                return size - before
        return 0

    return see


UNMET, SPARE = Demand(ready=7, waiting=0), Demand(ready=0, waiting=1)


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


def test_a_worker_that_waits_for_a_limit_is_not_idle(pools, workers, see):
    pools.plan.add("q")
    rows = [start(workers, index).row for index in range(5)]
    for row in rows:
        row.begin(7)
        row.show_limit(is_waiting=True)
    assert see(SPARE) == 0
    rows[0].end(None)
    rows[0].show_limit(is_waiting=False)
    assert see(SPARE) == -1


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


def test_a_pool_grows_to_its_maximum_one_child_after_another(pools, workers, see, caplog):
    caplog.set_level("INFO", "flask_backend.supervisor")
    for size in range(4, 8):
        for slot in pools.plan.slots_of("q"):
            if slot.index >= len(workers.children):
                start(workers, slot.index)
        assert see(UNMET) == 1
        assert pools.plan.size_of("q") == size + 1
        assert see(UNMET) == 0  # the new one has not started yet
    start(workers, 7)
    assert see(UNMET) == 0
    assert len(caplog.messages) == 4
    assert "q=8 (4..8): one worker more: jobs were ready (now 7) and no worker was free for" in caplog.text


def test_a_pool_shrinks_to_its_minimum_and_loses_idle_children(pools, workers, see, caplog):
    caplog.set_level("INFO", "flask_backend.supervisor")
    for _ in range(2):
        pools.plan.add("q")
    children = [start(workers, index) for index in range(6)]
    for child in children[2:]:
        child.row.begin(7)
    assert see(SPARE) == -1
    assert see(SPARE) == -1
    assert see(SPARE) == 0
    assert pools.plan.slots_of("q") == [child.slot for child in children[2:]]
    assert "q=4 (4..8): one worker fewer: not all were needed for" in caplog.text


@pytest.mark.parametrize("trouble", ["vacant", "starting", "killed", "away"])
def test_a_pool_with_a_child_that_cannot_work_does_not_grow(workers, see, trouble):
    children = [start(workers, index) for index in range(3)]
    if trouble == "starting":
        workers.start(Slot("q", 3))
    elif trouble != "vacant":
        children.append(start(workers, 3))
        if trouble == "away":
            children[3].row.show_broker(is_away=True)
        else:
            workers.kill(children[3])
    assert see(UNMET) == 0


def test_a_child_that_finishes_its_last_job_does_not_keep_its_pool_from_growing(workers, see):
    for index in range(4):
        start(workers, index).row.begin(7)
    first, *_ = workers.children
    workers.drain(first)
    assert see(UNMET) == 1


def test_children_of_old_code_neither_count_nor_hinder(workers, see):
    old = start(workers, 0)
    old.is_old = True
    workers.drain(old)
    for index in range(4):
        start(workers, index).row.begin(7)
    assert see(SPARE) == 0
    assert see(UNMET) == 1


def test_a_further_child_that_cannot_start_is_done_without_and_the_next_try_waits_longer(
    pools, workers, scaling, see, clock
):
    for index in range(4):
        start(workers, index).row.begin(7)
    waits = []
    for _ in range(7):
        began = clock.now
        while not see(UNMET):
            pass
        waits.append(clock.now - began)
        *_, further = pools.plan.slots_of("q")
        assert scaling.drop(further, clock.now)
        assert pools.plan.size_of("q") == 4
    for wait_s, hold_s in zip(waits, (0, 30, 60, 120, 240, 480, 600), strict=True):
        assert hold_s < wait_s < hold_s + 12
    scaling.note_ready("q")
    while not see(UNMET):
        pass
    assert scaling.drop(pools.plan.slots_of("q")[-1], clock.now)
    began = clock.now
    while not see(UNMET):
        pass
    assert clock.now - began < 45


def test_a_child_of_the_minimum_is_never_done_without(pools, scaling, clock):
    assert not scaling.drop(Slot("q", 0), clock.now)
    assert pools.plan.size_of("q") == 4
