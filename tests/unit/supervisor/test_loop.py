"""The supervisor's decisions on given events: no process is started or signalled."""

from __future__ import annotations

import logging
import signal

import pytest
from support.manager import Manager

from flask_backend.deaths import Exit
from flask_backend.outcome import Ending
from flask_backend.supervisor import Bounds, Notifier, Pool, ServiceManager, Supervisor, SupervisorOptions, Work
from flask_backend.supervisor.inbox import Report, ReportKind
from flask_backend.supervisor.pools import MAX_LEAVING
from flask_backend.supervisor.restart import Breaker
from flask_backend.supervisor.states import ChildState

LIMIT = Breaker().limit_of(2)
PATIENCE = 30_000_000  # microseconds


@pytest.fixture
def manager():
    manager = Manager()
    yield manager
    manager.close()


@pytest.fixture
def supervisor(processes, clock, manager):
    work = Work(body=lambda _context: 0, labels={"q": ["task"]}, settle=lambda _fd, _death, _crashes: 0)
    options = SupervisorOptions(drain_timeout_s=1.0, processes=processes, clock=clock, shared_memory_bytes=600 << 20)
    notifier = Notifier(ServiceManager(manager.variable, PATIENCE))
    supervisor = Supervisor([Pool("q", Bounds.fixed(3))], work, options, notifier)
    turn(supervisor)
    yield supervisor
    supervisor.close()
    notifier.close_in_child()


def turn(supervisor, *events):
    """Take a turn with these events, and have the children that it has started report."""
    supervisor.turn(events)
    starting = [child.pid for child in supervisor.children if child.state is ChildState.STARTING]
    supervisor.turn(Report(ReportKind.READY, pid) for pid in starting)


def leave(supervisor, child):
    child.row.leave()
    turn(supervisor)


@pytest.fixture
def end(processes):
    """End a child, so that the supervisor's next turn collects it."""

    def end(child, *, status=None, number=None):
        processes.exits.append(Exit(child.pid, status, number))

    return end


def make_due(supervisor, child):
    turn(supervisor, Report(ReportKind.RECYCLE_DUE, child.pid))


def test_a_recycling_whose_slot_is_no_longer_wanted_does_not_block_others(supervisor, processes, end):
    first, _, last = supervisor.children
    make_due(supervisor, last)
    assert last.state is ChildState.DRAINING
    processes.refuses = True
    end(last, status=0)
    turn(supervisor)
    make_due(supervisor, first)
    assert first.state is ChildState.READY  # its turn comes when the last one's successor is ready, ...
    turn(supervisor, signal.SIGTTOU)
    assert first.state is ChildState.DRAINING  # ... or is no longer waited for


def test_a_fork_that_the_system_refuses_is_tried_again_later(supervisor, processes, clock, end, caplog):
    first, *_ = supervisor.children
    processes.refuses = True
    end(first, number=signal.SIGKILL)
    turn(supervisor)
    processes.refuses = False
    turn(supervisor)
    assert len(supervisor.children) == 2
    assert "cannot fork a worker of q: no more processes; trying again in 1 s" in caplog.text
    clock.now += 1
    turn(supervisor)
    assert len(supervisor.children) == 3


def test_surplus_children_that_die_as_they_drain_leave_nothing_to_do_and_do_not_trip_the_breaker(supervisor, end):
    for _ in range(LIMIT):
        *_, last = supervisor.children
        turn(supervisor, signal.SIGTTOU)
        end(last, number=signal.SIGKILL)
        turn(supervisor)
        assert len(supervisor.children) == 2
        turn(supervisor, signal.SIGTTIN)
        assert len(supervisor.children) == 3
    assert not supervisor.is_draining


def test_children_share_the_memory_with_those_that_a_signal_adds(supervisor, processes, clock):
    child, *_ = supervisor.children
    processes.private = 170 << 20
    clock.now += 2
    turn(supervisor)
    assert child.state is ChildState.READY  # it may have 200
    turn(supervisor, signal.SIGTTIN)
    clock.now += 10
    turn(supervisor)
    assert child.state is ChildState.DRAINING
    assert child.recycle_reason == "its private memory is 170 MiB, over 150 MiB"


def test_children_that_only_die_trip_the_breaker(supervisor, clock, end):
    for _ in range(LIMIT):
        assert not supervisor.is_draining
        first = wait_for_child(supervisor, clock)
        end(first, number=signal.SIGKILL)
        turn(supervisor)
    assert supervisor.is_draining


def wait_for_child(supervisor, clock):
    for _ in range(1000):
        if children := list(supervisor.children):
            return children[0]
        clock.now += 0.1
        turn(supervisor)
    raise AssertionError("no child")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_draining_child_killed_by_its_drain_signal_gave_its_job_back(supervisor, caplog, end, number):
    for _ in range(LIMIT):
        *_, last = supervisor.children
        for child in supervisor.children:
            child.row.begin(7)
        turn(supervisor, signal.SIGTTOU)
        assert last.state is ChildState.DRAINING
        end(last, number=number)
        turn(supervisor)
        turn(supervisor, signal.SIGTTIN)
    is_planned = number is signal.SIGTERM
    assert ("it was draining, and its job goes back" in caplog.text) is is_planned
    assert ("it was one too many" in caplog.text) is not is_planned
    assert not supervisor.is_draining


def test_a_death_is_logged_before_its_job_is_settled(supervisor, caplog, end):
    """Another process settles it: it may finish, and log that, before this one continues."""
    caplog.set_level(logging.DEBUG, "flask_backend.supervisor")
    child, *_ = supervisor.children
    child.row.begin(7)
    end(child, number=signal.SIGKILL)
    turn(supervisor)
    death, fate = caplog.messages[-2:]
    assert "at job 7" in death
    assert death.endswith("; replaced at once")
    assert fate == "job 7 goes back as it was: its worker has lent no socket"


def test_the_successor_of_a_child_that_has_left_does_not_wait_for_its_end(supervisor, end):
    first, second, _ = supervisor.children
    make_due(supervisor, first)
    assert len(supervisor.children) == 3
    leave(supervisor, first)
    assert first.state is ChildState.LEAVING
    assert [child.slot for child in supervisor.children].count(first.slot) == 2
    make_due(supervisor, second)
    assert second.state is ChildState.DRAINING  # the recycling of the first one is over
    end(first, status=0)
    turn(supervisor)
    assert len(supervisor.children) == 3


@pytest.mark.parametrize("how", [{"number": signal.SIGKILL}, {"number": signal.SIGSEGV}, {"status": 1}])
@pytest.mark.parametrize("is_late", [False, True])
def test_a_child_that_has_left_counts_as_planned_however_it_ends(supervisor, processes, clock, end, how, is_late):
    for _ in range(LIMIT):
        first = next(iter(supervisor.children))
        leave(supervisor, first)
        if is_late:
            clock.now = first.row.left_at + 1.0
            turn(supervisor)
            assert first.pid in processes.killed
        end(first, **how)
        turn(supervisor)
        assert len(supervisor.children) == 3
    assert not supervisor.is_draining


def test_children_that_linger_do_not_fill_the_host(supervisor, end):
    for _ in range(MAX_LEAVING):
        for child in supervisor.children:
            if not child.has_left:
                child.row.leave()
        turn(supervisor)
    lingering = list(supervisor.children)
    assert MAX_LEAVING <= len(lingering) < MAX_LEAVING + 3
    for child in lingering[:3]:
        end(child, status=0)
    turn(supervisor)
    assert len(supervisor.children) == len(lingering) - 3 + 3


def test_at_the_drain_timeout_the_children_are_killed(supervisor, processes, clock, end, caplog):
    first, *_ = children = list(supervisor.children)
    first.row.begin(7)
    turn(supervisor, signal.SIGTERM)
    assert processes.drained == [child.pid for child in children]
    clock.now += 0.9
    turn(supervisor)
    assert processes.killed == []
    clock.now += 0.1
    turn(supervisor)
    assert processes.killed == processes.drained
    assert f"drain timeout: worker {first.pid} gives back job 7 (?) unfinished" in caplog.text


# -- what the service manager is sent ------------------------------------------------------------------------


def statuses(manager):
    return [message["STATUS"] for message in manager.unread() if "STATUS" in message]


def do_jobs(child, count):
    for number in range(1, count + 1):
        child.row.begin(number)
        child.row.run("task", None)
        child.row.end(Ending.DONE)


def test_the_status_has_numbers_that_change_at_most_every_few_seconds(supervisor, manager, clock):
    assert statuses(manager) == ["3 workers, 0 busy, 0 restarts"]
    first, second, _ = supervisor.children
    for _ in range(80):
        do_jobs(first, 6)
        first.row.begin(700)
        second.row.begin(701)
        clock.now += 0.125  # exact in binary: steps of a tenth add up to a little more or less than the interval
        turn(supervisor)
    assert statuses(manager) == ["3 workers, 2 busy, 48 done/s, 0 restarts"]
    clock.now += 3600
    do_jobs(first, 720)
    turn(supervisor)
    turn(supervisor)
    assert statuses(manager) == ["3 workers, 1 busy, 0.2 done/s, 0 restarts"]
    clock.now += 3600
    turn(supervisor)
    turn(supervisor)
    assert statuses(manager) == ["3 workers, 1 busy, 0 done/s, 0 restarts"]
    clock.now += 3600
    turn(supervisor)
    assert statuses(manager) == []


def test_the_status_shows_a_death_and_the_restart_at_once(supervisor, manager, end):
    first, *_ = supervisor.children
    end(first, number=signal.SIGKILL)
    turn(supervisor)
    assert statuses(manager) == [
        "3 workers, 0 busy, 0 restarts",
        "2 of 3 workers ready, 0 busy, 1 restart",
        "3 workers, 0 busy, 1 restart",
    ]


def test_planned_exits_are_no_restarts_in_the_status(supervisor, manager, end):
    first, *_ = supervisor.children
    make_due(supervisor, first)
    end(first, status=0)
    turn(supervisor)
    assert statuses(manager)[-1] == "3 workers, 0 busy, 0 restarts"


def test_each_turn_proves_that_the_supervisor_is_alive_until_it_drains(supervisor, manager, clock):
    manager.unread()
    clock.now += PATIENCE / 1e6
    supervisor.turn()
    assert {"WATCHDOG": "1"} in manager.unread()
    supervisor.turn([signal.SIGTERM])
    stopping, extension = manager.unread()
    assert stopping == {"STOPPING": "1", "STATUS": "Stopping: SIGTERM"}
    assert extension == {"EXTEND_TIMEOUT_USEC": "6000000"}  # the drain timeout, 1 s, and 5 s more
    clock.now += 5.5
    supervisor.turn([signal.SIGTERM])
    assert manager.unread() == [{"EXTEND_TIMEOUT_USEC": "500000"}]
    clock.now += 3.0
    supervisor.turn()
    assert manager.unread() == []


def test_the_loop_does_not_wake_up_for_the_manager_while_it_takes_turns_anyway(supervisor, clock):
    assert supervisor._timeout_s() <= 1.0
    assert supervisor._links.notifier.next_at() - clock.now > 1.0
