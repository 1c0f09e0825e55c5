"""The JSON envelope of a task's job: encode, decode. Pure."""

from __future__ import annotations

import json
import os
import re
import reprlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, cast

from .errors import MessageDecodeError, MessageEncodeError

# How deep arrays and objects may be nested, including the envelope. Python 3.11 fails from about 970 levels on, and
# sooner in code that recurses more than once per level, like copy.deepcopy and pprint: the limit leaves room for these.
MAX_DEPTH = 256
OUR_HEADERS = ("id", "at", "expires", "batch")  # the last two only of a call that expires, or belongs to a batch
END_OF_DATES = 2**33  # seconds since the epoch, in the year 2242: some platforms have no later dates

_encoder = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))
_decoder = json.JSONDecoder()


def _make_fast_encoder() -> Callable[[Any, int], Iterable[str]]:
    """Return the encoder in C, without a check for circular references; else the one in Python.

    :class:`json.JSONEncoder` makes one for each value, which takes longer than to encode the usual arguments.
    """
    make: Callable[..., Callable[[Any, int], Iterable[str]]] | None = getattr(json.encoder, "c_make_encoder", None)
    if make is None:
        return lambda value, _level: _encoder.iterencode(value)
    quote = getattr(json.encoder, "encode_basestring")  # noqa: B009  # typeshed lacks it
    options = _encoder.sort_keys, _encoder.skipkeys, _encoder.allow_nan
    return make(None, _encoder.default, quote, None, _encoder.key_separator, _encoder.item_separator, *options)


_encode_fast = _make_fast_encoder()


@dataclass(slots=True)
class Message:
    """One call of a task, as it arrives. Not frozen: every job creates one, which would take twice the time.

    ``headers`` holds ``id``, our own id of the job (beanstalkd's ids may start again at 1), and ``at``, the time of
    scheduling in seconds since the epoch; in a message of another producer they may be missing.
    """

    endpoint: str
    args: Sequence[Any] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict[str, Any])
    headers: Mapping[str, Any] = field(default_factory=dict[str, Any])


def new_uid(size: int = 16) -> str:
    """Return a random id of ``size`` bytes, in hexadecimal."""
    return os.urandom(size).hex()


def scheduled_at(headers: Mapping[str, Any]) -> float | None:
    """Return when a call was scheduled, in seconds since the epoch, if its headers have a valid time."""
    at = headers.get("at")
    return at if isinstance(at, int | float) and 0 < at < END_OF_DATES else None


def expires_at(headers: Mapping[str, Any]) -> float | None:
    """Return until when a call may be started, in seconds since the epoch, if its headers have a valid time."""
    at = headers.get("expires")
    return at if isinstance(at, int | float) and at is not True and 0 < at < END_OF_DATES else None


def is_expired(headers: Mapping[str, Any], now: float) -> bool:
    """Whether a call must not be started at ``now``, in seconds since the epoch."""
    return (at := expires_at(headers)) is not None and at <= now


# Errors of the encoder and of a value's own code. Not every exception: a signal handler, for example a time limit, may
# raise here too, which is not the value's fault.
_FAULTS = (TypeError, ValueError, ArithmeticError, LookupError, AttributeError, NameError, RuntimeError)


def encode_json(value: Any) -> bytes:
    """Return ``value`` as compact UTF-8 JSON; raise :exc:`MessageEncodeError` with the reason."""
    try:
        body = _encode_text(value).encode()
    except _FAULTS as error:
        raise MessageEncodeError(show_error(error)) from error
    _check(body, value)
    return body


def encode_call(
    head: str, args: Sequence[Any], kwargs: Mapping[str, Any], uid: str, headers: Mapping[str, Any] | None = None
) -> bytes:
    """Return the body of a call's job, scheduled now; raise :exc:`MessageEncodeError` with the reason.

    ``head`` is that of the task, see :func:`head_of`; ``headers`` are those to send besides ``id`` and ``at``.
    """
    try:
        values = _encode_text(args)
        named = _encode_text(kwargs) if kwargs else "{}"
        more = f",{text[1:-1]}" if headers and (text := _encode_text(headers)) else ""
        body = f'{head}{values},"kwargs":{named},"headers":{{"id":"{uid}","at":{time.time():.3f}{more}}}}}'.encode()
    except _FAULTS as error:
        raise MessageEncodeError(show_error(error)) from error
    if kwargs or headers or '":' in values or len(values) > MAX_DEPTH:  # shorter text without keys is always valid
        _check(body, args, kwargs, headers)
    return body


def add_header(body: bytes, name: str, value: Any) -> bytes:
    """Return the body of a call's job, from :func:`encode_call`, with one more header."""
    return b"%b,%b}}" % (body[:-2], encode_json({name: value})[1:-1])


def head_of(endpoint: str) -> str:
    """Return the beginning of each message of a task."""
    return f'{{"endpoint":{_encoder.encode(endpoint)},"args":'


def _encode_text(value: Any) -> str:
    try:
        return "".join(_encode_fast(value, 0))
    except RecursionError as error:
        with suppress(RecursionError):
            return _encoder.encode(value)  # raises ValueError for a circular reference
        raise ValueError(_TOO_DEEP) from error


def _check(body: bytes, *values: Any) -> None:
    if _is_too_deep(body):
        raise MessageEncodeError(_TOO_DEEP)
    if _MADE_KEY.search(body):
        for value in values:
            _check_keys(value)


# The encoded form of a key that is a number, a boolean or None. Some strings match too, but this search is far faster
# than checking each key.
_MADE_KEY = re.compile(rb'"[-0-9tfn][-0-9.e+ruals]*":')


def _check_keys(value: Any) -> None:
    """Reject keys that are not strings, at any depth: the encoder converts them to strings, which may then be equal."""
    unseen = [value]
    while unseen:
        each = unseen.pop()
        if isinstance(each, dict):
            for key in cast("Mapping[object, object]", each):
                if not isinstance(key, str):
                    raise MessageEncodeError(f"the dict key {show_value(key)} is not a string")
            unseen += each.values()
        elif isinstance(each, list | tuple):
            unseen += each


def decode_json(body: bytes) -> Any:
    """Return the value in ``body``; raise :exc:`MessageDecodeError` if it is not UTF-8 JSON, or nested too deeply."""
    if _is_too_deep(body):
        raise MessageDecodeError(_TOO_DEEP)
    try:
        return _decode_text(body.decode())
    except RecursionError as error:  # not JSON, but begins like deeply nested JSON
        raise MessageDecodeError(_TOO_DEEP) from error
    except ValueError as error:  # bad UTF-8, bad JSON, and integers too long for Python to convert
        raise MessageDecodeError(f"the body is not JSON in UTF-8: {error}") from error


def _decode_text(text: str) -> Any:
    # Compact JSON is read in one step, without the decoder's search for surrounding whitespace.
    if text[:1] in ("{", "["):
        value, end = _decoder.raw_decode(text)
        if end == len(text):
            return value
    return _decoder.decode(text)


_TOO_DEEP = f"the JSON is nested too deeply: more than {MAX_DEPTH} levels"


def _is_too_deep(body: bytes) -> bool:
    """Whether JSON is nested too deeply. The result for other bytes is undefined."""
    if body.count(b"[") + body.count(b"{") <= MAX_DEPTH:
        return False  # nearly every body; the check below takes about as long as decoding
    outside_of_strings = _STRINGS.split(body) if b"\\" in body else body.split(b'"')[::2]
    steps = b"".join(outside_of_strings).translate(_STEPS, _NO_BRACKETS)
    return max(accumulate(memoryview(steps).cast("b")), default=0) > MAX_DEPTH


_SEQUENCES = (list, tuple)

_STRINGS = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"?', re.DOTALL)
_STEPS = bytes.maketrans(b"[{]}", b"\x01\x01\xff\xff")  # as signed bytes: one level in, one level out
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))


def decode(body: bytes) -> Message:
    """Return the task's message in ``body``; missing parts other than the endpoint are empty."""
    value = decode_json(body)
    if not isinstance(value, dict):
        raise MessageDecodeError(f"expected a JSON object with an endpoint, got {_json_type(value)}")
    fields = cast("dict[str, Any]", value)
    part: Callable[..., Any] = fields.get
    endpoint, args, kwargs, headers = part("endpoint"), part("args", ()), part("kwargs", {}), part("headers", {})
    # Not a loop over _PARTS: this runs for every job.
    has_name, has_args = isinstance(endpoint, str), isinstance(args, _SEQUENCES)
    has_kwargs, has_headers = isinstance(kwargs, dict), isinstance(headers, dict)
    if has_name and has_args and has_kwargs and has_headers:
        return Message(endpoint, args, kwargs, headers)
    raise MessageDecodeError(_find_fault(fields))


def _find_fault(fields: dict[str, Any]) -> str:
    if "endpoint" not in fields:
        return "the JSON object has no 'endpoint'"
    name, wanted = next(
        (name, wanted) for name, wanted in _PARTS.items() if not isinstance(fields.get(name, wanted()), wanted)
    )
    return f"{name!r} is {_json_type(fields[name])}, not {_JSON_TYPES[wanted]}"


def has_uid(body: bytes, uid: str) -> bool:
    """Whether this is the message of a task with this id of its own."""
    try:
        return decode(body).headers.get("id") == uid
    except MessageDecodeError:
        return False


def show_call(endpoint: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
    """Return a call as a person would write it, with its values in JSON."""
    parts = [_shown(value) for value in args] + [f"{name}={_shown(value)}" for name, value in kwargs.items()]
    return f"{endpoint}({', '.join(parts)})"


def cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


_MAX_SHOWN = 60  # characters of a value in an error
_repr = reprlib.Repr()
_repr.maxlevel = 3
_repr.maxstring = _repr.maxother = _repr.maxlong = _MAX_SHOWN


def show_value(value: object) -> str:
    """Return a value shortened for an error message. Does not raise, even if the value's ``repr`` does."""
    try:
        return cut(_repr.repr(value), _MAX_SHOWN)
    except Exception:  # its own code, which may do anything
        return f"a value of type {type(value).__name__}"


def show_error(error: Exception) -> str:
    """Return the text of an error, or the name of its class if the text is empty."""
    try:
        return str(error) or type(error).__name__
    except Exception:  # the same
        return type(error).__name__


def _shown(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


_PARTS = {"endpoint": str, "args": list, "kwargs": dict, "headers": dict}
_JSON_TYPES = {
    str: "a string",
    list: "an array",
    dict: "an object",
    bool: "a boolean",
    int: "a number",
    float: "a number",
    type(None): "null",
}


def _json_type(value: Any) -> str:
    return _JSON_TYPES[type(value)]
