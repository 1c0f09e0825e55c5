"""The token and the decisions of a tick, without a broker."""

from __future__ import annotations

import json
import logging
from dataclasses import replace

import pytest

from flask_backend.errors import MessageDecodeError
from flask_backend.options import Options
from flask_backend.periodic.definition import Definition
from flask_backend.periodic.due import find_due, look_at
from flask_backend.periodic.token import Entry, Release, Token
from flask_backend.periodic.when import Cron, Every

NOW = 1_796_000_000.0 // 3600 * 3600  # a full hour
OLD, NEW = Release(NOW - 100, "old"), Release(NOW - 50, "new")


def define(name="a", when=Every(60), **policy) -> Definition:  # noqa: B008  # a value
    return Definition(name, "q", "report", when, **policy)


def token(*definitions: Definition, release=OLD, now=NOW) -> Token:
    return Token("q").with_release(release, definitions, now)


def entry(definition: Definition, **state) -> Token:
    return Token("q", 1, OLD, {definition.name: replace(Entry(definition, int(NOW)), **state)})


def test_it_survives_the_wire():
    full = define("b", Cron("@daily", "Europe/Prague"), args=(1, "x"), kwargs={"k": None}, catch_up="skip")
    full = replace(full, overlap=False, grace_s=0, options=Options(delay=5, priority=0, ttr=9, expires=70))
    state = Entry(full, 7, 5, 9, "uid", 3, 2, 1, is_paused=True, retired=8)
    written = Token("q", 4, NEW, {"a": Entry(define(), 1), "b": state})
    read = Token.decode(written.encode())
    assert read.entries["b"].definition.args == [1, "x"]
    assert read.encode() == written.encode()
    assert (read.number, read.release, read.queue) == (4, NEW, "q")
    assert read.entries["b"].retired == 8
    assert read.entries["b"].definition.grace_s == 0


@pytest.mark.parametrize(
    "change",
    [
        {"number": -1},
        {"number": True},
        {"queue": 5},
        {"loaded": 5},
        {"loaded": ["x", ""]},
        {"loaded": [10**400, ""]},
        {"schedules": []},
        {"schedules": {"a": {}}},
        {"schedules": {"a": {"endpoint": "e", "every": 0, "last": 1}}},
        {"schedules": {"a": {"endpoint": "e", "every": 5, "last": "x"}}},
        {"schedules": {"a": {"endpoint": "e", "every": 5, "last": 1, "catch_up": "all"}}},
        {"schedules": {"a": {"endpoint": "e", "every": 5, "last": 1, "args": {}}}},
        {"schedules": {"a": {"endpoint": "e", "every": 5, "last": 1, "options": {"priority": -1}}}},
    ],
)
def test_what_is_no_token_is_refused(change):
    body = json.dumps({**json.loads(token(define()).encode()), **change}).encode()
    with pytest.raises(MessageDecodeError, match="not the state of periodic tasks"):
        Token.decode(body)
    for other in (b"", b"{}", b"[]", b"5", b"null", b"\xff"):
        with pytest.raises(MessageDecodeError):
            Token.decode(other)


def test_a_new_one_is_due_at_its_next_slot_and_not_before():
    new = token(define(), define("b", Every(3600)))
    assert list(find_due(new, NOW)) == []
    assert look_at(new, NOW) == NOW + 60
    [due] = find_due(new, NOW + 61)
    assert (due.slot, due.after.definition.name) == (NOW + 60, "a")
    done = due.scheduled(7, "uid")
    assert (done.ran, done.last, done.job, done.scheduled, done.missed) == (NOW + 60, NOW + 60, 7, 1, 0)


def test_the_token_is_looked_at_within_a_minute():
    assert look_at(token(define(when=Every(86400))), NOW) <= NOW + 60
    assert look_at(Token("q"), NOW) == NOW + 60
    assert look_at(entry(define(), is_paused=True), NOW) == NOW + 60


@pytest.mark.parametrize(
    ("policy", "late_s", "slot", "missed"),
    [
        ({}, 0, 3, 2),
        ({}, 59, 3, 2),
        ({"catch_up": "skip"}, 0, 3, 2),
        ({"catch_up": "skip", "when": Every(3600)}, 60, 3, 2),
        ({"catch_up": "skip", "when": Every(3600)}, 61, None, 3),
        ({"grace_s": 10, "when": Every(3600)}, 10, 3, 2),
        ({"grace_s": 10, "when": Every(3600)}, 11, None, 3),
        ({"grace_s": 0, "when": Every(3600)}, 1, None, 3),
        ({"grace_s": 0, "when": Every(3600)}, 0, 3, 2),
        ({"catch_up": "skip", "grace_s": 600, "when": Every(3600)}, 599, 3, 2),
    ],
)
def test_slots_that_passed_are_made_up_for_by_one_call_or_missed(policy, late_s, slot, missed):
    definition = define(**policy)
    every = definition.when.seconds
    [due] = find_due(entry(definition), NOW + 3 * every + late_s)
    assert due.slot == (None if slot is None else NOW + slot * every)
    assert (due.after.missed, due.after.last) == (missed, NOW + 3 * every)


def test_slots_of_the_last_seconds_are_scheduled_one_by_one_as_after_a_kill():
    held, now, slots = entry(define(when=Every(1))), NOW + 30.5, []
    while due := next(find_due(held, now), None):
        slots.append(due.slot - NOW)
        held = held.next_written([due.scheduled(1, "u")])
    assert slots == list(range(21, 31))
    [done] = held
    assert (done.scheduled, done.missed, done.last) == (10, 20, NOW + 30)


@pytest.mark.parametrize("policy", [{"grace_s": 0}, {"grace_s": 1}, {"catch_up": "skip"}])
def test_milliseconds_are_not_late(policy):
    [due] = find_due(entry(define(**policy)), NOW + 60.9)
    assert due.slot == NOW + 60


def test_earlier_slots_come_first():
    found = find_due(token(define("a", Every(60)), define("b", Every(50))), NOW + 61)
    assert [due.after.definition.name for due in found] == ["b", "a"]


def test_a_pause_leaves_slots_out_without_counting_them():
    paused = entry(define(), is_paused=True)
    assert list(find_due(paused, NOW + 200)) == []
    resumed = paused.entries["a"].resumed(NOW + 200)
    again = paused.next_written([resumed])
    assert list(find_due(again, NOW + 239)) == []
    [due] = find_due(again, NOW + 240)
    assert (due.slot, due.after.missed) == (NOW + 240, 0)


def test_a_clock_that_is_set_back_a_little_repeats_no_slot():
    ahead = entry(define(), last=int(NOW) + 600, ran=int(NOW) + 600)
    assert list(find_due(ahead, NOW)) == []
    assert list(find_due(ahead, NOW + 600)) == []
    assert next(find_due(ahead, NOW + 660)).slot == NOW + 660


def test_a_clock_that_was_wrong_by_hours_does_not_stop_a_task_for_hours(caplog):
    ahead = entry(define(), last=int(NOW) + 7200, ran=int(NOW) + 7200)
    with caplog.at_level(logging.WARNING, "flask_backend.periodic"):
        [due] = find_due(ahead, NOW)
    assert (due.slot, due.after.last) == (None, NOW)
    assert "ahead of this clock" in caplog.text


def test_the_release_that_was_loaded_last_writes_the_definitions():
    old = token(define("a"), define("gone"))
    new = old.with_release(NEW, [define("a", Every(30)), define("b")], NOW + 10)
    assert new.entries["a"].definition.when == Every(30)
    assert new.entries["a"].last == old.entries["a"].last  # whatever becomes of its expression
    assert new.entries["gone"].retired == NOW + 10
    assert new.entries["b"].last == NOW + 10
    assert new.with_release(OLD, [define("a"), define("gone")], NOW + 20) is new
    assert new.with_release(NEW, [define("a", Every(30)), define("b")], NOW + 20) is new


def test_two_releases_that_take_turns_keep_what_was_scheduled():
    held = token(define("a", Every(60)))
    for turn in range(1, 30):
        release = Release(NOW + turn * 10, str(turn % 2))
        held = held.with_release(release, [define("a", Every(60 if turn % 2 else 61))], NOW + turn * 10)
        if due := list(find_due(held, NOW + turn * 10)):
            held = held.next_written(each.scheduled(1, "u") for each in due)
    assert held.entries["a"].scheduled >= 4  # a reset at each change would leave none


def test_a_name_that_comes_back_within_a_day_goes_on_and_is_forgotten_after_it():
    held = token(define("a"), define("b")).next_written()
    without = held.with_release(NEW, [define("b")], NOW)
    assert [due.after.definition.name for due in find_due(without, NOW + 70)] == ["b"]
    again = without.with_release(Release(NOW + 100, ""), [define("a"), define("b")], NOW + 3000)
    assert again.entries["a"].retired is None
    assert again.entries["a"].last == held.entries["a"].last
    later = without.with_release(Release(NOW + 100, ""), [define("b")], NOW + 86400)
    assert list(later.entries) == ["b"]


def test_a_release_of_a_wrong_clock_does_not_win_for_ever():
    wrong = token(define("a"), release=Release(NOW + 10**6, "wrong"))
    assert wrong.with_release(NEW, [define("b")], NOW).release == NEW


def test_a_definition_that_cannot_be_computed_here_is_left_alone(caplog):
    caplog.set_level(logging.DEBUG, "flask_backend.periodic")
    strange = entry(define(when=Cron("not cron", "UTC")))
    assert list(find_due(strange, NOW + 600)) == []
    assert look_at(strange, NOW) == NOW + 60
    assert list(find_due(entry(define(when=Cron("@daily", "Mars/Olympus"))), NOW + 10**6)) == []
    assert "cannot tell when the periodic task a is due" in caplog.text
