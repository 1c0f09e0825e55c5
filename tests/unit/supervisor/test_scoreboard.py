from __future__ import annotations

import os
import time

import pytest

from flask_backend.outcome import Ending
from flask_backend.supervisor.scoreboard import Row, Scoreboard
from flask_backend.system import page
from flask_backend.system.page import (
    BUCKETS,
    BURIED,
    CRASHED,
    DISCARDED,
    DONE,
    DURATIONS,
    GIVEN_BACK,
    LABEL,
    RECONNECTS,
    RETRIED,
    WAITED_US,
    WAITS,
)


@pytest.fixture
def board():
    return Scoreboard({"q": ["hello", "resize"], "other": []}, capacity=8)


def totals(*boards):
    """Return the counts of each label of the first queue, as readers see them: the newest page first."""
    found = {}
    for number, board in enumerate(boards):
        board.publish()
        read = page.read(board.memory.fd)
        queue, labels = read.queues[0], read.labels()["q"]
        rows = queue.workers if number else [queue.past, *queue.rows]
        for row in rows:
            for label, counts in zip(labels, row.label_words(), strict=True):
                if any(counts):
                    found[label] = [a + b for a, b in zip(found.get(label, [0] * len(LABEL)), counts, strict=True)]
    return found


def test_a_job_is_seen_from_its_beginning_to_its_end(board):
    row = board.take("q")
    assert row.activity is None
    row.begin(7)
    assert (row.activity.job_id, row.activity.label) == (7, "?")
    row.run("resize", None)
    assert row.activity.label == "resize"
    assert 0 <= row.activity.running_s < 5
    row.end(Ending.DONE)
    assert row.activity is None


def test_a_job_that_waits_for_a_limit_has_not_begun(board):
    row = board.take("q")
    row.begin(7)
    row.show_limit(is_waiting=True)
    assert row.is_limited
    assert row.activity is None
    row.begin(7)
    row.show_limit(is_waiting=False)
    assert not row.is_limited
    assert row.activity.job_id == 7
    row.show_limit(is_waiting=True)
    row.clear_activity(0)
    assert not row.is_limited


def test_the_time_to_kill_is_there_only_while_the_job_is(board):
    row = board.take("q")
    row.begin(7)
    assert row.kill_at is None
    row.run("hello", 123.5)
    assert row.kill_at == 123.5
    row.end(None)
    assert row.kill_at is None
    row.begin(8)
    assert row.kill_at is None


def test_a_row_given_to_another_child_starts_idle_and_keeps_its_counts(board):
    row = board.take("q")
    for ending in Ending:
        row.begin(1)
        row.run("hello", None)
        row.end(ending)
    row.begin(9)
    board.give_back("q", row)
    assert board.take("q").activity is None
    assert board.settled("q") == len(Ending)
    assert board.settled("other") == 0


def test_two_children_have_two_rows(board):
    first, second = board.take("q"), board.take("q")
    first.begin(1)
    assert second.activity is None


def test_each_label_has_its_counts_and_durations(board):
    rows = [board.take("q"), board.take("q")]
    for row in rows:
        for label, ending in (("hello", Ending.DONE), ("hello", Ending.RETRIED), ("unheard of", Ending.BURIED)):
            row.begin(1)
            row.run(label, None)
            row.end(ending)
    row.begin(1)
    row.end(None)  # not settled by us: counts nowhere
    board.count_crash("q", "hello")
    found = totals(board)
    assert {label: [counts[word] for word in (DONE, RETRIED, BURIED, CRASHED)] for label, counts in found.items()} == {
        "hello": [2, 2, 0, 1],
        "?": [0, 0, 2, 0],
    }
    assert {label: sum(counts[DURATIONS:WAITED_US]) for label, counts in found.items()} == {"hello": 4, "?": 2}
    assert all(len(counts[DURATIONS:WAITED_US]) == BUCKETS for counts in found.values())


def test_what_happens_to_jobs_outside_of_their_workers_is_counted_and_delays_no_replacement(board):
    row = board.take("q")
    row.begin(1)
    row.run("hello", None)
    row.end(Ending.DISCARDED)
    board.count_given_back("q", "hello")
    board.count_burial("q", "resize")
    found = totals(board)
    assert (found["hello"][DISCARDED], found["hello"][GIVEN_BACK], found["resize"][BURIED]) == (1, 1, 1)
    assert (found["hello"][DONE], sum(found["resize"][DURATIONS:WAITED_US])) == (0, 0)
    assert board.settled("q") == 1  # by its workers: the supervisor counts other burials itself


def test_waits_and_reconnects_are_counted_and_belong_to_no_job(board):
    row = board.take("q", slot=3)
    row.count_wait("hello", 900, 1)
    row.count_wait("hello", 5_000_000, 4)
    row.count_wait("unheard of", 10**12, 1)
    row.count_reconnect()
    found = totals(board)
    assert (found["hello"][WAITED_US], found["hello"][WAITS], found["hello"][WAITS + 13]) == (20_000_900, 1, 4)
    assert (found["?"][WAITS + BUCKETS - 1], found["?"][RECONNECTS]) == (1, 1)
    assert board.settled("q") == 0
    assert totals(Scoreboard({"q": []}, 8, past=board.totals_of_exited([]))) == found


def test_a_duration_is_in_the_bucket_of_its_power_of_two(board):
    row = board.take("q")
    row.begin(1)
    row.run("hello", None)
    time.sleep(0.009)
    row.end(Ending.DONE)
    buckets = totals(board)["hello"][DURATIONS:WAITED_US]
    assert sum(buckets[4:]) == 1  # 8 ms and more


def test_the_counts_of_a_child_survive_it(board):
    row = board.take("q")
    pid = os.fork()
    if pid == 0:
        row.begin(42)
        row.run("hello", 5.0)
        os._exit(0)
    os.waitpid(pid, 0)
    assert (row.activity.job_id, row.activity.label, row.kill_at) == (42, "hello", 5.0)


def test_totals_cross_a_reload_and_count_each_job_once(board):
    def work(row, label):
        row.begin(1)
        row.run(label, None)
        row.end(Ending.DONE)

    ended, alive = board.take("q"), board.take("q")
    work(ended, "hello")
    work(alive, "hello")
    board.give_back("q", ended)

    alive.occupy(77)
    new = Scoreboard({"q": ["hello", "brand new"]}, 8, past=board.totals_of_exited(alive=[("q", alive)]))
    guest = Row.find(alive.place, new.inherit([(os.dup(board.memory.fd), None)]).popitem()[1])
    new.adopt(77, "q", guest)
    assert new.done() == 2
    assert totals(new, board)["hello"][DONE] == 2
    work(alive, "resize")  # the old child goes on, in its own memory
    work(new.take("q"), "brand new")
    done = {"hello": 2, "resize": 1, "brand new": 1}
    assert {label: counts[DONE] for label, counts in totals(new, board).items()} == done
    assert new.done() == 4
    new.retire(77)
    assert new.done() == 4
    assert {label: counts[DONE] for label, counts in totals(new, board).items()} == done


def test_a_sign_of_life_is_seen(board):
    row = board.take("q")
    before = row.alive_at
    time.sleep(0.001)
    row.live()
    assert before < row.alive_at <= time.monotonic()
