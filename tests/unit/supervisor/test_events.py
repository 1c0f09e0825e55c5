from __future__ import annotations

import pytest

from flask_backend.deaths import Exit
from flask_backend.supervisor.events import DEADLINE_S, MAX_BATCH, MAX_PENDING, EventName, Events, EventSink


@pytest.fixture
def events(helpers, clock):
    sink = EventSink(wants=lambda name: name is EventName.WORKER_EXITED, send=lambda _event: None)
    return Events(sink, helpers, clock)


def note(events, times=1, name=EventName.WORKER_EXITED):
    for _ in range(times):
        events.note(name, "in words", {"queue": "q"})


def end_sender(helpers, *, status=0, number=None):
    (sender,) = helpers
    helpers.end(Exit(sender.pid, status, number))


def test_only_events_with_a_receiver_are_sent(events, processes):
    note(events, name=EventName.SUPERVISOR_READY)
    events.send()
    assert processes.spawned == []


def test_without_a_sink_there_are_no_events(helpers, clock, processes):
    events = Events(None, helpers, clock)
    note(events)
    events.send()
    assert processes.spawned == events.pending == []


def test_pending_events_are_sent_together_one_helper_at_a_time(events, helpers, processes):
    note(events, MAX_BATCH + 1)
    events.send()
    note(events)
    events.send()
    assert processes.spawned == [f"the process that sends {MAX_BATCH} worker_exited"]
    end_sender(helpers)
    events.send()
    assert processes.spawned[1:] == ["the process that sends 2 worker_exited"]
    end_sender(helpers)
    events.send()
    assert len(processes.spawned) == 2


def test_too_many_pending_events_are_lost_and_the_loss_is_logged_once(events, helpers, caplog):
    note(events)
    events.send()
    note(events, MAX_PENDING + 7)
    events.send()
    assert caplog.messages == []
    end_sender(helpers)
    events.send()
    assert caplog.messages == ["events for the app lost: 7 (too many were waiting, or no time was left)"]
    end_sender(helpers)
    events.send()
    assert len(caplog.messages) == 1


def test_a_sender_that_hangs_is_killed_at_its_deadline_and_others_follow(events, helpers, processes, clock, caplog):
    note(events)
    events.send()
    (sender,) = helpers
    note(events)
    clock.now += DEADLINE_S
    helpers.kill_overdue(clock.now)
    assert processes.killed == [sender.pid]
    end_sender(helpers, status=None, number=9)
    events.send()
    assert len(processes.spawned) == 2
    assert caplog.messages == [
        "worker_exited may not have reached all receivers: they took too long, and their process was killed"
    ]


def test_a_sender_that_crashes_is_logged_with_its_exit(events, helpers, caplog):
    note(events, 3)
    events.send()
    end_sender(helpers, status=None, number=11)
    (message,) = caplog.messages
    assert message.startswith("3 worker_exited may not have reached all receivers: their process was killed by signal")


def test_a_fork_that_the_system_refuses_loses_the_events_and_nothing_else(events, processes, caplog):
    processes.refuses = True
    note(events, 2)
    events.send()
    assert caplog.messages == ["cannot fork a process that sends 2 worker_exited to the app: no more processes"]
    processes.refuses = False
    note(events)
    events.send()
    assert len(processes.spawned) == 1


def test_at_the_end_events_have_only_the_time_that_is_left(events, helpers, clock, caplog):
    note(events)
    events.send(by=clock.now + 1)
    (sender,) = helpers
    assert sender.deadline == clock.now + 1
    note(events, 2)
    clock.now += 1
    end_sender(helpers)
    events.send(by=clock.now)
    assert caplog.messages == ["events for the app lost: 2 (too many were waiting, or no time was left)"]
    assert events.pending == []
