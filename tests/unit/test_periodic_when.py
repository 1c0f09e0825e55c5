"""When periodic tasks are due: in words, in time zones, and in the nights when clocks change."""

from __future__ import annotations

import sys
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from flask_backend import RegistrationError
from flask_backend.periodic import when
from flask_backend.periodic.when import Cron, Every, Passed
from flask_backend.zones import check_zone

PRAGUE, LORD_HOWE = "Europe/Prague", "Australia/Lord_Howe"


def at(*parts: int, zone: str = "UTC", fold: int = 0) -> int:
    return int(datetime(*parts, tzinfo=ZoneInfo(zone), fold=fold).timestamp())


def slots(expression: str, zone: str, day: tuple[int, int, int]) -> list[str]:
    """Return the times, with their offsets, at which an expression matches in a day and a half around a night."""
    begin = at(*day, zone=zone) - 1
    cron, end = Cron.of(expression, zone), begin + 6 * 3600
    found, last = [], begin
    while (last := cron.next_after(last)) < end:
        found.append(datetime.fromtimestamp(last, ZoneInfo(zone)).strftime("%H:%M%z"))
    return found


# The table of docs/guide/periodic.md: as Debian's cron. A fixed time that is left out comes as soon as the clock has
# been changed, one that comes twice is scheduled once; intervals follow the clock.
NIGHTS = [
    (PRAGUE, (2026, 3, 29), "30 2 * * *", ["03:00+0200"]),
    (PRAGUE, (2026, 3, 29), "0,30 2 * * *", ["03:00+0200"]),
    (PRAGUE, (2026, 3, 29), "30 1 * * *", ["01:30+0100"]),
    (PRAGUE, (2026, 3, 29), "*/30 1-3 * * *", ["01:00+0100", "01:30+0100", "03:00+0200", "03:30+0200"]),
    (
        PRAGUE,
        (2026, 3, 29),
        "0 * * * *",
        ["00:00+0100", "01:00+0100", "03:00+0200", "04:00+0200", "05:00+0200", "06:00+0200"],
    ),
    (PRAGUE, (2026, 10, 25), "30 2 * * *", ["02:30+0200"]),
    (PRAGUE, (2026, 10, 25), "30 3 * * *", ["03:30+0100"]),
    (PRAGUE, (2026, 10, 25), "*/30 2 * * *", ["02:00+0200", "02:30+0200", "02:00+0100", "02:30+0100"]),
    (
        PRAGUE,
        (2026, 10, 25),
        "0 * * * *",
        ["00:00+0200", "01:00+0200", "02:00+0200", "02:00+0100", "03:00+0100", "04:00+0100"],
    ),
    # Half an hour: 02:00 becomes 02:30 in October, and 02:00 becomes 01:30 in April.
    (LORD_HOWE, (2026, 10, 4), "15 2 * * *", ["02:30+1100"]),
    (LORD_HOWE, (2026, 10, 4), "30 2 * * *", ["02:30+1100"]),
    (LORD_HOWE, (2026, 10, 4), "*/15 2 * * *", ["02:30+1100", "02:45+1100"]),
    (LORD_HOWE, (2026, 4, 5), "45 1 * * *", ["01:45+1100"]),
    (
        LORD_HOWE,
        (2026, 4, 5),
        "*/15 1 * * *",
        ["01:00+1100", "01:15+1100", "01:30+1100", "01:45+1100", "01:30+1030", "01:45+1030"],
    ),
    (LORD_HOWE, (2026, 4, 5), "*/15 2 * * *", ["02:00+1030", "02:15+1030", "02:30+1030", "02:45+1030"]),
]


@pytest.mark.parametrize(("zone", "day", "expression", "expected"), NIGHTS)
def test_the_nights_when_clocks_change_are_those_of_debians_cron(zone, day, expression, expected):
    assert slots(expression, zone, day) == expected


@pytest.mark.parametrize(("zone", "day", "expression"), [night[:3] for night in NIGHTS])
def test_slots_do_not_depend_on_when_one_begins_to_look(zone, day, expression):
    cron, begin = Cron.of(expression, zone), at(*day, zone=zone) - 3600
    end = begin + 8 * 3600
    all_slots = [begin]
    while (following := cron.next_after(all_slots[-1])) < end:
        all_slots.append(following)
    for moment in range(begin, end, 300):
        later = [slot for slot in all_slots[1:] if slot > moment]
        assert cron.next_after(moment) == (later[0] if later else following)
        passed = [slot for slot in all_slots[1:] if slot <= moment]
        assert cron.passed(begin, moment) == (Passed(passed[-1], len(passed)) if passed else None)


def test_a_slot_is_a_whole_second_also_for_times_in_between():
    cron = Cron.of("* * * * *", "UTC")
    assert cron.next_after(119.999) == 120
    assert cron.next_after(120) == 180
    assert cron.next_after(120.001) == 180
    assert Every(60).next_after(119.999) == 120
    assert Every(60).next_after(120) == 180


@pytest.mark.parametrize("expression", ["* * * * *", "* * 1 * *", "0 0 1 1 *"])
def test_years_without_a_scheduler_are_counted_within_a_second(expression):
    now = at(2026, 11, 29, 12, 0)
    cron = Cron.of(expression, PRAGUE)
    passed = cron.passed(now - 5 * 366 * 86400, now)
    assert cron.next_after(passed.newest) > now
    assert passed.newest <= now
    assert passed.count <= when.MAX_COUNTED


def test_intervals_are_multiples_since_the_epoch():
    assert Every(3600).passed(3599, 7200) == Passed(7200, 2)
    assert Every(3600).passed(3600, 7199) is None
    assert Every(7).next_after(0) == 7


@pytest.mark.parametrize(
    ("every", "words"),
    [
        (1, "Every second"),
        (90, "Every 90 seconds"),
        (timedelta(hours=7), "Every 7 hours"),
        (86400, "Every day"),
        (60.0, "Every minute"),
        (3600 * 24 * 1000, "Every 1,000 days"),
    ],
)
def test_intervals_in_words(every, words):
    assert Every.of(every).words() == words


@pytest.mark.parametrize("every", [0, 0.5, 1.5, -1, True, "5", None, float("nan"), float("inf"), timedelta(0), 2**32])
def test_other_intervals_are_refused(every):
    with pytest.raises(RegistrationError, match="is not an interval; expected whole seconds, at least 1"):
        Every.of(every)


@pytest.mark.parametrize(
    ("expression", "words"),
    [
        ("*/5 * * * *", "Every fifth minute of every hour"),
        ("@daily", "At 00:00 every day"),
        ("@weekly", "At 00:00 on Sunday"),
        ("0 0 31 * *", "At 00:00 on the 31st day of every month"),
        ("0 0 1,11,12,22,23 * *", "At 00:00 on the first, the 11th, the 12th, the 22nd, and the 23rd day of month"),
        ("  30  2 * *  MON-FRI ", "At 02:30 on Monday through Friday"),
    ],
)
def test_expressions_in_words(expression, words):
    assert Cron.of(expression, "UTC").words() == words


def test_the_five_aliases_are_those_of_crontab():
    for alias, fields in when.ALIASES.items():
        assert Cron.of(alias, PRAGUE).next_after(0) == Cron.of(fields, PRAGUE).next_after(0)


@pytest.mark.parametrize(
    ("expression", "why"),
    [
        ("0 0 30 2 *", "Bad day-of-month"),
        ("0 0 31 4,6 *", "Bad day-of-month"),
        ("60 * * * *", "Bad minute"),
        ("1--100000000 * * * *", "Bad minute"),
        ("0 0 0 * * *", "a field of seconds is not supported; use every="),
        ("* * * *", "expected five fields"),
        ("", "expected five fields"),
        ("@midnight", "write @daily"),
        ("@annually", "write @yearly"),
        ("@reboot", "or one of @hourly, @daily"),
        (5, "is not a cron expression"),
        (None, "is not a cron expression"),
    ],
)
def test_other_expressions_are_refused_with_the_reason(expression, why):
    with pytest.raises(RegistrationError, match=why):
        Cron.of(expression, "UTC")


@pytest.mark.parametrize("expression", ["*/90 * * * *", "0 */24 * * *", "5-10/60 * * * *"])
def test_a_step_as_large_as_its_field_is_warned_about(expression):
    with pytest.warns(UserWarning, match="only the first one matches. For such an interval use every="):
        Cron.of(expression, "UTC")


def test_a_step_that_fits_is_not_warned_about():
    Cron.of("*/59 */23 */30 */11 */6", "UTC")


def test_without_cronsim_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "cronsim", None)
    with pytest.raises(RegistrationError, match=r"pip install 'flask-backend\[cron\]'"):
        Cron.of("@daily", "UTC")
    assert Cron("@daily", "UTC").words() == "@daily"
    assert Every.of(5).next_after(0) == 5


def test_without_a_time_zone_database_utc_is_known_and_the_error_of_others_names_it(monkeypatch):
    def missing(_name):
        raise LookupError

    monkeypatch.setattr("flask_backend.zones.ZoneInfo", missing)
    monkeypatch.setattr("flask_backend.zones.available_timezones", set)
    assert check_zone("UTC") == "UTC"
    assert Cron.of("@daily", "UTC").next_after(0) == 86400
    with pytest.raises(ValueError, match="'Asia/Nowhere', which cannot be loaded: this machine has no time zone"):
        check_zone("Asia/Nowhere")


def test_time_zones_far_from_utc():
    assert Cron.of("0 0 * * *", "Pacific/Apia").next_after(at(2026, 6, 1)) == at(2026, 6, 2, zone="Pacific/Apia")
    assert datetime.fromtimestamp(Cron.of("45 23 * * *", "Asia/Kathmandu").next_after(0), UTC).minute == 15
