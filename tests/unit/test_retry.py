from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from flask_backend.retry import MAX_DELAY_S, Attempts, Bury, Release, after_failure


def _after(failures: int, jitter: float = 0.0) -> Release | Bury:
    return after_failure(Attempts(releases=failures - 1, buries=0), lambda: jitter)


def test_the_delay_doubles_from_one_second():
    assert [_after(n) for n in range(1, 10)] == [Release(2**n) for n in range(9)]


def test_the_tenth_failure_buries():
    assert _after(10) == Bury("failed 10 times")


@given(st.integers(0, 100), st.integers(0, 5), st.floats(0, 1))
def test_a_delay_is_whole_seconds_from_one_to_ten_minutes(releases, buries, jitter):
    decision = after_failure(Attempts(releases, buries), lambda: jitter)
    if isinstance(decision, Release):
        assert isinstance(decision.delay_s, int)
        assert 1 <= decision.delay_s <= MAX_DELAY_S


@given(st.integers(1, 8), st.floats(0, 0.999), st.floats(0, 0.999))
def test_each_delay_is_longer_than_the_one_before(failures, jitter, next_jitter):
    assert _after(failures, jitter).delay_s < _after(failures + 1, next_jitter).delay_s or failures == 1


def test_a_kick_gives_another_ten_attempts():
    buried_once_and_kicked = Attempts(releases=9, buries=1)
    assert buried_once_and_kicked.number == 11
    assert buried_once_and_kicked.allowed == 20
    assert isinstance(after_failure(buried_once_and_kicked, lambda: 0.0), Release)
