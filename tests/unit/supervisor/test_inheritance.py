from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from fakes import Clock, NoProcesses

from flask_backend.deaths import Exit, ExitKind
from flask_backend.outcome import Ending
from flask_backend.supervisor import Descriptors, Handover, Notifier, ServiceManager, Terminal
from flask_backend.supervisor.events import EventName, Events, EventSink
from flask_backend.supervisor.handover import HANDOVER_ENV
from flask_backend.supervisor.helpers import HeldJob, Helpers
from flask_backend.supervisor.history import History
from flask_backend.supervisor.inbox import Inbox
from flask_backend.supervisor.inheritance import Inheritance
from flask_backend.supervisor.links import Lifeline, Links
from flask_backend.supervisor.loans import Loans
from flask_backend.supervisor.plan import Bounds, Plan, Pool, Slot
from flask_backend.supervisor.pools import Pools
from flask_backend.supervisor.restart import Breaker
from flask_backend.supervisor.scoreboard import Scoreboard
from flask_backend.supervisor.service import ServiceHelper
from flask_backend.supervisor.settling import SETTLED, SETTLED_FOR_GOOD, Settling
from flask_backend.supervisor.states import ChildEvent, ChildState
from flask_backend.supervisor.workers import Workers

JOB = HeldJob("q", 7, "task")


@pytest.fixture
def image():
    """Build the parts of an image of the supervisor that a reload keeps."""
    built = []

    def build():
        terminal, processes, clock = Terminal(was_there=True, ignores_hangup=False), NoProcesses(), Clock()
        notifier = Notifier(ServiceManager("@flask-backend-nobody", 30_000_000))
        links = Links(Inbox(terminal), Lifeline(), Loans(), notifier, Descriptors(soft=1000, base=10))
        workers = Workers(lambda _context: 0, Scoreboard({"q": ["task"], "other": []}, 10), links, processes, clock)
        helpers = Helpers(links, processes, clock)
        events = Events(EventSink(wants=lambda _name: True, send=lambda _event: None), helpers, clock)
        built.append(links)
        pools = Pools(Plan([Pool("q", Bounds.fixed(2)), Pool("other", Bounds.fixed(1))]))
        settling = Settling(
            lambda _fd, _death, _crashes: 0, links.loans, helpers, workers.scoreboard.count_burial, clock
        )
        service, scheduler = (ServiceHelper(None, helpers, links, processes, clock) for _ in range(2))
        return Inheritance(workers, helpers, events, links, terminal, History(), pools, settling, service, scheduler)

    yield build
    for links in built:
        links.loans.close_all()
        links.notifier.close_in_child()


def hand_over(old, new, monkeypatch):
    """Hand over as an exec would, from one image of this process to another."""
    monkeypatch.setenv(HANDOVER_ENV, str(old.hand_over(1).write()))
    handover = Handover.take()
    assert HANDOVER_ENV not in os.environ
    new.adopt(handover, time.monotonic())
    return handover


def test_children_cross_with_their_activity_and_their_loans(image, monkeypatch):
    old, new = image(), image()
    old.workers.start(Slot("q", 0))
    old.workers.start(Slot("q", 1))
    busy, draining = old.workers.children
    for child in old.workers.children:
        child.apply(ChildEvent.REPORTED_READY)
    busy.row.begin(7)
    busy.row.run("task", None)
    old.workers.drain(draining)
    lent = os.open(os.devnull, os.O_RDONLY)
    old.links.loans.keep(busy.pid, os.dup(lent))
    handover = hand_over(old, new, monkeypatch)
    assert (handover.generation, handover.soft_limit, handover.had_terminal) == (1, 1000, True)
    first, second = new.workers.children
    assert (first.pid, first.state, first.is_old) == (busy.pid, ChildState.READY, True)
    assert (first.row.activity.job_id, first.row.activity.label) == (7, "task")
    assert (second.pid, second.state) == (draining.pid, ChildState.DRAINING)
    assert new.links.loans.get(busy.pid) == old.links.loans.get(busy.pid)
    old.links.loans._lent.clear()  # it is the new image's
    os.close(lent)


def test_the_memory_of_an_earlier_scoreboard_is_closed_with_its_last_child(image, monkeypatch):
    old, new = image(), image()
    for index in range(2):
        old.workers.start(Slot("q", index))
    hand_over(old, new, monkeypatch)
    first, second = new.workers.children
    fd = first.row.place.fd
    new.workers.remove(first)
    assert Path(f"/proc/self/fd/{fd}").exists()
    new.workers.remove(second)
    assert not Path(f"/proc/self/fd/{fd}").exists()


def test_helpers_cross_with_their_deadlines_and_are_killed_at_them(image, monkeypatch, caplog):
    old, new = image(), image()
    hanging = old.helpers.start("a helper", lambda _accept_signals: 0, lambda _exit: None, within_s=10.0)
    server = old.helpers.start("a server", lambda _accept_signals: 0, lambda _exit: None)
    settler = old.helpers.start("a settler", lambda _accept_signals: 0, lambda _exit: None, settles=JOB)
    hand_over(old, new, monkeypatch)
    crossed = list(new.helpers)
    assert [(helper.pid, helper.deadline, helper.settles) for helper in crossed] == [
        (hanging.pid, hanging.deadline, None),
        (server.pid, float("inf"), None),
        (settler.pid, float("inf"), JOB),
    ]
    new.helpers.kill_overdue(hanging.deadline)
    assert [helper.is_overdue for helper in crossed] == [True, False, False]
    assert caplog.messages == []


def test_what_systemd_has_passed_and_the_number_of_restarts_cross(image, monkeypatch):
    old, new = image(), image()
    old.history.restarts = 3
    handover = hand_over(old, new, monkeypatch)
    assert handover.manager == ServiceManager("@flask-backend-nobody", 30_000_000)
    assert handover.history.restarts == 3


@pytest.mark.parametrize(("status", "settled", "crashes"), [(SETTLED_FOR_GOOD, 1, 1), (SETTLED, 1, 3), (0, 0, 3)])
def test_a_helper_that_settles_a_job_across_a_reload_counts(image, monkeypatch, caplog, status, settled, crashes):
    old, new = image(), image()
    for now in (1.0, 2.0):
        old.settling.crashes.note("q", 7, now)
    settler = old.helpers.start("a settler", lambda _accept_signals: 0, lambda _exit: None, settles=JOB)
    hand_over(old, new, monkeypatch)
    new.helpers.end(Exit(settler.pid, status, None))
    assert new.settling.settled["q"] == settled
    assert new.settling.crashes.note("q", 7, 3.0) == crashes
    assert caplog.messages == []


def test_a_helper_that_fails_to_settle_a_job_across_a_reload_is_logged(image, monkeypatch, caplog):
    old, new = image(), image()
    settler = old.helpers.start("a settler", lambda _accept_signals: 0, lambda _exit: None, settles=JOB)
    hand_over(old, new, monkeypatch)
    new.helpers.end(Exit(settler.pid, 1, None))
    assert caplog.messages == ["job 7 was not settled: its process exited with status 1"]


def test_events_that_were_not_sent_cross(image, monkeypatch):
    old, new = image(), image()
    old.events.note(EventName.WORKER_EXITED, "worker 7 of q exited", {"queue": "q", "exit_status": None})
    hand_over(old, new, monkeypatch)
    assert new.events.pending == old.events.pending
    assert len(new.events.pending) == 1


LIMIT = Breaker().limit_of(2)


def give_up(image, now):
    """Record the death of an idle child; return whether its pool is given up."""
    return (
        image.pools["q"].check_give_up(Slot("q", 0), image.pools.plan.slots_of("q"), None, now, image.progress("q"))
        is not None
    )


def test_the_deaths_that_the_breaker_counts_cross(image, monkeypatch):
    old, new = image(), image()
    assert not any(give_up(old, float(second)) for second in range(LIMIT - 1))
    hand_over(old, new, monkeypatch)
    assert give_up(new, float(LIMIT))


def test_jobs_settled_since_the_last_death_clear_the_record_also_across_a_reload(image, monkeypatch):
    old, new, newest = image(), image(), image()
    assert not any(give_up(old, float(second)) for second in range(LIMIT - 1))
    old.pools["q"].restarts.delay_s(ExitKind.CANNOT_WORK, 0.0, old.progress("q"))
    old.workers.start(Slot("q", 0))
    (child,) = old.workers.children
    child.row.begin(7)
    child.row.end(Ending.DONE)
    hand_over(old, new, monkeypatch)
    assert not give_up(new, float(LIMIT))
    hand_over(new, newest, monkeypatch)
    assert newest.pools["q"].breaker.since(0) == [float(LIMIT)]
    assert newest.pools["q"].restarts.since(0) == ({}, 0.0)


def test_the_growing_delays_between_restarts_cross(image, monkeypatch):
    old, new = image(), image()
    for second in range(8):
        old.pools["q"].restarts.delay_s(ExitKind.CANNOT_WORK, float(second), 0)
    hand_over(old, new, monkeypatch)
    assert new.pools["q"].restarts.since(0) == ({ExitKind.CANNOT_WORK: 8}, 7.0)
    assert new.pools["q"].restarts.delay_s(ExitKind.CANNOT_WORK, 8.0, 0) > 5
    assert new.pools["other"].restarts.since(0) == ({}, float("-inf"))


def test_the_crashes_by_each_job_cross(image, monkeypatch):
    old, new = image(), image()
    old.settling.crashes.note("q", 7, 1.0)
    old.settling.crashes.note("q", 7, 2.0)
    hand_over(old, new, monkeypatch)
    assert new.settling.crashes.note("q", 7, 3.0) == 3
    assert new.settling.crashes.note("other", 7, 3.0) == 1


def test_the_sizes_of_the_pools_cross(image, monkeypatch):
    old, new = image(), image()
    old.pools.plan.move(+1)
    old.pools.plan.add("q")
    hand_over(old, new, monkeypatch)
    assert new.pools.plan.sizes == {"q": 3, "other": 2}
