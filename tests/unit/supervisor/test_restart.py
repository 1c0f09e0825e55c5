from __future__ import annotations

import pytest

from flask_backend.deaths import ExitKind
from flask_backend.supervisor.restart import AT_ONCE, FORGIVEN_AFTER_S, MAX_DELAY_S, Breaker, RestartPolicy

ABNORMAL = [kind for kind in ExitKind if kind is not ExitKind.PLANNED]


def _policy() -> RestartPolicy:
    return RestartPolicy(random=lambda: 1.0)


def test_a_planned_exit_is_replaced_at_once_every_time():
    policy = _policy()
    assert [policy.delay_s(ExitKind.PLANNED, 0.0, 0) for _ in range(1000)] == [0.0] * 1000


@pytest.mark.parametrize("kind", ABNORMAL)
def test_the_first_ones_are_replaced_at_once_then_delays_grow_up_to_the_maximum(kind):
    policy = _policy()
    delays = [policy.delay_s(kind, 0.0, 0) for _ in range(AT_ONCE[kind] + 20)]
    assert delays[: AT_ONCE[kind]] == [0.0] * AT_ONCE[kind]
    growing = delays[AT_ONCE[kind] :]
    assert growing == sorted(growing)
    assert growing[0] == pytest.approx(0.1)
    assert growing[-1] == MAX_DELAY_S


@pytest.mark.parametrize("kind", ABNORMAL)
def test_a_quiet_time_clears_the_record(kind):
    policy = _policy()
    first = policy.delay_s(kind, 0.0, 0)
    for _ in range(AT_ONCE[kind] + 10):
        policy.delay_s(kind, 0.0, 0)
    assert policy.delay_s(kind, FORGIVEN_AFTER_S + 1, 0) == first


def test_a_pool_that_cannot_work_never_restarts_fast_again():
    policy, now, restarts = _policy(), 0.0, 0
    while now < 600:
        now += policy.delay_s(ExitKind.CANNOT_WORK, now, 0)
        restarts += 1
    assert restarts < 40


@pytest.mark.parametrize("kind", ABNORMAL)
def test_a_pool_that_gets_work_done_has_no_growing_delays(kind):
    policy = _policy()
    first = policy.delay_s(kind, 0.0, 0)
    assert {policy.delay_s(kind, 0.0, progress) for progress in range(1, 100)} == {first}


def test_jitter_takes_at_most_half():
    lazy = RestartPolicy(random=lambda: 0.0)
    assert lazy.delay_s(ExitKind.CANNOT_WORK, 0.0, 0) == pytest.approx(0.05)


def test_the_breaker_trips_at_the_tenth_exit_within_a_minute_without_a_finished_job():
    breaker = Breaker()
    assert [breaker.trips(second, progress=5, size=4) for second in range(10)] == [False] * 9 + [True]


@pytest.mark.parametrize(("size", "limit"), [(1, 10), (5, 10), (6, 12), (200, 400)])
def test_the_breaker_of_a_large_pool_takes_two_deaths_of_each_child(size, limit):
    breaker = Breaker()
    assert [breaker.trips(0.0, progress=5, size=size) for _ in range(limit)] == [False] * (limit - 1) + [True]


def test_the_numbers_of_the_breaker_can_be_chosen():
    breaker = Breaker(limit=3, window_s=5)
    assert [breaker.trips(second, progress=0, size=200) for second in (0, 1, 6.5, 7, 7.5)] == [False] * 4 + [True]


def test_a_pool_that_gets_work_done_never_trips_the_breaker():
    breaker = Breaker()
    assert not any(breaker.trips(n / 100, progress=n // 9, size=1) for n in range(1000))


def test_exits_that_are_far_apart_never_trip_the_breaker():
    breaker = Breaker()
    assert not any(breaker.trips(n * 6.7, progress=0, size=1) for n in range(100))
