from __future__ import annotations

import click
import pytest

from flask_backend.cli import pools
from flask_backend.cli.commands.dev import parse_workers_or_none
from flask_backend.cli.parameters import parse_queue, parse_workers
from flask_backend.cli.pools import count_workers, memory_to_share
from flask_backend.supervisor import Bounds, Pool


@pytest.mark.parametrize(
    ("value", "bounds"), [("1", (1, 1)), ("4", (4, 4)), ("2..8", (2, 8)), ("3..3", (3, 3)), ("007", (7, 7))]
)
def test_workers_are_a_number_or_a_range(value, bounds):
    assert parse_workers(value) == bounds
    assert parse_queue(f"q={value}") == ("q", bounds)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("8..2", "'8..2': the minimum is above the maximum, expected 2..8"),
        ("0..3", "'0..3': a queue has at least one worker"),
        ("0", "'0': a queue has at least one worker"),
        ("9" * 10, "'9999999999' is too large a number of workers"),
        ("1.." + "9" * 5000, "is too large a number of workers"),
        *(
            (value, f"{value!r} is not a number of workers: expected one such as 4, or a range, 2..8")
            for value in (
                *("2..", "..8", "..", "2...8", "2..4..8", "2.8", "2-8", "2:8", "2…8", "-1", "-1..3", "+2", "2..+8"),
                *("", " ", " 2", "2 ..8", "2..8\n", "1e3", "1_000", "auto", "max", "٤", "²", "2,8"),
            )
        ),
    ],
)
def test_what_is_not_a_number_of_workers_is_refused(value, reason):
    for parse, argument in ((parse_workers, value), (parse_queue, f"q={value}")):
        with pytest.raises(click.BadParameter) as refusal:
            parse(argument)
        assert reason in refusal.value.message
        assert len(refusal.value.message) < 120


def test_a_queue_needs_no_number():
    assert parse_queue("com.example/default") == ("com.example/default", None)


def test_dev_takes_the_same_numbers_and_none():
    assert [parse_workers_or_none(value) for value in ("0", "1", "2..8")] == [None, "1", "2..8"]
    with pytest.raises(click.BadParameter):
        parse_workers_or_none("0..3")


def test_memory_is_nine_tenths_and_descriptors_are_those_for_the_maximum(monkeypatch):
    monkeypatch.setattr(pools, "available_memory", lambda: 100 << 30)
    ranges = [Pool("a", Bounds(1, 6)), Pool("b", Bounds.fixed(2))]
    assert count_workers(ranges) == 8
    assert 80 << 30 < memory_to_share() < 90 << 30
