from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flask_backend.errors import MessageDecodeError, MessageEncodeError
from flask_backend.message import Message, decode, decode_json, encode, encode_json, new_headers

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@given(st.text(min_size=1), st.lists(json_values), st.dictionaries(st.text(), json_values))
def test_what_is_encoded_decodes_to_the_same(endpoint, args, kwargs):
    message = Message(endpoint, args, kwargs, new_headers())
    assert decode(encode(message)) == message


def test_the_envelope_is_the_documented_one():
    body = encode(Message("hello", ("wörld",), {}, {"id": "1", "at": 2.5}))
    assert body == '{"endpoint":"hello","args":["wörld"],"kwargs":{},"headers":{"id":"1","at":2.5}}'.encode()


def test_missing_parts_mean_empty():
    assert decode(b'{"endpoint": "hello"}') == Message("hello")


def test_ids_differ():
    assert len({new_headers()["id"] for _ in range(1000)}) == 1000


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
def test_bytes_that_are_no_json_are_an_error(body, reason):
    with pytest.raises(MessageDecodeError, match=reason):
        decode_json(body)


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
def test_json_that_is_no_task_is_an_error(body, reason):
    with pytest.raises(MessageDecodeError, match=reason):
        decode(body)


@given(st.binary())
def test_no_bytes_break_the_decoder(body):
    with suppress(MessageDecodeError):
        decode(body)
