"""Text from other programs, made safe to show: a terminal, a log or a table does not act on it. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence

from .message import cut

MAX_NAME = 200  # characters of a name that another program has chosen

# C0, DEL and C1; the line and paragraph separators; what changes the direction of a text; half a surrogate pair, which
# no encoding has.
_CONTROLS = "\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff"
_IN_LINES = re.compile(f"[\n\t{_CONTROLS}]")
_IN_TEXTS = re.compile(f"[{_CONTROLS}]")


def visible(text: str, limit: int | None = None) -> str:
    r"""Return a text in one line, with an escape such as ``\x1b`` for each control character.

    ``limit`` is the number of characters that it may have.
    """
    return _replaced(_IN_LINES, text, limit)


def visible_lines(text: str, limit: int | None = None) -> str:
    """Do the same to a text that may have several lines: line breaks and tabs stay as they are."""
    return _replaced(_IN_TEXTS, text, limit)


def json_visible(text: str) -> str:
    """Write the control characters in a text that is JSON as JSON's own escapes: it means the same."""
    return text if text.isprintable() else _IN_TEXTS.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def listed(names: Sequence[str], most: int = 10) -> str:
    """Return the first names of a list that may be long, and how many more there are."""
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(visible(name, MAX_NAME) for name in names[:most]) + more


def _replaced(controls: re.Pattern[str], text: str, limit: int | None) -> str:
    if limit is not None:
        text = cut(text, limit)
    if text.isprintable():
        return text
    text = controls.sub(lambda found: found[0].encode("unicode_escape").decode(), text)
    return text if limit is None else cut(text, limit)
