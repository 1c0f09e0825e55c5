from __future__ import annotations

import random
from itertools import pairwise

import pytest

from flask_backend.supervisor.demand import (
    GROW_AFTER_S,
    SAMPLE_S,
    SHRINK_AFTER_S,
    STALE_S,
    Demand,
    ScalingPolicy,
    Step,
)

UNMET, SPARE, QUIET, PAUSED = Demand(5, 0), Demand(0, 3), Demand(0, 0), Demand(5, 0, is_held_up=True)


@pytest.fixture
def policy():
    return ScalingPolicy(random=lambda: 0.5)


def first_step(policy, demand, *, idle=0, is_complete=True, within_s=3600):
    """Return the time and the step when a demand that lasts leads to one."""
    for second in range(within_s):
        if step := policy.step(float(second), demand, idle, is_complete=is_complete):
            return second, step
    return None


def test_a_pool_grows_when_jobs_are_ready_and_no_worker_waits_for_some_seconds(policy):
    assert first_step(policy, UNMET) == (5, Step(+1, 5.0))


def test_a_pool_shrinks_when_a_worker_is_idle_for_long(policy):
    assert first_step(policy, SPARE, idle=1) == (45, Step(-1, 45.0))


@pytest.mark.parametrize(
    ("demand", "idle", "is_complete"),
    [
        (QUIET, 0, True),  # all work, and no job waits
        (SPARE, 0, True),  # another host's workers are idle
        (Demand(5, 1), 0, True),  # a worker that waits gets one of the jobs at once
        (Demand(5, 1), 1, True),
        (PAUSED, 0, True),
        (PAUSED, 3, True),  # jobs will need the workers when the pause ends
        (UNMET, 0, False),  # workers start, crash or have no broker
        (SPARE, 2, False),
    ],
)
def test_otherwise_a_pool_stays_as_it_is(policy, demand, idle, is_complete):
    assert first_step(policy, demand, idle=idle, is_complete=is_complete) is None


def test_a_pause_with_no_job_waiting_does_not_keep_idle_workers(policy):
    assert first_step(policy, Demand(0, 3, is_held_up=True), idle=3)


@pytest.mark.parametrize(("reason", "idle", "other"), [(UNMET, 0, QUIET), (SPARE, 1, UNMET)])
def test_a_single_sample_without_the_reason_begins_the_wait_again(policy, reason, idle, other):
    second, _ = first_step(ScalingPolicy(random=lambda: 0.5), reason, idle=idle)
    for at in range(second):
        assert policy.step(at, reason, idle, is_complete=True) is None
    assert policy.step(second, other, idle, is_complete=True) is None
    for at in range(second + 1, 2 * second):
        assert policy.step(at, reason, idle, is_complete=True) is None


def test_answers_that_stayed_away_begin_the_wait_again(policy):
    assert policy.step(0.0, UNMET, 0, is_complete=True) is None
    assert policy.step(STALE_S + 0.1, UNMET, 0, is_complete=True) is None
    assert policy.step(STALE_S + 4.0, UNMET, 0, is_complete=True) is None
    assert policy.step(STALE_S + 5.0, UNMET, 0, is_complete=True) is None
    assert policy.step(STALE_S + 5.2, UNMET, 0, is_complete=True)


def test_a_burst_that_is_over_sooner_than_a_worker_starts_starts_none():
    assert first_step(ScalingPolicy(random=lambda: 0.0), UNMET, within_s=int(GROW_AFTER_S[0])) is None


def test_a_pool_that_is_held_grows_later():
    assert first_step(ScalingPolicy(random=lambda: 0.5, grow_from=60.0), UNMET) == (65, Step(+1, 5.0))


class Host:
    """A supervisor's pool from 1 to 8 workers, and its steps so far. Beyond its policy it only keeps the bounds."""

    MINIMUM, MAXIMUM = 1, 8

    def __init__(self, chance):
        self.chance = chance
        self.size = self.MINIMUM
        self.policy = ScalingPolicy(chance.random)
        self.steps: list[tuple[float, int]] = []
        self.ready_at = 0.0  # when its newest worker can work

    def look(self, at, demand, idle, *, is_complete=True):
        step = self.policy.step(at, demand, idle, is_complete=is_complete and at >= self.ready_at)
        if step and self.MINIMUM <= self.size + step.by <= self.MAXIMUM:
            self.size += step.by
            self.steps.append((at, step.by))
            self.policy = ScalingPolicy(self.chance.random)
            if step.by > 0:
                self.ready_at = at + self.chance.uniform(0.1, 3.0)
        return step


def assert_does_not_thrash(host, seconds):
    for (earlier, _), (at, by) in pairwise(host.steps):
        assert at - earlier >= (GROW_AFTER_S[0] if by > 0 else SHRINK_AFTER_S[0])
    starts = [at for at, by in host.steps if by > 0]
    room = host.MAXIMUM - host.MINIMUM
    for number, at in enumerate(starts):
        in_this_minute = sum(at <= other < at + 60 for other in starts[number:])
        assert in_this_minute <= room + 60 / SHRINK_AFTER_S[0]
    assert len(starts) <= room + seconds / SHRINK_AFTER_S[0]


def test_whatever_is_seen_a_pool_does_not_thrash():
    """Samples at random, also ones that no broker would give, late ones, and ones that flap with any period."""
    seconds = 300
    for seed in range(2000):
        chance = random.Random(seed)
        host = Host(chance)
        kinds = chance.sample([UNMET, SPARE, QUIET, PAUSED, Demand(3, 3)], chance.randint(1, 4))
        period = chance.choice([1, 2, 3, 5, 10, 30, 45, 90])
        is_regular = chance.random() < 0.5
        at, number = 0.0, 0
        while at < seconds:
            at += STALE_S * 2 if chance.random() < 0.01 else chance.uniform(0.9, 1.4) * SAMPLE_S
            number += 1
            demand = kinds[number // period % len(kinds)] if is_regular else chance.choice(kinds)
            host.look(at, demand, chance.randint(0, host.size), is_complete=chance.random() < 0.99)
        assert_does_not_thrash(host, seconds)


class Load:
    """A queue that several hosts serve: jobs come at a rate that changes, and take a time that does not."""

    def __init__(self, chance, hosts, rates, job_s):
        self.hosts = [Host(chance) for _ in range(hosts)]
        self.chance = chance
        self.rates = rates
        self.job_s = job_s
        self.waiting_jobs = 0.0
        self.next_look = [chance.random() for _ in self.hosts]

    def run(self, seconds, tick_s=0.25):
        for number in range(int(seconds / tick_s)):
            now = number * tick_s
            working = sum(host.size - (now < host.ready_at) for host in self.hosts)
            offered = self.waiting_jobs + self.rates(now) * tick_s
            done = min(offered, working / self.job_s * tick_s)
            self.waiting_jobs = offered - done
            busy = min(1.0, done / (working / self.job_s * tick_s))
            for index, host in enumerate(self.hosts):
                if now >= self.next_look[index]:
                    self.next_look[index] = now + SAMPLE_S * self.chance.uniform(1.0, 1.1)
                    idle = sum(self.chance.random() > busy for _ in range(host.size))
                    ready = int(self.waiting_jobs)
                    host.look(now, Demand(ready, 0 if ready else sum(host.size for host in self.hosts)), idle)


def test_pools_follow_random_loads_without_thrashing():
    for seed in range(150):
        chance = random.Random(seed)
        levels = [chance.choice([0.0, 1.0, 3.0, 6.0, 20.0]) for _ in range(12)]
        length = chance.choice([5, 20, 50])
        load = Load(chance, 2, lambda now, rates=levels, s=length: rates[int(now / s) % len(rates)], job_s=1.0)
        load.run(600)
        for host in load.hosts:
            assert_does_not_thrash(host, 600)


def test_a_load_that_stays_leads_to_enough_workers_and_its_end_to_the_minimum():
    load = Load(random.Random(1), 1, lambda now: 5.0 if now < 200 else 0.0, job_s=1.0)
    [host] = load.hosts
    load.run(200)
    assert host.size >= 5
    load.run(900)
    assert host.size == host.MINIMUM


@pytest.mark.parametrize(("hosts", "surplus"), [(2, 0.4), (8, 1.7)])
def test_hosts_that_see_the_same_need_do_not_all_grow(hosts, surplus):
    """One more worker is needed, and takes a second to start. Most hosts see it before their own wait is over."""
    added = []
    for seed in range(300):
        chance = random.Random(seed)
        fleet = [Host(chance) for _ in range(hosts)]
        phases = [chance.random() for _ in fleet]
        for at, host in sorted(
            (
                (phase + number * SAMPLE_S, host)
                for phase, host in zip(phases, fleet, strict=True)
                for number in range(10)
            ),
            key=lambda look: look[0],
        ):
            is_met = any(other.steps and at >= other.steps[0][0] + 1 for other in fleet)
            host.look(at, SPARE if is_met else UNMET, 0)
        added.append(sum(host.size - host.MINIMUM for host in fleet))
    assert min(added) == 1
    assert sum(added) / len(added) - 1 < surplus
