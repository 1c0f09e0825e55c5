"""Tasks as callables of other libraries: in process pools, copies and mocks."""

from __future__ import annotations

import concurrent.futures
import copy
import dataclasses
import inspect
import multiprocessing
import pickle
from unittest import mock

import apscheduler.util
import pytest
from flask import Flask

from flask_backend import Backend, BulkError, Bury, Discard, Job, RetryLater

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


def test_a_task_without_a_name_in_its_module_is_not_pickled():
    local = backend.task("q", "local")(lambda: None)
    with pytest.raises((pickle.PicklingError, AttributeError)):
        pickle.dumps(local)


def test_other_libraries_see_the_functions_signature():
    assert (
        str(inspect.signature(greet)) == str(inspect.signature(greet, follow_wrapped=False)) == "(name, *, loud=False)"
    )
    assert (greet.__module__, greet.__qualname__) == (__name__, "greet")
    assert mock.create_autospec(greet)("Ada") is not None


@pytest.mark.parametrize("task", [greet, Jobs.inner])
def test_a_scheduler_that_stores_the_name_of_a_task_finds_it_again(task):
    name = apscheduler.util.obj_to_ref(task)
    assert name == f"{__name__}:{task.__qualname__}"
    assert apscheduler.util.ref_to_obj(name) is task


def schedule_there(name):
    with app.app_context():
        return greet(name)


def fail_there(how):
    with app.app_context():
        if how == "bulk":
            greet.map(["Ada", {1}, "Eve"])
        raise {"bury": Bury("why"), "discard": Discard("why"), "later": RetryLater(7, "why")}[how]


@pytest.fixture(scope="module")
def pool():
    with concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        yield pool


def test_a_process_pool_returns_the_job_it_has_scheduled(pool):
    (job,) = pool.map(schedule_there, ["Ada"])
    assert (job.queue, type(job.id), len(job.uid)) == ("q", int, 32)
    with pytest.raises(TypeError, match="was not scheduled by this process"):
        job.state()


@pytest.mark.parametrize(
    ("how", "error", "fields"),
    [
        ("bury", Bury, {"reason": "why"}),
        ("discard", Discard, {"reason": "why"}),
        ("later", RetryLater, {"reason": "why", "delay_s": 7}),
    ],
)
def test_a_process_pool_returns_the_decision_that_its_function_raised(pool, how, error, fields):
    with pytest.raises(error) as raised:
        list(pool.map(fail_there, [how]))
    assert vars(raised.value).items() >= fields.items()
    assert str(raised.value) == "why"


def test_a_process_pool_returns_the_result_of_scheduling_many_jobs(pool):
    with pytest.raises(BulkError, match="index 1") as raised:
        list(pool.map(fail_there, ["bulk"]))
    assert list(raised.value.jobs) == [0, 2]
    assert all(isinstance(job, Job) for job in raised.value.jobs.values())
    assert list(raised.value.reasons) == [1]


def test_a_copy_of_a_job_asks_the_same_server():
    with app.app_context():
        job, jobs = greet("Ada"), greet.map(["Eve"])
        assert copy.deepcopy(job).state() == copy.copy(job).state() == "ready"
        assert copy.deepcopy(jobs)[0].state() == copy.copy(jobs)[0].state() == "ready"
    assert pickle.loads(pickle.dumps(jobs)) == list(jobs)  # noqa: S301  # our own
