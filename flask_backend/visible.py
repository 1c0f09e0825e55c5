"""Text from other programs, made safe to show: it has no effect on a terminal, a log or a table. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence

from .message import cut

MAX_NAME = 200  # characters of a name that another program has chosen

# C0, DEL and C1; the line and paragraph separators; characters that change the direction of text; lone surrogates,
# which cannot be encoded.
_CONTROLS = "\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff"
_IN_LINES = re.compile(f"[\n\t{_CONTROLS}]")
_IN_TEXTS = re.compile(f"[{_CONTROLS}]")


def visible(text: str, limit: int | None = None) -> str:
    r"""Return a text in one line, with an escape such as ``\x1b`` for each control character.

    ``limit`` is the maximum number of characters.
    """
    return _replaced(_IN_LINES, text, limit)


def visible_lines(text: str, limit: int | None = None) -> str:
    """Return a text of any number of lines, escaped like :func:`visible`; line breaks and tabs are kept."""
    return _replaced(_IN_TEXTS, text, limit)


def json_visible(text: str) -> str:
    """Return JSON with its control characters as JSON escapes, which does not change its meaning."""
    return text if text.isprintable() else _IN_TEXTS.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def listed(names: Sequence[str], most: int = 10) -> str:
    """Return the first names of a list, and the number of further ones."""
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(visible(name, MAX_NAME) for name in names[:most]) + more


def _replaced(controls: re.Pattern[str], text: str, limit: int | None) -> str:
    if limit is not None:
        text = cut(text, limit)
    if text.isprintable():
        return text
    text = controls.sub(lambda found: found[0].encode("unicode_escape").decode(), text)
    return text if limit is None else cut(text, limit)
