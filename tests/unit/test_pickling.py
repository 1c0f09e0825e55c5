"""Tasks as callables of other libraries: in pools of processes, in copies, in mocks."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import pickle
from unittest import mock

import pytest
from flask import Flask

from flask_backend import Backend

app = Flask(__name__)
app.config["BACKEND_CONNECTION_URI"] = "memory://"
backend = Backend(app)


@backend.task("q")
def greet(name, *, loud=False): ...


class Jobs:
    @backend.task("q")
    @staticmethod
    def inner(name): ...


@dataclasses.dataclass
class Plan:
    on_done: object


@pytest.mark.parametrize("task", [greet, Jobs.inner])
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_task_is_pickled_by_its_name(task, protocol):
    assert pickle.loads(pickle.dumps(task, protocol)) is task  # noqa: S301  # our own


def test_a_copy_of_a_task_is_the_task():
    assert copy.copy(greet) is copy.deepcopy(greet) is greet
    assert copy.deepcopy({"on_done": [greet]})["on_done"][0] is greet
    assert dataclasses.asdict(Plan(greet)) == {"on_done": greet}


def test_a_task_with_options_can_be_pickled():
    call = pickle.loads(pickle.dumps(greet.options(delay=60)))  # noqa: S301  # our own
    assert repr(call) == repr(greet.options(delay=60))


def test_a_task_that_its_module_does_not_name_is_not_pickled():
    local = backend.task("q", "local")(lambda: None)
    with pytest.raises((pickle.PicklingError, AttributeError)):
        pickle.dumps(local)


def test_other_libraries_see_the_functions_signature():
    assert (
        str(inspect.signature(greet)) == str(inspect.signature(greet, follow_wrapped=False)) == "(name, *, loud=False)"
    )
    assert (greet.__module__, greet.__qualname__) == (__name__, "greet")
    assert mock.create_autospec(greet)("Ada") is not None
