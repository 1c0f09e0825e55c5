"""Bodies as text that is safe to print."""

from __future__ import annotations

import pytest

from flask_backend.cli.output import wrapped
from flask_backend.message import scheduled_at
from flask_backend.operations.bodies import call_in, show_at_length, show_body


@pytest.mark.parametrize(
    ("body", "shown"),
    [
        (b'{"endpoint": "hello", "args": ["world"], "kwargs": {"loud": true}}', 'hello("world", loud=true)'),
        (b'{"endpoint": "hello", "id": 1}', '{"endpoint": "hello", "id": 1}'),
        (b'{"endpoint": 1}', '{"endpoint": 1}'),
        ('["äöü"]'.encode(), '["äöü"]'),
        (b"plain\ntext", r"plain\ntext"),
        (b"\x1b[31m\xff", r"\x1b[31m\xff"),
        (b"", ""),
    ],
)
def test_any_body_is_one_line(body, shown):
    assert show_body(body) == shown


def test_terminal_control_characters_are_escaped():
    body = '{"endpoint": "\\u001b[2J", "args": ["\\ud800", "\x7f", "\u202e", "\u2028"]}'.encode()
    assert show_body(body) == r'\x1b[2J("\ud800", "\x7f", "\u202e", "\u2028")'
    assert show_body('["schön 日本"]'.encode()) == '["schön 日本"]'


def test_a_call_has_only_the_parts_of_one():
    assert call_in(b'{"endpoint": "hello"}').endpoint == "hello"
    assert call_in(b'{"endpoint": "hello", "to": "x"}') is None
    assert call_in(b"[]") is None


def test_json_is_indented():
    assert show_at_length('{"a": [1, "\u2028"]}'.encode()) == ["{", '  "a": [', "    1,", r'    "\u2028"', "  ]", "}"]


def test_text_is_shown_as_text_and_cut():
    assert show_at_length(b"one\n\ttwo") == ["one", "        two"]
    assert show_at_length(b"x" * 1200) == ["x" * 1000, "… 200 more characters: --raw writes them all"]


def test_bytes_are_shown_as_numbers_and_cut():
    lines = show_at_length(bytes(range(256)) + b"more")
    assert len(lines) == 17
    assert lines[6] == "000060  60 61 62 63 64 65 66 67 68 69 6a 6b 6c 6d 6e 6f  `abcdefghijklmno"
    assert lines[-1] == "… 4 more bytes: --raw writes them all"
    assert show_at_length(b"\x1b[2J") == [f"000000  {'1b 5b 32 4a':<48} .[2J"]


@pytest.mark.parametrize("depth", [500, 990, 5000, 30_000])
def test_json_that_is_nested_too_deeply_is_text(depth):
    assert show_at_length(b"[" * depth + b"]" * depth)
    assert show_body(b"[" * depth + b"]" * depth)


@pytest.mark.parametrize("at", [None, "1767225600", -1, 0, 1e300, float("nan"), [1]])
def test_a_missing_time_is_not_shown(at):
    assert scheduled_at({"at": at}) is None


def test_the_time_of_scheduling_is_shown():
    assert scheduled_at({"at": 1767225600.123}) == 1767225600.123
    assert scheduled_at({}) is None


def test_lines_break_only_at_spaces():
    assert wrapped("say `flask-backend resume a-b` now", 20, "  ") == "say `flask-backend\n  resume a-b` now"
