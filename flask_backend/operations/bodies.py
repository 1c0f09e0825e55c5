"""Show the bodies of jobs as text that is safe to show: any program may have written them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from flask_backend.errors import MessageDecodeError
from flask_backend.message import Message, cut, decode, decode_json, expires_at, show_call
from flask_backend.quantities import show_seconds, show_time
from flask_backend.stories import Story
from flask_backend.visible import visible

_CALL = {"endpoint", "args", "kwargs", "headers"}
# How much is shown of a body that is not JSON: enough to recognize it.
_MAX_TEXT = 1000
_MAX_HEX_BYTES = 256
_MAX_CURSOR = 200  # characters
_HEX_BYTES_A_LINE = 16
# Characters of a story in one line, for texts that name the command that shows all of it.
_MAX_LINE = 200

GONE = "is gone: it has finished, was deleted, or never existed"
UNTOLD = "was buried without a story: by a program other than our workers, or while the broker had no room for one"


def call_in(body: bytes) -> Message | None:
    """Return the body's call, if it is one: other messages may have an ``endpoint`` too, among other keys."""
    try:
        message, value = decode(body), decode_json(body)
    except MessageDecodeError:
        return None
    return message if set(value) <= _CALL else None


def expiry_in(body: bytes) -> float | None:
    """Return until when the body's call may be started, in seconds since the epoch, if it is one that expires."""
    call = call_in(body)
    return expires_at(call.headers) if call else None


def show_expiry(at: float, now: float) -> str:
    """Return when a call expires or has expired, in words."""
    return f"{show_time(at)}, " + (f"in {show_seconds(at - now)}" if at > now else f"{show_seconds(now - at)} ago")


def show_cursor(value: Any) -> str:
    """Return the value of a cursor in one line."""
    return visible(cut(json.dumps(value, ensure_ascii=False), _MAX_CURSOR))


def show_body(body: bytes, limit: int | None = None) -> str:
    """Return a body in one line: as a call, as JSON, or as escaped text. ``limit`` is the maximum of characters."""
    call = call_in(body)
    if call is not None:
        return visible(show_call(call.endpoint, call.args, call.kwargs), limit)
    try:
        return visible(json.dumps(decode_json(body), ensure_ascii=False), limit)
    except MessageDecodeError:
        return visible(body.decode(errors="backslashreplace"), limit)


def show_arguments(args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[str]:
    """Return the arguments of a call one by one, in the format of :func:`show_call`."""
    named = {f"{name}=": value for name, value in kwargs.items()}
    return [
        f"{name}{json.dumps(value, ensure_ascii=False)}"
        for name, value in [*(("", arg) for arg in args), *named.items()]
    ]


def show_at_length(body: bytes) -> list[str]:
    """Return the lines of a body that is not a call: as JSON, as text, or as a hex dump of its first bytes."""
    try:
        return [visible(line) for line in json.dumps(decode_json(body), indent=2, ensure_ascii=False).split("\n")]
    except (MessageDecodeError, RecursionError):  # not JSON, or nested too deep to indent
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
    return [f"… {count:,} more {noun}: --raw writes them all"] if count > 0 else []


def show_story(story: Story) -> str:
    """Return why a job is buried, cut to the length of a line or less."""
    return cut(visible(": ".join(filter(None, [story.reason, story.exception, story.message]))), _MAX_LINE)
