"""Text from other programs, made safe to show."""

from __future__ import annotations

import json
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flask_backend.visible import json_visible, listed, visible, visible_lines

# Control characters, line separators, surrogates; and by name, those that change the direction.
UNSAFE = [chr(code) for code in range(0x110000) if unicodedata.category(chr(code)) in ("Cc", "Zl", "Zp", "Cs")]
UNSAFE += "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"


def test_each_control_character_is_shown_as_an_escape():
    for char in UNSAFE:
        assert visible(f"a{char}b") == f"a{char.encode('unicode_escape').decode()}b"
        assert visible_lines(f"a{char}b") == (f"a{char}b" if char in "\n\t" else visible(f"a{char}b"))


@pytest.mark.parametrize("text", ["", "plain", "grüße 日本", "👨‍👩‍👧 is one", "10\u202f000\xa0€", "می‌خواهم", "C:\\x1b"])
def test_all_other_characters_stay(text):
    assert visible(text) == visible_lines(text) == json_visible(text) == text


@given(st.text(st.characters()), st.integers(1, 30))
def test_a_limit_counts_the_escapes(text, limit):
    for show in (visible, visible_lines):
        assert len(show(text, limit)) <= limit
        assert show(show(text, limit), limit) == show(text, limit)
        assert show(text).startswith(show(text, limit).removesuffix("…"))


@given(st.text(st.characters()), st.booleans())
def test_json_means_the_same(text, ensure_ascii):
    shown = json_visible(json.dumps({text: [text]}, ensure_ascii=ensure_ascii, indent=1))
    assert json.loads(shown) == {text: [text]}
    assert visible_lines(shown) == shown


def test_a_long_list_is_counted():
    assert listed(["a", "b\n"]) == r"a, b\n"
    assert listed([str(n) for n in range(5000)], 3) == "0, 1, 2 and 4,997 more"
