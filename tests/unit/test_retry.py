from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.hostile import MAKERS, Meta

from flask_backend import Bury, ConfigError, Discard, OptionError, Retry, RetryLater, TaskDecision
from flask_backend.retry import Attempts, BuryJob, DiscardJob, ReleaseJob, after_crash, after_failure
from flask_backend.tracebacks import name_of

ERROR = ValueError("no luck")


def _after(failures: int, jitter: float = 0.0, retry: Retry | None = None, error: BaseException = ERROR):
    return after_failure(retry or Retry(), Attempts(releases=failures - 1, buries=0), error, lambda: jitter)


def test_the_delay_doubles_from_one_second():
    assert [_after(n) for n in range(1, 10)] == [ReleaseJob(2**n) for n in range(9)]


def test_the_tenth_failure_buries():
    assert _after(10) == BuryJob("failed 10 times")


@given(st.integers(0, 100), st.integers(0, 5), st.floats(0, 1), st.floats(0.001, 600), st.floats(0, 1))
def test_a_delay_is_whole_seconds_from_one_to_the_longest(releases, buries, random, min_backoff, jitter):
    retry = Retry(min_backoff=min_backoff, max_backoff=600, jitter=jitter)
    decision = after_failure(retry, Attempts(releases, buries), ERROR, lambda: random)
    if isinstance(decision, ReleaseJob):
        assert isinstance(decision.delay_s, int)
        assert 1 <= decision.delay_s <= 600


@given(st.integers(1, 8), st.floats(0, 0.999), st.floats(0, 0.999))
def test_each_delay_is_longer_than_the_one_before(failures, jitter, next_jitter):
    assert _after(failures, jitter).delay_s < _after(failures + 1, next_jitter).delay_s or failures == 1


def test_a_kick_gives_another_ten_attempts():
    buried_once_and_kicked = Attempts(releases=9, buries=1)
    assert buried_once_and_kicked.number == 11
    assert Retry().allowed(buried_once_and_kicked) == 20
    assert isinstance(after_failure(Retry(), buried_once_and_kicked, ERROR, lambda: 0.0), ReleaseJob)


def test_without_a_limit_no_failure_buries():
    forever = Retry(max_retries=None, max_backoff=30)
    assert _after(100_000, retry=forever) == ReleaseJob(30)
    assert forever.allowed(Attempts(5, 0)) is None


def test_without_retries_the_first_failure_buries():
    assert _after(1, retry=Retry(max_retries=0)) == BuryJob("failed once")


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ConnectionError("x"), ReleaseJob(1)),
        (BrokenPipeError("x"), BuryJob("BrokenPipeError is not retried")),
        (KeyError("x"), BuryJob("KeyError is not retried")),
    ],
)
def test_never_goes_before_on_and_both_take_subclasses(error, expected):
    retry = Retry(on=(OSError, ValueError), never=BrokenPipeError)
    assert _after(1, retry=retry, error=error) == expected


def test_a_task_decides_itself_regardless_of_on_and_never():
    retry = Retry(on=OSError, never=TaskDecision)
    assert _after(1, retry=retry, error=RetryLater(30)) == ReleaseJob(30)
    assert _after(10, retry=retry, error=RetryLater(30)) == BuryJob("failed 10 times")
    assert _after(1, retry=retry, error=Bury("no such user")) == BuryJob("no such user")
    assert _after(99, retry=retry, error=Discard("too late")) == DiscardJob("too late")


def test_a_zero_delay_is_a_second():
    assert RetryLater(0).delay_s == 1
    with pytest.raises(OptionError, match="delay is 'soon'; expected seconds, a timedelta or a datetime"):
        RetryLater("soon")


@pytest.mark.parametrize("delay", [10**5000, float("nan"), float("inf"), -(10**400), "5", None, True, [1]], ids=type)
def test_an_invalid_delay_is_an_error_with_its_value(delay):
    with pytest.raises(OptionError, match="delay is "):
        RetryLater(delay)


@pytest.mark.parametrize("delay_s", [0, -5, 2**32, 10**5000, 1.5, "soon", None, True, object()], ids=type)
def test_a_delay_made_invalid_by_a_task_is_replaced_by_the_policys(delay_s):
    later = RetryLater(30)
    later.delay_s = delay_s
    assert _after(1, error=later) == ReleaseJob(1)


def test_an_exception_whose_class_cannot_be_tested_is_buried():
    for error in (MAKERS["__class__ raises"](), MAKERS["metaclass raises"]()):
        told = BuryJob(f"{name_of(error).rpartition('.')[2]} cannot be checked against its policy")
        assert _after(1, retry=Retry(on=BaseError), error=error) == told
        assert _after(1, retry=Retry(never=BaseError), error=error) == told
        assert _after(1, error=error) == ReleaseJob(1)
    assert _after(1, retry=Retry(on=KeyError), error=MAKERS["__class__ raises"]()).reason.endswith("against its policy")


class BaseError(ValueError, metaclass=Meta):
    """``isinstance`` fails on this class."""


def test_any_object_may_be_the_reason_of_a_decision():
    mute = MAKERS["str and repr raise"]()
    for reason, told in ((None, ""), (5, "5"), (mute, "(its str() fails)"), ("a\n\x1b[2J", r"a\n\x1b[2J")):
        assert _after(1, error=Bury(reason)) == BuryJob(told)
        assert _after(1, error=Discard(reason)) == DiscardJob(told)
    assert len(_after(1, error=Bury("x" * 10**7)).reason) == 1000


def test_the_third_crash_buries_and_earlier_ones_are_failures():
    assert after_crash(Retry(), Attempts(0, 0), 1, lambda: 0.0) == ReleaseJob(1)
    assert after_crash(Retry(), Attempts(0, 0), 3, lambda: 0.0) == BuryJob("it has crashed its worker 3 times")
    assert after_crash(Retry(max_retries=0), Attempts(0, 0), 1, lambda: 0.0) == BuryJob("failed once")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"max_retries": -1}, "max_retries is -1; expected a whole number from 0, or None"),
        ({"max_retries": True}, "max_retries is True"),
        ({"min_backoff": 0}, "min_backoff is 0 and max_backoff is 600"),
        ({"min_backoff": 10, "max_backoff": 5}, "with the first not above the second"),
        ({"max_backoff": float("nan")}, "max_backoff is nan"),
        ({"max_backoff": 2**32}, "max_backoff is 4294967296"),
        ({"jitter": 1.1}, "jitter is 1.1; expected a number from 0 to 1"),
        ({"on": "ValueError"}, "on has 'ValueError'; expected exception classes"),
        ({"never": (ValueError, int)}, "never has <class 'int'>"),
    ],
)
def test_an_invalid_policy_is_an_error_that_shows_what_is_valid(arguments, text):
    with pytest.raises(ConfigError, match=text):
        Retry(**arguments)


def test_a_setting_is_a_policy_or_a_mapping_of_its_numbers():
    assert Retry.from_setting("BACKEND_RETRY", {"max_retries": 3, "jitter": 0}) == Retry(max_retries=3, jitter=0)
    assert Retry.from_setting("BACKEND_RETRY", Retry(5)) == Retry(max_retries=5)
    with pytest.raises(ConfigError, match=r"BACKEND_RETRY has on; expected only jitter, max_backoff, max_retries"):
        Retry.from_setting("BACKEND_RETRY", {"on": "ValueError"})
    with pytest.raises(ConfigError, match=r"BACKEND_RETRY is 5; expected a Retry\(\.\.\.\) or a mapping"):
        Retry.from_setting("BACKEND_RETRY", 5)
