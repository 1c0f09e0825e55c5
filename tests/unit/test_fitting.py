"""Which waiting jobs this version of an app could run."""

from __future__ import annotations

import pytest

from flask_backend.operations.compatibility import Fault, find_misfit
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
    assert find_misfit(TASKS, body) is None


@pytest.mark.parametrize(
    ("body", "needs", "why"),
    [
        (b'{"endpoint": "hello"}', "hello()", "missing a required argument: 'target'"),
        (b'{"endpoint": "hello", "args": [1, 2]}', "hello(..., ...)", "too many positional arguments"),
        (b'{"endpoint": "hello", "args": [1], "kwargs": {"a": 2}}', "hello(..., a=...)", "unexpected keyword"),
        (b'{"endpoint": "hello", "args": [1,2,3,4,5,6,7]}', "hello(..., ..., ..., ..., ..., 2 more)", "too many"),
    ],
)
def test_arguments_that_do_not_fit_tell_the_shape_of_the_call_and_why(body, needs, why):
    misfit = find_misfit(TASKS, body)
    assert (misfit.fault, misfit.needs) == (Fault.BAD_ARGUMENTS, needs)
    assert misfit.why.startswith("hello(target, *, loud=False) cannot be called with these arguments: ")
    assert why in misfit.why


def test_an_endpoint_that_is_not_there_is_named():
    misfit = find_misfit(TASKS, b'{"endpoint": "gone", "args": [1]}')
    assert (misfit.fault, misfit.needs) == (Fault.UNKNOWN_ENDPOINT, "gone(...)")
    assert misfit.why == "queue 'q' has no task 'gone' in this version of the app"


@pytest.mark.parametrize("body", [b"", b"\xff", b"[1]", b'{"args": []}', b'{"endpoint": "hello", "args": {}}'])
def test_what_is_no_call_fits_no_task(body):
    misfit = find_misfit(TASKS, body)
    assert (misfit.fault, misfit.needs) == (Fault.BAD_BODY, None)
    assert misfit.why


def test_a_receiver_takes_whatever_is_json():
    assert find_misfit(INBOX, b"null") is None
    assert find_misfit(INBOX, b"{").fault is Fault.BAD_BODY
