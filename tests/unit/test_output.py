from __future__ import annotations

import io
import json
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flask_backend.cli.output import (
    Column,
    _lay_out,
    count_of,
    cut_to_width,
    echo,
    echo_json,
    echo_table,
    show_seconds,
    styled,
    width_of,
)
from flask_backend.visible import visible_lines

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters()), inner),
    max_leaves=10,
)


@given(VALUES, st.sampled_from(["utf-8", "ascii", "latin-1"]))
def test_any_json_is_valid_and_shows_no_control_characters(value, encoding):
    stdout = io.TextIOWrapper(io.BytesIO(), encoding, errors="backslashreplace")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", stdout)
        echo_json(value)
    stdout.flush()
    text = stdout.buffer.getvalue().decode()  # click writes UTF-8 where the encoding is ASCII
    assert visible_lines(text) == text
    assert json.loads(text, parse_constant=pytest.fail) == with_names(value)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text("aä"),
        lambda inner: st.lists(inner) | st.dictionaries(st.text("aä"), inner),
        max_leaves=10,
    )
)
def test_json_is_indented_as_by_the_standard_library(value):
    stdout = io.TextIOWrapper(io.BytesIO(), "utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", stdout)
        echo_json(value)
    stdout.flush()
    assert stdout.buffer.getvalue().decode() == json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def test_an_iterator_is_printed_while_it_is_read(capsys):
    printed = 0

    def read():
        nonlocal printed
        for _ in range(1000):
            yield {"text": "x" * 1000, "none": iter([])}
            printed += len(capsys.readouterr().out)

    echo_json({"all": read()})
    assert printed > 900_000


def test_json_of_iterators_is_that_of_lists(capsys):
    echo_json(iter([1, iter([]), {"a": iter([2])}]))
    assert capsys.readouterr().out == json.dumps([1, [], {"a": [2]}], indent=2) + "\n"


def with_names(value):
    """Return a value with names in place of the numbers that JSON does not have."""
    if isinstance(value, dict):
        return {name: with_names(each) for name, each in value.items()}
    if isinstance(value, list):
        return [with_names(each) for each in value]
    return NAMES.get(repr(value), value) if isinstance(value, float) else value


NAMES = {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}


def test_no_cell_of_a_table_reaches_the_terminal_unescaped(capsys):
    echo_table([Column("a\tb"), Column("c")], [["x\n\x1b[2J", "\u202ey"]])
    assert capsys.readouterr().out.splitlines()[1:] == [r"x\n\x1b[2J  \u202ey"]


def test_a_printed_text_keeps_its_lines_and_its_style(capsys):
    echo("a\n\tb\x1b[2J\r\x9b", bold=True)
    assert capsys.readouterr().out == "a\n\tb\\x1b[2J\\r\\x9b\n"


TITLES = st.builds(Column, st.just("x"), st.booleans(), st.none() | st.integers(1, 40))


@given(st.lists(st.tuples(TITLES, st.integers(1, 250)), min_size=1, max_size=12), st.integers(10, 200))
def test_no_line_of_a_table_is_wider_than_the_terminal_and_no_column_is_left_out(table, room):
    columns, widths = zip(*table, strict=True)
    lines = _lay_out(columns, widths, room)
    assert [place.column for line in lines for place in line] == list(range(len(columns)))
    for line in lines:
        assert sum(place.gap + place.width for place in line) <= room
        assert all(0 < place.width <= widths[place.column] for place in line)
    if sum(widths) + 2 * (len(widths) - 1) <= room:
        assert [place.width for place in lines[0]] == list(widths)


def test_a_text_that_may_be_cut_gets_the_remaining_width():
    columns = [Column("id", is_number=True), Column("message", least=10), Column("state")]
    [line] = _lay_out(columns, [5, 100, 8], 40)
    assert [place.width for place in line] == [5, 23, 8]


def test_leading_texts_have_their_own_line_in_a_narrow_terminal():
    columns = [Column("queue"), Column("paused"), *(Column("n", is_number=True) for _ in range(4))]
    assert [[place.column for place in line] for line in _lay_out(columns, [20, 10, 9, 9, 9, 9], 50)] == [
        [0, 1],
        [2, 3, 4, 5],
    ]


def test_without_a_terminal_a_row_is_one_plain_line(capsys):
    columns = [Column("queue"), Column("ready", is_number=True), Column("message", least=5)]
    echo_table(columns, [["a", "5", "x" * 500], ["日本", "12345", "y"]], [{"fg": "red"}, {}])
    assert capsys.readouterr().out.splitlines() == [
        "queue  ready  message",
        "a          5  " + "x" * 500,
        "日本   12345  y",
    ]


@given(st.text(st.characters(codec="utf-8")), st.integers(1, 50))
def test_a_text_is_cut_to_the_available_columns(text, columns):
    shown = cut_to_width(text, columns)
    assert width_of(shown) <= columns
    assert shown == text or (shown.endswith("…") and text.startswith(shown[:-1]))
    assert shown == text or width_of(text) > columns


def test_color_is_used_only_where_it_is_wanted(monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert styled("x", fg="red") == "\x1b[31mx\x1b[0m"
    assert styled("x") == "x"
    monkeypatch.setenv("NO_COLOR", "1")
    assert styled("x", fg="red") == "x"


def test_json_may_contain_characters_that_text_cannot(capsys):
    echo_json({"half a pair": "\ud800", "whole": "ä😀"})
    out = capsys.readouterr().out
    assert json.loads(out) == {"half a pair": "\ud800", "whole": "ä😀"}
    assert "ä😀" in out


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0, "0s"), (-3, "0s"), (0.6, "1s"), (59, "59s"), (125, "2m5s"), (10_800, "3h"), (10_805, "3h"), (352_800, "4d2h")],
)
def test_a_duration_has_at_most_two_units(seconds, shown):
    assert show_seconds(seconds) == shown


def test_one_is_singular():
    assert [count_of(n, "job") for n in (0, 1, 2, 12_345)] == ["0 jobs", "1 job", "2 jobs", "12,345 jobs"]
