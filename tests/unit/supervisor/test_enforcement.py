from __future__ import annotations

import os
import signal

import pytest
from fakes import Clock, NoProcesses

from flask_backend.supervisor.children import Child
from flask_backend.supervisor.deadlines import Deadlines
from flask_backend.supervisor.enforcement import DUMP_S, LOOK_S, SAMPLE_S, Enforcement
from flask_backend.supervisor.memory import MemoryPolicy
from flask_backend.supervisor.plan import Slot
from flask_backend.supervisor.process import Processes as RealProcesses
from flask_backend.supervisor.scoreboard import Scoreboard
from flask_backend.supervisor.states import ChildEvent
from flask_backend.supervisor.workers import Workers


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def now(clock):
    return clock.now


@pytest.fixture
def scoreboard():
    return Scoreboard({"q": ["task"]}, 2)


@pytest.fixture
def child(scoreboard, now):
    child = Child(Slot("q", 0), os.getpid(), scoreboard.take("q"), now)
    child.apply(ChildEvent.REPORTED_READY)
    return child


class Processes(NoProcesses):
    """Reads the memory of real processes."""

    usage = RealProcesses.usage
    private_bytes = RealProcesses.private_bytes


@pytest.fixture
def processes():
    return Processes()


@pytest.fixture
def workers(child, scoreboard, processes, clock):
    workers = Workers(lambda _context: 0, scoreboard, None, processes, clock)
    workers.children.add(child)
    return workers


@pytest.fixture
def enforcement(workers, processes, now):
    """Build an enforcement with ceilings."""

    def build(soft: int | None = None, hard: int | None = None) -> Enforcement:
        return Enforcement(workers, Deadlines(10.0, 25.0), MemoryPolicy(soft, hard), processes, now)

    return build


def begin(child, kill_at):
    child.row.begin(7)
    child.row.run("task", kill_at)


def test_a_stuck_child_writes_its_stacks_and_is_killed_shortly_after(enforcement, child, now, processes):
    enforcement = enforcement()
    begin(child, now + 3)
    enforcement.enforce(now + 2)
    assert not processes.dumped
    enforcement.enforce(now + 3)
    enforcement.enforce(now + 3 + DUMP_S / 2)
    assert processes.dumped == [child.pid]
    assert not processes.killed
    enforcement.enforce(now + 3.1 + DUMP_S)
    enforcement.enforce(now + 4 + DUMP_S)
    assert processes.dumped == [child.pid]
    assert processes.killed == [child.pid]


def test_a_child_that_does_not_drain_is_signalled_again_and_killed_as_planned(
    enforcement, child, now, processes, caplog
):
    enforcement = enforcement()
    child.apply(ChildEvent.DRAIN)
    child.drained_at = child.signalled_at = now
    for second in range(1, 30):
        enforcement.enforce(now + second)
    assert len(processes.drained) > 20
    assert caplog.text.count("does not drain") == 1
    assert processes.dumped == [child.pid]
    assert processes.killed == [child.pid]
    assert child.gave_back(signal.SIGKILL)


def test_a_child_that_finally_ends_its_job_is_not_killed(enforcement, child, now, processes):
    enforcement = enforcement()
    begin(child, now + 3)
    enforcement.enforce(now + 3)
    child.row.end(None)
    enforcement.enforce(now + 4)
    begin(child, now + 5)
    enforcement.enforce(now + 5)
    assert processes.dumped == [child.pid, child.pid]
    assert not processes.killed


def test_the_next_check_is_at_the_earliest_deadline(enforcement, child, now, processes):
    enforcement = enforcement()
    enforcement.enforce(now + 2)
    assert enforcement.next_at(now + 2) == now + 2 + LOOK_S
    begin(child, now + 2.5)
    assert enforcement.next_at(now + 2) == pytest.approx(now + 2.5)
    enforcement.enforce(now + 2.6)
    assert enforcement.next_at(now + 2.6) == now + 2.6 + DUMP_S
    enforcement.enforce(now + 2.7 + DUMP_S)
    assert processes.killed
    assert enforcement.next_at(now + 2.9) == now + 2 + LOOK_S


def test_a_child_that_does_not_end_after_it_has_left_is_killed_without_its_stacks(enforcement, child, now, processes):
    enforcement = enforcement()
    child.row.leave()
    child.apply(ChildEvent.LEFT)
    late = child.row.left_at + 25
    for second in range(25):
        enforcement.enforce(child.row.left_at + second)
    enforcement.enforce(late - 0.5)
    assert enforcement.next_at(late - 0.5) == late
    enforcement.enforce(late)
    assert processes.killed == [child.pid]
    assert not processes.dumped


def test_a_child_over_the_soft_ceiling_is_to_be_recycled(enforcement, child, now, processes):
    enforcement(soft=1).enforce(now + 2)
    assert "over 0 MiB" in child.recycle_reason
    assert not processes.killed


def test_a_child_over_the_hard_ceiling_is_killed(enforcement, child, now, processes):
    enforcement(soft=1, hard=2).enforce(now + 2)
    assert processes.killed == [child.pid]
    assert child.private_bytes > 2
    assert child.recycle_reason is None


def test_without_a_ceiling_children_are_read_in_turn_and_rarely(enforcement, child, now, workers, scoreboard):
    other = Child(Slot("q", 1), os.getppid(), scoreboard.take("q"), now)
    workers.children.add(other)
    enforcement = enforcement()
    enforcement.enforce(now + 2)
    assert [child.reading is not None, other.reading is not None] == [True, False]
    enforcement.enforce(now + 2 + LOOK_S)
    assert other.reading is None
    enforcement.enforce(now + 2 + SAMPLE_S)
    assert other.reading.at == now + 2 + SAMPLE_S
    assert child.reading.at == now + 2
