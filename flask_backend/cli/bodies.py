"""What the body of a job says, as text that is safe to print: it may be anybody's."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from flask_backend.errors import MessageDecodeError
from flask_backend.message import Message, decode, decode_json, show_call
from flask_backend.visible import visible

_CALL = {"endpoint", "args", "kwargs", "headers"}
# So much is shown of a body that is no JSON: it only has to be recognized.
_MAX_TEXT = 1000
_MAX_HEX_BYTES = 256
_HEX_BYTES_A_LINE = 16


def wrapped(text: str, columns: int, indent: str = "") -> str:
    """Break a text into lines of so many columns, at spaces only: what is to be copied from it stays whole."""
    return textwrap.fill(text, columns, subsequent_indent=indent, break_on_hyphens=False, break_long_words=False)


def call_in(body: bytes) -> Message | None:
    """Return the call that a body is; None for any other message, which may have an endpoint among other things."""
    try:
        message, value = decode(body), decode_json(body)
    except MessageDecodeError:
        return None
    return message if set(value) <= _CALL else None


def show_body(body: bytes) -> str:
    """Return a body in one line: the call, or the JSON, or whatever it is."""
    call = call_in(body)
    if call is not None:
        return visible(show_call(call.endpoint, call.args, call.kwargs))
    try:
        return visible(json.dumps(decode_json(body), ensure_ascii=False))
    except MessageDecodeError:
        return visible(body.decode(errors="backslashreplace"))


def show_arguments(args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[str]:
    """Return the arguments of a call one by one, as :func:`show_call` shows them all."""
    named = {f"{name}=": value for name, value in kwargs.items()}
    return [
        f"{name}{json.dumps(value, ensure_ascii=False)}"
        for name, value in [*(("", arg) for arg in args), *named.items()]
    ]


def show_at_length(body: bytes) -> list[str]:
    """Return a body that is no call in many lines: as JSON, as text, or as the numbers of its first bytes."""
    try:
        return [visible(line) for line in json.dumps(decode_json(body), indent=2, ensure_ascii=False).split("\n")]
    except (MessageDecodeError, RecursionError):  # no JSON, or too deep for its indentation
        pass
    try:
        text = body.decode().expandtabs()
    except UnicodeDecodeError:
        return _dump(body)
    lines = text[:_MAX_TEXT].splitlines()
    if any(visible(line) != line for line in lines):
        return _dump(body)
    return [*lines, *_rest(len(text) - _MAX_TEXT, "characters")]


def _dump(body: bytes) -> list[str]:
    lines: list[str] = []
    for start in range(0, min(len(body), _MAX_HEX_BYTES), _HEX_BYTES_A_LINE):
        part = body[start : start + _HEX_BYTES_A_LINE]
        text = "".join(chr(byte) if 0x20 <= byte < 0x7F else "." for byte in part)  # noqa: PLR2004  # printable ASCII
        lines.append(f"{start:06x}  {part.hex(' '):<{_HEX_BYTES_A_LINE * 3}} {text}")
    return [*lines, *_rest(len(body) - _MAX_HEX_BYTES, "bytes")]


def _rest(count: int, noun: str) -> list[str]:
    return [f"… {count:,} {noun} more: --raw writes all"] if count > 0 else []
