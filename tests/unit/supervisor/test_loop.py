"""The supervisor's decisions on given events: no process is started or signalled."""

from __future__ import annotations

import itertools
import signal

import pytest

from flask_backend.deaths import Exit
from flask_backend.supervisor import Notifier, Pool, Supervisor, SupervisorOptions, Work, loop, process
from flask_backend.supervisor.inbox import ReportKind
from flask_backend.supervisor.states import ChildState


class System:
    """Give each child a number and no process, or fail to spawn."""

    def __init__(self) -> None:
        self.refuses = False
        self._pids = itertools.count(1)

    def spawn(self, *_args):
        if self.refuses:
            raise BlockingIOError("no more processes")
        return next(self._pids)


@pytest.fixture
def system(monkeypatch):
    system = System()
    monkeypatch.setattr(process, "spawn", system.spawn)
    monkeypatch.setattr(process, "drain", lambda _pid: None)
    monkeypatch.setattr(process, "kill", lambda _pid: None)
    monkeypatch.setattr(loop, "show_master", lambda _queues, _workers: None)
    return system


@pytest.fixture
def supervisor(system):
    work = Work(body=lambda _context: 0, labels={"q": ["task"]}, settle=lambda _fd, _death, _crashes: 0)
    supervisor = Supervisor([Pool("q", 3)], work, SupervisorOptions(drain_timeout_s=1.0), Notifier(""))
    turn(supervisor)
    yield supervisor
    supervisor._loans.close_all()


def turn(supervisor):
    """Start the missing children, and have them report."""
    supervisor._reconcile()
    for child in supervisor._children:
        if child.state is ChildState.STARTING:
            supervisor._handle_report(child, ReportKind.READY)


def leave(supervisor, child):
    child.row.leave()
    supervisor._let_go()


def end(supervisor, child, *, status=None, number=None):
    supervisor._handle_exit(child, Exit(child.pid, status, number))


def test_a_recycling_whose_slot_is_no_longer_wanted_does_not_block_others(supervisor, system):
    first, _, last = supervisor._children
    last.recycle_reason = "it is due"
    turn(supervisor)
    assert last.state is ChildState.DRAINING
    system.refuses = True
    end(supervisor, last, status=0)
    turn(supervisor)
    first.recycle_reason = "it is due"
    turn(supervisor)
    assert first.state is ChildState.READY  # its turn comes when the last one's successor is ready, ...
    supervisor._handle_signal(signal.SIGTTOU)
    turn(supervisor)
    assert first.state is ChildState.DRAINING  # ... or is no longer waited for


def test_surplus_children_that_die_as_they_drain_leave_nothing_to_do_and_do_not_trip_the_breaker(supervisor):
    for _ in range(supervisor._pools["q"].breaker.limit):
        *_, last = supervisor._children
        supervisor._handle_signal(signal.SIGTTOU)
        turn(supervisor)
        end(supervisor, last, number=signal.SIGKILL)
        assert not supervisor._not_before
        supervisor._handle_signal(signal.SIGTTIN)
        turn(supervisor)
    assert not supervisor._is_draining


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_draining_child_killed_by_its_drain_signal_gave_its_job_back(supervisor, caplog, number):
    *_, last = supervisor._children
    last.row.begin(7)
    supervisor._handle_signal(signal.SIGTTOU)
    turn(supervisor)
    assert last.state is ChildState.DRAINING
    end(supervisor, last, number=number)
    is_planned = number is signal.SIGTERM
    assert ("it was draining, and its job goes back" in caplog.text) is is_planned
    assert len(supervisor._pools["q"].breaker._exits) == 0
    assert ("it was one too many" in caplog.text) is not is_planned


def test_a_death_is_logged_before_its_job_is_settled(supervisor, monkeypatch, caplog):
    """Another process settles it: it may finish, and log that, before this one continues."""
    logged = []
    monkeypatch.setattr(supervisor._settling, "start", lambda *_args: logged.extend(caplog.messages))
    child, *_ = supervisor._children
    child.row.begin(7)
    end(supervisor, child, number=signal.SIGKILL)
    (death,) = logged
    assert "at job 7" in death
    assert death.endswith("; replaced at once")


def test_the_successor_of_a_child_that_has_left_does_not_wait_for_its_end(supervisor):
    first = next(iter(supervisor._children))
    first.recycle_reason = "it is due"
    turn(supervisor)
    assert len(supervisor._children) == 3
    leave(supervisor, first)
    assert first.state is ChildState.LEAVING
    turn(supervisor)
    assert [child.slot for child in supervisor._children].count(first.slot) == 2
    assert not supervisor._pools["q"].is_recycling(supervisor._plan)
    end(supervisor, first, status=0)
    turn(supervisor)
    assert len(supervisor._children) == 3


@pytest.mark.parametrize("how", [{"number": signal.SIGKILL}, {"number": signal.SIGSEGV}, {"status": 1}])
def test_a_child_that_has_left_counts_as_planned_however_it_ends(supervisor, how):
    for _ in range(supervisor._pools["q"].breaker.limit):
        first = next(iter(supervisor._children))
        leave(supervisor, first)
        turn(supervisor)
        if how == {"number": signal.SIGKILL}:
            supervisor._kill(first)
        end(supervisor, first, **how)
        turn(supervisor)
        assert len(supervisor._children) == 3
        assert not supervisor._not_before
    assert not supervisor._is_draining


def test_children_that_linger_do_not_fill_the_host(supervisor, monkeypatch):
    monkeypatch.setattr(loop, "MAX_LEAVING", 6)
    for _ in range(10):
        for child in supervisor._children:
            if not child.has_left:
                leave(supervisor, child)
        turn(supervisor)
    lingering = list(supervisor._children)
    assert len(lingering) == 6
    end(supervisor, lingering[0], status=0)
    turn(supervisor)
    assert len(supervisor._children) == 5 + 3
