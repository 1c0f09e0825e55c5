from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flask_backend import OptionError
from flask_backend.durations import MAX_SECONDS
from flask_backend.options import DEFAULT_PRIORITY, Options, PutOptions


def test_without_options_a_job_is_put_with_the_usual_values():
    assert Options().resolve(120) == PutOptions(DEFAULT_PRIORITY, 0, 120)


@pytest.mark.parametrize(
    ("delay", "seconds"), [(60, 60), (0.1, 1), (timedelta(minutes=2), 120), (timedelta(microseconds=1), 1), (0, 0)]
)
def test_a_delay_is_rounded_up_to_whole_seconds(delay, seconds):
    assert Options(delay=delay).resolve(120).delay_s == seconds


def test_an_aware_time_is_counted_from_when_the_job_is_put():
    soon = Options(delay=datetime.now(UTC) + timedelta(hours=1))
    assert 3599 <= soon.resolve(120).delay_s <= 3600
    past = datetime.now(UTC).astimezone() - timedelta(hours=1)
    assert Options(delay=past).resolve(120).delay_s == 0


def test_omitted_options_come_from_the_defaults():
    defaults = Options(delay=5, priority=1, ttr=30)
    assert Options(priority=0).over(defaults) == Options(delay=5, priority=0, ttr=30)
    assert Options(delay=0).over(defaults).resolve(120) == PutOptions(1, 0, 30)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"delay": -1}, "delay is -1; expected from 0 to 4294967295 seconds"),
        ({"delay": "60"}, "delay is '60'; expected seconds, a timedelta or a datetime with a time zone"),
        ({"delay": True}, "delay is True; expected seconds"),
        ({"delay": float("inf")}, "delay is inf; expected seconds"),
        ({"delay": timedelta(days=-1)}, "expected from 0"),
        ({"delay": datetime(2030, 1, 1)}, r"has no time zone: add one, for example datetime.now\(UTC\)"),  # noqa: DTZ001
        ({"delay": MAX_SECONDS + 1}, "delay is 4294967296"),
        ({"ttr": 0}, "ttr is 0; expected from 1 to"),
        ({"ttr": None, "priority": -1}, r"priority is -1; expected a whole number from 0 \(first\) to 4294967295"),
        ({"priority": 2**32}, "priority is 4294967296"),
        ({"priority": 1.5}, "priority is 1.5"),
        ({"priority": False}, "priority is False"),
    ],
)
def test_a_value_that_the_wire_cannot_carry_is_an_error_with_the_limits(options, text):
    with pytest.raises(OptionError, match=text):
        Options(**options)


@given(
    st.one_of(st.none(), st.floats(), st.integers(), st.timedeltas(), st.datetimes(timezones=st.just(UTC))),
    st.one_of(st.none(), st.integers()),
    st.one_of(st.none(), st.floats(), st.integers()),
)
def test_accepted_options_fit_the_protocol(delay, priority, ttr):
    try:
        put = Options(delay, priority, ttr).resolve(120)
    except OptionError:
        return
    for number, least in ((put.priority, 0), (put.delay_s, 0), (put.ttr_s, 1)):
        assert isinstance(number, int)
        assert least <= number < 2**32
