"""The waiting jobs that this version of an app could run."""

from __future__ import annotations

import pytest

from flask_backend.operations.compatibility import Fault, check_compatibility
from flask_backend.registry import Handler, Handlers


def hello(target, *, loud=False): ...


TASKS = Handlers("q", tasks={"hello": Handler("hello", hello)})
INBOX = Handlers("q", receiver=Handler("inbox", lambda message: message))


@pytest.mark.parametrize(
    "body",
    [
        b'{"endpoint": "hello", "args": ["world"]}',
        b'{"endpoint": "hello", "kwargs": {"target": 1, "loud": true}, "headers": {"id": "x"}, "more": 1}',
    ],
)
def test_a_call_that_the_signature_takes_fits(body):
    assert check_compatibility(TASKS, body) is None


@pytest.mark.parametrize(
    ("body", "signature", "why"),
    [
        (b'{"endpoint": "hello"}', "hello()", "missing a required argument: 'target'"),
        (b'{"endpoint": "hello", "args": [1, 2]}', "hello(..., ...)", "too many positional arguments"),
        (b'{"endpoint": "hello", "args": [1], "kwargs": {"a": 2}}', "hello(..., a=...)", "unexpected keyword"),
        (b'{"endpoint": "hello", "args": [1,2,3,4,5,6,7]}', "hello(..., ..., ..., ..., ..., 2 more)", "too many"),
    ],
)
def test_arguments_that_do_not_fit_are_reported_with_the_shape_of_the_call_and_the_reason(body, signature, why):
    misfit = check_compatibility(TASKS, body)
    assert (misfit.fault, misfit.signature) == (Fault.BAD_ARGUMENTS, signature)
    assert misfit.why.startswith("hello(target, *, loud=False) cannot be called with these arguments: ")
    assert why in misfit.why


def test_a_missing_endpoint_is_named():
    misfit = check_compatibility(TASKS, b'{"endpoint": "gone", "args": [1]}')
    assert (misfit.fault, misfit.signature) == (Fault.UNKNOWN_ENDPOINT, "gone(...)")
    assert misfit.why == "queue 'q' has no task 'gone' in this version of the app"


@pytest.mark.parametrize("body", [b"", b"\xff", b"[1]", b'{"args": []}', b'{"endpoint": "hello", "args": {}}'])
def test_a_message_that_is_not_a_call_fits_no_task(body):
    misfit = check_compatibility(TASKS, body)
    assert (misfit.fault, misfit.signature) == (Fault.BAD_BODY, None)
    assert misfit.why


def test_a_receiver_takes_any_json():
    assert check_compatibility(INBOX, b"null") is None
    assert check_compatibility(INBOX, b"{").fault is Fault.BAD_BODY
