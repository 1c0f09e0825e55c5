from __future__ import annotations

import enum
import json
import re
import sys
import time
from contextlib import nullcontext, suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flask_backend import message
from flask_backend.errors import MessageDecodeError, MessageEncodeError
from flask_backend.message import (
    MAX_DEPTH,
    Message,
    decode,
    decode_json,
    encode_call,
    encode_json,
    head_of,
    new_uid,
    show_value,
)

odd_keys = st.text('0123456789truefalsn-.:"{,', max_size=5) | st.integers() | st.booleans() | st.none()
odd_keys |= st.floats(allow_nan=False, allow_infinity=False)


def has_odd_keys(value):
    if isinstance(value, list):
        return any(map(has_odd_keys, value))
    return isinstance(value, dict) and any(not isinstance(k, str) or has_odd_keys(v) for k, v in value.items())


class Name(str):
    __slots__ = ()


class Plain(enum.StrEnum):
    LOW = "low"


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@given(st.text(min_size=1), st.lists(json_values), st.dictionaries(st.text(), json_values))
def test_encoded_values_decode_to_the_same(endpoint, args, kwargs):
    uid = new_uid()
    before = time.time()
    message = decode(encode_call(head_of(endpoint), args, kwargs, uid))
    assert (message.endpoint, message.args, message.kwargs) == (endpoint, args, kwargs)
    assert message.headers.keys() == {"id", "at"}
    assert message.headers["id"] == uid
    assert before - 0.001 < message.headers["at"] < time.time() + 0.001


def test_the_envelope_is_the_documented_one(monkeypatch):
    monkeypatch.setattr(message.time, "time", lambda: 2.5)
    body = encode_call(head_of('say "hello"'), ("wörld",), {"a": 1}, "1f")
    assert json.loads(body) == {
        "endpoint": 'say "hello"',
        "args": ["wörld"],
        "kwargs": {"a": 1},
        "headers": {"id": "1f", "at": 2.5},
    }
    assert "wörld".encode() in body
    assert encode_call(head_of("hello"), (), {}, "1f") == (
        b'{"endpoint":"hello","args":[],"kwargs":{},"headers":{"id":"1f","at":2.500}}'
    )


def test_missing_parts_mean_empty():
    assert decode(b'{"endpoint": "hello"}') == Message("hello")


def test_ids_differ():
    assert len({new_uid() for _ in range(1000)}) == 1000


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ({1, 2}, "set"),
        (float("nan"), "Out of range"),
        (object(), "object"),
        ("\ud800", "surrogates"),
        ({(1, 2): 3}, "keys"),
    ],
)
def test_a_value_that_json_cannot_carry_is_an_error_with_the_reason(value, reason):
    with pytest.raises(MessageEncodeError, match=reason):
        encode_json(value)


class Level(enum.IntEnum):
    HIGH = 3


class Lazy(dict):
    """Like a mapping that reads its rows on access."""

    def items(self):
        raise RuntimeError("not bound to a Session")


@pytest.mark.parametrize("key", [1, -1, 0, 1.5, 1e300, -0.0, True, False, None, Level.HIGH, 10**30])
def test_a_key_that_is_not_a_string_is_an_error_at_any_depth(key):
    for value in ({key: 1}, [{"a": ({}, [{key: 1}])}], {"a": {"b": 1, key: 1}}, [{}, {str(key): 0, key: 1}]):
        with pytest.raises(MessageEncodeError, match=rf"the dict key {re.escape(repr(key))} is not a string"):
            encode_json(value)


@pytest.mark.parametrize(
    "key", ["1", "-1.5e+30", "true", "null", "", 'a":1,"1', "2026-11-25", "\\", Name("n"), Plain.LOW]
)
def test_any_string_is_accepted_as_a_key(key):
    assert decode_json(encode_json([{key: 1, "x": ['"1":']}])) == [{str(key): 1, "x": ['"1":']}]


@given(st.recursive(st.none() | st.text(), lambda inner: st.dictionaries(odd_keys, inner) | st.lists(inner)))
def test_an_encoded_value_keeps_its_keys(value):
    try:
        assert decode_json(encode_json(value)) == value
    except MessageEncodeError:
        assert has_odd_keys(value)


def test_an_exception_of_a_values_own_code_is_an_error_too():
    with pytest.raises(MessageEncodeError, match="not bound to a Session"):
        encode_json(Lazy(a=1))


class SilentError(ValueError):
    def __str__(self):
        raise RuntimeError


class Mute(dict):
    def items(self):
        raise SilentError


def test_an_error_that_cannot_be_shown_is_reported_by_its_class():
    with pytest.raises(MessageEncodeError, match="SilentError"):
        encode_json(Mute(a=1))


class Detached:
    """As a row whose session is closed."""

    def __repr__(self):
        raise RuntimeError("not bound to a Session")


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("x" * 1000, "'xxx"),
        (Detached(), "<Detached instance at "),
        ([Detached()], "[<Detached instance at "),
        ([10**5000], "list" if sys.version_info < (3, 14) else "[<int instance"),
        ([[[[[[]]]]]], "[[[[...]]]]"),
        ({1: 2}, "{1: 2}"),
        (float("nan"), "nan"),
    ],
)
def test_any_value_can_be_shown_in_an_error(value, shown):
    assert shown in show_value(value)
    assert len(show_value(value)) <= 60


def test_an_endless_value_can_be_shown():
    value: list = []
    for _ in range(100_000):
        value = [value]
    assert show_value(value) == "[[[[...]]]]"
    value = []
    value.append(value)
    assert show_value(value) == "[[[[...]]]]"


def test_a_circular_value_is_an_error():
    value: list = []
    value.append(value)
    with pytest.raises(MessageEncodeError, match="Circular"):
        encode_json(value)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "not JSON"),
        (b"\xff\xfe", "not JSON in UTF-8"),
        (b"{", "not JSON"),
        (b"9" * 5000, "not JSON"),
        (b"[" * 100_000, "nested too deeply"),
    ],
)
def test_bytes_that_are_not_json_are_an_error(body, reason):
    with pytest.raises(MessageDecodeError, match=reason):
        decode_json(body)


def nest(depth: int, opening: str = "[", closing: str = "]") -> bytes:
    return (opening * depth + closing * depth).encode()


@pytest.mark.parametrize("blanks", [b"", b" ", b'"\\"[[[", ', b'"]]", '])
def test_the_depth_that_the_decoder_takes_is_bounded(blanks):
    decode_json(b"[%b%b]" % (blanks, nest(MAX_DEPTH - 1)))
    decode_json(b"[" + nest(MAX_DEPTH - 1).replace(b"[]", b'[["]"]]')[1:-1] + b"]")
    decode_json(b"[%b]" % b",".join([b"{}"] * 5 * MAX_DEPTH))
    decode_json(b'["%b"]' % (b"[" * 5 * MAX_DEPTH))
    for depth in (MAX_DEPTH, 960, 5_000, 30_000):
        with pytest.raises(MessageDecodeError, match=f"nested too deeply: more than {MAX_DEPTH} levels"):
            decode_json(b"[%b%b]" % (blanks, nest(depth)))
    with pytest.raises(MessageDecodeError, match="nested too deeply"):
        decode_json(nest(MAX_DEPTH // 2 + 1, '{"]":[', "]}").replace(b"[]", b"[1]"))


def test_the_caller_cannot_send_values_that_the_decoder_refuses():
    value: object = None
    for depth in range(MAX_DEPTH + 1):
        if depth:
            decode_json(encode_json(value))
        value = [value] if depth % 2 else {"[": value}
    for _ in range(2):
        with pytest.raises(MessageEncodeError, match=f"nested too deeply: more than {MAX_DEPTH} levels"):
            encode_json(value)
        for _ in range(100_000):
            value = [value]


@given(json_values, st.integers(0, 12), st.booleans())
def test_the_depth_is_that_of_the_value(value, limit, is_indented):
    body = json.dumps(value, indent=1 if is_indented else None, ensure_ascii=is_indented).encode()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(message, "MAX_DEPTH", limit)
        context = pytest.raises(MessageDecodeError, match="nested") if depth_of(value) > limit else nullcontext()
        with context:
            decode_json(body)


def depth_of(value) -> int:
    if not isinstance(value, list | dict):
        return 0
    return 1 + max(map(depth_of, value.values() if isinstance(value, dict) else value), default=0)


@pytest.mark.parametrize("body", [b'["\\' * 16_000, b'["a' * 16_000, b"[" * 300 + b'"' + b"\\" * 60_000], ids=len)
def test_no_body_takes_the_decoder_long(body):
    started = time.process_time()
    with pytest.raises(MessageDecodeError):
        decode_json(body)
    assert time.process_time() - started < 1


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"[]", "expected a JSON object with an endpoint, got an array"),
        (b"null", "got null"),
        (b"1.5", "got a number"),
        (b"{}", "no 'endpoint'"),
        (b'{"endpoint": 1}', "'endpoint' is a number, not a string"),
        (b'{"endpoint": "x", "args": {}}', "'args' is an object, not an array"),
        (b'{"endpoint": "x", "kwargs": []}', "'kwargs' is an array, not an object"),
        (b'{"endpoint": "x", "headers": null}', "'headers' is null, not an object"),
    ],
)
def test_json_that_is_not_a_task_is_an_error(body, reason):
    with pytest.raises(MessageDecodeError, match=reason):
        decode(body)


@given(st.binary())
def test_no_bytes_break_the_decoder(body):
    with suppress(MessageDecodeError):
        decode(body)
