"""Arguments that are not plain data: the caller gets an error that names the argument."""

from __future__ import annotations

import enum
import json
from collections import OrderedDict, defaultdict
from typing import NamedTuple

import pytest
from flask import Flask

from flask_backend import Backend, BulkError, MessageEncodeError, testing


class Point(NamedTuple):
    x: int
    y: int


class Level(enum.IntEnum):
    HIGH = 3


class Colour(enum.StrEnum):
    RED = "red"


class Metres(float):
    def __repr__(self):
        return "1 m"


class Detached:
    """As a row whose session is closed."""

    def __repr__(self):
        raise RuntimeError("not bound to a Session")


def nested(depth: int) -> list:
    value: list = []
    for _ in range(depth):
        value = [value]
    return value


def cyclic() -> dict:
    value: dict = {}
    value["a"] = [value]
    return value


ODD = {
    "its repr fails": Detached(),
    "a repr inside fails": [{"row": Detached()}],
    "5,000 digits": 10**5000,
    "5,000 digits inside": [10**5000],
    "100,000 lists": nested(100_000),
    "a cycle": cyclic(),
    "NaN": float("nan"),
    "infinity": [float("inf")],
    "a surrogate": "caf\udce9",
    "a surrogate in a key": {"caf\udce9": 1},
    "bytes": b"x",
    "a set": {1},
    "an int key": {1: "a"},
    "colliding keys": {1: "a", "1": "b"},
    "a boolean key": [{"a": {True: 1}}],
    "a tuple key": {(1, 2): 3},
    "an IntEnum key": {Level.HIGH: 1},
    "huge": {"x": [object()] * 1_000_000},
}


@pytest.fixture(params=["memory://", "sync://"])
def app(request):
    app = Flask("app")
    app.config["BACKEND_CONNECTION_URI"] = request.param
    return app


@pytest.fixture
def backend(app):
    return Backend(app)


@pytest.fixture
def note(backend):
    got = []

    @backend.task("q")
    def note(value, *more, by=None, **named):
        got.append(value)

    note.got = got
    return note


@pytest.mark.parametrize("value", ODD.values(), ids=ODD)
def test_the_invalid_argument_is_named(app, note, value):
    for call, name in (
        (lambda: note(value), "'value'"),
        (lambda: note(1, by=value), "'by'"),
        (lambda: note(1, 2, value), r"'\*more\[1\]'"),
        (lambda: note(1, other=2, named=value), "'named'"),
        (lambda: note.options(delay=1)(value=value), "'value'"),
    ):
        with pytest.raises(MessageEncodeError, match=rf"^argument {name} of note is .{{1,60}}, which JSON cannot") as e:
            call()
        str(e.value).encode()  # it can be printed
    assert testing.scheduled(app) == []


def test_a_name_that_json_cannot_carry_is_named(note):
    with pytest.raises(MessageEncodeError, match=r"argument 'caf\\udce9' of note is 1, which"):
        note(1, **{"caf\udce9": 1})


@pytest.mark.parametrize("value", ODD.values(), ids=ODD)
def test_the_valid_ones_of_many_are_scheduled(app, backend, note, value):
    with pytest.raises(BulkError, match=r"refused: index 2, at index 2 because argument 'value' of note is") as caught:
        note.map([1, 2, value, 4, 5])
    assert list(caught.value.jobs) == [0, 1, 3, 4]
    with pytest.raises(BulkError, match=r"refused: 0 to 1, at index 0 because the message for 'out' cannot"):
        backend.send_many("out", [value, value, 3])
    with pytest.raises(MessageEncodeError, match="the message for 'out' cannot be sent as JSON"):
        backend.send("out", value)
    assert [job.args or job.message for job in testing.scheduled(app)] == [[1], [2], [4], [5], 3]


@pytest.mark.parametrize(
    ("value", "arrives"),
    [
        ((1, (2,)), [1, [2]]),
        (Point(1, 2), [1, 2]),
        (Level.HIGH, 3),
        (Colour.RED, "red"),
        (Metres(1.5), 1.5),
        (True, True),
        ({Colour.RED: Level.HIGH}, {"red": 3}),
        (OrderedDict(a=1), {"a": 1}),
        (defaultdict(int, a=1), {"a": 1}),
        (10**4000, 10**4000),
        ("a\0b \U0001f600", "a\0b \U0001f600"),
        ({"1": "a", "true": "b", "": "c"}, {"1": "a", "true": "b", "": "c"}),
    ],
)
def test_the_received_values_are_plain_json(app, note, value, arrives):
    note(value)
    testing.assert_scheduled(note, value)
    testing.drain(app)
    assert json.dumps(note.got) == json.dumps([arrives])


def test_an_assertion_about_odd_arguments_raises_as_the_call_does(note):
    with pytest.raises(MessageEncodeError, match=r"argument 'value' of note is \{1: 2\}, which"):
        testing.assert_scheduled(note, {1: 2})
