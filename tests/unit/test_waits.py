"""How long jobs wait: what a worker counts without the broker, and what it asks."""

from __future__ import annotations

import time

import pytest

from flask_backend.worker.waits import ASK_MOST, Waits

STATS = (
    "---\nid: 7\ntube: q\nstate: reserved\npri: 0\nage: {age}\ndelay: {delay}\nttr: 120\ntime-left: 119\nfile: 0\n"
    "reserves: {reserves}\ntimeouts: {timeouts}\nreleases: {releases}\nburies: {buries}\nkicks: {kicks}\n"
)
FIRST = {"age": 9, "delay": 4, "reserves": 1, "timeouts": 0, "releases": 0, "buries": 0, "kicks": 0}


class Broker:
    """A connection that keeps the questions, for a test to answer."""

    def __init__(self) -> None:
        self.asked = []

    def ask_stats_later(self, job_id, receiver):
        self.asked.append((job_id, receiver))

    def answer(self, **counters):
        self.asked[-1][1].receive([b"OK", b"99"], STATS.format(**{**FIRST, **counters}).encode())


@pytest.fixture
def broker():
    return Broker()


@pytest.fixture
def counted():
    return []


@pytest.fixture
def note(broker, counted):
    waits = Waits(lambda *facts: counted.append(facts))

    def note(ago_s=None, now=100.0, connection=broker):
        headers = {} if ago_s is None else {"at": time.time() - ago_s}
        waits.note(connection, 7, "hello", headers, now)

    return note


def test_a_fresh_job_is_counted_without_a_question(note, broker, counted):
    note(0.25)
    [(label, waited_us, jobs)] = counted
    assert (label, jobs, broker.asked) == ("hello", 1, [])
    assert 250_000 <= waited_us < 1_000_000


def test_a_clock_behind_that_of_the_caller_makes_no_negative_wait(note, broker, counted):
    for ago_s in (30, float("inf")):
        note(-ago_s)
    assert (counted, broker.asked) == ([("hello", 0, 1)] * 2, [])


@pytest.mark.parametrize("ago_s", [1.5, 3600, None, 10**9, float("nan"), float("inf")])
def test_of_an_older_job_or_one_without_a_time_the_broker_knows_the_age_and_the_delay(note, broker, counted, ago_s):
    note(ago_s)
    assert ([job for job, _ in broker.asked], counted) == ([7], [])
    broker.answer()
    assert counted == [("hello", 5_500_000, 1)]


@pytest.mark.parametrize(
    "counters",
    [{"reserves": 2, "releases": 1}, {"reserves": 2, "timeouts": 1}, {"kicks": 1}, {"reserves": 2, "buries": 1}],
)
def test_only_a_first_attempt_counts(note, broker, counted, counters):
    note(60)
    broker.answer(**counters)
    assert counted == []


def test_a_job_that_is_gone_or_a_reply_of_another_form_counts_nothing(note, broker, counted):
    note(60)
    broker.asked[-1][1].receive([b"NOT_FOUND"], b"")
    broker.asked[-1][1].receive([b"OK", b"4"], b"--- ")
    assert counted == []


def test_a_delay_that_the_server_rounds_makes_no_negative_wait(note, broker, counted):
    note(60)
    broker.answer(age=3, delay=4)
    assert counted == [("hello", 500_000, 1)]


def test_of_many_old_jobs_one_stands_for_those_since_the_last(note, broker, counted):
    for _ in range(ASK_MOST + 4):
        note(60)
    assert len(broker.asked) == ASK_MOST
    for _ in range(10):
        note(60, now=100 + 1.5 / ASK_MOST)
    assert len(broker.asked) == ASK_MOST + 1
    broker.answer()
    assert counted == [("hello", 5_500_000, 5)]
    for _ in range(ASK_MOST + 1):
        note(60, now=200)
    assert len(broker.asked) == 2 * ASK_MOST + 1


def test_a_new_connection_carries_jobs_before_it_carries_questions(note, broker):
    note(60)
    second = Broker()
    note(60, connection=second)
    note(60, now=100 + 0.5 / ASK_MOST, connection=second)
    assert (len(broker.asked), len(second.asked)) == (1, 0)
    note(60, now=100 + 1.5 / ASK_MOST, connection=second)
    assert len(second.asked) == 1
