from __future__ import annotations

import time

import pytest

from flask_backend.supervisor.children import Child
from flask_backend.supervisor.deadlines import SILENT_S, SUSPENDED_S, TELL_AGAIN_S, Deadlines
from flask_backend.supervisor.plan import Slot
from flask_backend.supervisor.scoreboard import Scoreboard
from flask_backend.supervisor.states import ChildEvent
from flask_backend.worker.host import UNBOUNDED_NS

NOW = time.monotonic()


@pytest.fixture
def child():
    return Child(Slot("q", 0), pid=1, row=Scoreboard({"q": ["task"]}, 1).take("q"), started=NOW)


def test_a_child_that_is_not_ready_in_time_is_stuck(child):
    deadlines = Deadlines(boot_timeout_s=10.0, drain_timeout_s=25.0)
    assert deadlines.reason_to_kill(child, NOW + 10) is None
    assert deadlines.reason_to_kill(child, NOW + 10.1) == "was not ready within 10 s"
    child.apply(ChildEvent.REPORTED_READY)
    assert deadlines.reason_to_kill(child, NOW + 100) is None


def test_a_child_whose_job_is_over_its_time_is_stuck(child):
    child.apply(ChildEvent.REPORTED_READY)
    child.row.begin(7)
    child.row.run("task", NOW + 5)
    deadlines = Deadlines(10.0, 25.0)
    assert deadlines.reason_to_kill(child, NOW + 4) is None
    assert deadlines.reason_to_kill(child, NOW + 5) == "did not end job 7 (task) at its time limit"
    child.row.end(None)
    assert deadlines.reason_to_kill(child, NOW + 5) is None


def test_a_draining_child_is_watched_too_and_a_killed_one_no_longer(child):
    child.apply(ChildEvent.REPORTED_READY)
    child.row.begin(7)
    child.row.run("task", NOW)
    child.apply(ChildEvent.DRAIN)
    assert Deadlines(10.0, 25.0).reason_to_kill(child, NOW + 1)
    child.apply(ChildEvent.KILL)
    assert Deadlines(10.0, 25.0).reason_to_kill(child, NOW + 1) is None


def test_an_idle_child_that_gives_no_sign_of_life_is_stuck(child):
    child.apply(ChildEvent.REPORTED_READY)
    deadlines = Deadlines(10.0, 25.0)
    reason = deadlines.reason_to_kill(child, time.monotonic() + SILENT_S + 1)
    assert "has sent no heartbeat for 121 s" in reason
    child.row.begin(7)  # a job may take as long as it needs, unless it has a limit
    assert deadlines.reason_to_kill(child, time.monotonic() + 10 * SILENT_S) is None


@pytest.mark.parametrize("silent_ns", [10**9, UNBOUNDED_NS])
def test_a_child_that_announces_its_silence_has_that_time_too(child, silent_ns):
    child.apply(ChildEvent.REPORTED_READY)
    child.row.live(silent_ns)
    last = child.row.alive_at
    assert last == pytest.approx(time.monotonic() + silent_ns / 1e9, abs=60)
    assert Deadlines(10.0, 25.0).reason_to_kill(child, last + SILENT_S - 1) is None
    assert Deadlines(10.0, 25.0).reason_to_kill(child, last + SILENT_S + 1)
    child.row.live()
    assert Deadlines(10.0, 25.0).reason_to_kill(child, time.monotonic() + SILENT_S + 1)


@pytest.fixture
def drained(child):
    """A child that got its drain signal at NOW."""
    child.apply(ChildEvent.REPORTED_READY)
    child.row.begin(7)
    child.apply(ChildEvent.DRAIN)
    child.drained_at = child.signalled_at = child.row.began_at
    child.row.tell_to_drain()
    return child


def look(child, after_s):
    """Return whether the signal is repeated, and why the child is ended, ``after_s`` seconds after its drain signal."""
    deadlines, now = Deadlines(10.0, 25.0), child.drained_at + after_s
    deadlines.note_drain(child, now)
    return deadlines.is_to_be_told_again(child, now), deadlines.reason_to_end(child, now)


def test_a_draining_child_may_finish_its_job_however_long_that_takes(drained):
    assert look(drained, 3600) == (False, None)


@pytest.mark.parametrize("has_new_job", [False, True])
def test_a_draining_child_that_idles_or_takes_new_jobs_is_signalled_again_and_finally_ended(drained, has_new_job):
    drained.row.end(None)
    if has_new_job:
        drained.row.begin(8)
    assert look(drained, TELL_AGAIN_S - 0.1) == (False, None)
    assert look(drained, TELL_AGAIN_S) == (True, None)
    drained.signalled_at += TELL_AGAIN_S
    assert look(drained, TELL_AGAIN_S + 0.1) == (False, None)
    is_told_again, reason = look(drained, TELL_AGAIN_S + 25)
    assert is_told_again
    assert reason.endswith("takes new jobs" if has_new_job else "has no job, but does not exit")


def test_a_job_that_began_at_the_drain_signal_is_not_cut(drained):
    drained.row.end(None)
    drained.row.begin(8)
    drained.row.heard_drain()
    assert look(drained, 10) == look(drained, 3600) == (False, None)


def test_a_draining_child_that_noticed_is_not_signalled_again_but_has_to_end(drained):
    drained.row.heard_drain()
    drained.row.end(None)
    assert look(drained, 10) == (False, None)
    assert "has no job" in look(drained, 40)[1]


def test_the_time_of_a_draining_child_counts_from_the_end_of_its_job(drained):
    assert look(drained, 3600) == (False, None)
    drained.row.heard_drain()
    drained.row.end(None)
    assert look(drained, 3600) == look(drained, 3624) == (False, None)
    assert look(drained, 3625)[1]


def test_a_row_reused_by_another_child_has_no_drain(drained):
    drained.row.heard_drain()
    drained.row.clear_activity(0)
    assert not drained.row.was_told_to_drain()


def test_a_child_that_has_left_and_does_not_end_is_stuck(child):
    deadlines = Deadlines(10.0, 25.0)
    child.apply(ChildEvent.REPORTED_READY)
    child.row.leave()
    child.apply(ChildEvent.LEFT)
    left_at = child.row.left_at
    assert deadlines.reason_to_kill(child, left_at + 24) is None
    assert deadlines.reason_to_kill(child, left_at + 25) == "did not exit within 25 s after its last job"


def test_after_a_suspend_children_get_time_to_act_by_themselves(child):
    deadlines = Deadlines(10.0, 25.0)
    deadlines.note_turn(SUSPENDED_S + 1, NOW + 100)
    assert deadlines.reason_to_kill(child, NOW + 100) is None
    deadlines.note_turn(0.0, NOW + 101)
    assert deadlines.reason_to_kill(child, NOW + 100 + SUSPENDED_S) is not None
