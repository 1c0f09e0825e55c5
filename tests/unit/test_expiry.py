"""Calls that expire: what is sent, and what becomes of them in memory."""

from __future__ import annotations

import json
import logging
import time
from datetime import UTC, datetime, timedelta

import pytest
from flask import Flask

from flask_backend import Backend, JobState, OptionError, Retry, RetryLater, current_job, signals, testing
from flask_backend.message import expires_at, is_expired
from flask_backend.options import Options

QUEUE = "com.example/default"


@pytest.fixture
def app():
    app = Flask("example")
    app.config["BACKEND_CONNECTION_URI"] = "memory://"
    return app


@pytest.fixture
def backend(app):
    return Backend(app)


@pytest.fixture
def ran():
    return []


@pytest.fixture
def hello(backend, ran):
    @backend.task(QUEUE)
    def hello(name):
        ran.append(name)

    return hello


@pytest.fixture
def memory(app, backend):
    return testing.memory(app)


def body_of(memory):
    return json.loads(memory._broker.puts[max(memory._broker.puts)].body)


@pytest.mark.parametrize(
    "expires", [60, 0.5, timedelta(minutes=1), datetime(2040, 1, 1, tzinfo=UTC), 2**32 - 1], ids=str
)
def test_the_message_has_the_time_until_which_it_may_start(hello, memory, expires):
    before = time.time()
    hello.options(expires=expires)("a")
    after = time.time()
    headers = body_of(memory)["headers"]
    assert list(headers) == ["id", "at", "expires"]
    match expires:
        case datetime():
            assert headers["expires"] == pytest.approx(expires.timestamp(), abs=0.002)
        case timedelta():
            assert before + 60 - 0.002 <= headers["expires"] <= after + 60
        case _:
            assert before + expires - 0.002 <= headers["expires"] <= after + expires


def test_a_call_without_the_option_has_no_such_header(hello, memory):
    hello("a")
    assert list(body_of(memory)["headers"]) == ["id", "at"]


@pytest.mark.parametrize(
    "options",
    [
        {"expires": 0},
        {"expires": -1},
        {"expires": 2**32},
        {"expires": timedelta(0)},
        {"expires": datetime(2020, 1, 1, tzinfo=UTC)},
        {"expires": 60, "delay": 60},
        {"expires": 60, "delay": timedelta(hours=1)},
        {"expires": 0.8, "delay": 0.5},  # the broker's delay is 1 s
        {"expires": timedelta(minutes=1), "delay": datetime(2040, 1, 1, tzinfo=UTC)},
        {"expires": datetime(2030, 1, 1, tzinfo=UTC), "delay": datetime(2030, 1, 1, tzinfo=UTC)},
    ],
    ids=str,
)
def test_a_call_that_could_not_run_is_an_error(hello, options):
    with pytest.raises(OptionError, match=r"expires is .*otherwise the call could not run"):
        hello.options(**options)


@pytest.mark.parametrize("value", ["60", True, float("nan"), float("inf"), datetime(2030, 1, 1), [60]], ids=str)  # noqa: DTZ001
def test_a_value_of_another_kind_is_an_error(hello, value):
    with pytest.raises(OptionError, match="expires is"):
        hello.options(expires=value)


def test_the_decorators_delay_counts_and_its_expiry_is_a_default(backend, memory, ran):
    @backend.task(QUEUE, delay=30, expires=60)
    def later(name):
        ran.append(name)

    with pytest.raises(OptionError, match="after the delay of 90 s"):
        later.options(delay=90)
    with pytest.raises(OptionError, match="after the delay of 30 s"):
        later.options(expires=30)
    with pytest.raises(OptionError):
        backend.task(QUEUE, endpoint="x", delay=60, expires=60)
    later("default")
    later.options(expires=120)("longer")
    memory.move_time(61)
    memory.drain()
    assert ran == ["longer"]


def test_a_call_that_has_not_started_in_time_is_deleted_and_not_run(app, hello, memory, ran, caplog):
    caplog.set_level(logging.INFO, "flask_backend.task")
    discarded = []

    def note(sender, job, error, reason, **extra):
        discarded.append((sender, job.id, job.endpoint, job.attempt, error, reason))

    started = []
    with (
        signals.task_discarded.connected_to(note),
        signals.task_started.connected_to(lambda *_, **f: started.append(f)),
    ):
        in_time = hello.options(expires=60)("in time")
        memory.move_time(59)
        assert [attempt.scheduled.args for attempt in memory.drain()] == [["in time"]]
        job = hello.options(expires=60)("too late")
        memory.move_time(60)
        assert memory.drain() == []
    assert in_time.state() is job.state() is JobState.DONE
    assert ran == ["in time"]
    assert len(started) == 1
    assert discarded == [(app, job.id, "hello", 1, None, "expired")]
    assert [record.message for record in caplog.records if "expired" in record.message] == [
        f"task hello of {QUEUE} expired 0.0 s before it could start (job {job.id}), deleted"
    ]


def test_hooks_do_not_run_for_an_expired_call(backend, hello, memory, ran):
    backend.before_first_task(QUEUE)(lambda: ran.append("hook"))
    hello.options(expires=1)("a")
    memory.move_time(1)
    memory.drain()
    assert ran == []


def test_a_retry_expires_too_and_a_task_that_has_begun_runs_to_its_end(backend, memory, ran):
    @backend.task(QUEUE, retry=Retry(min_backoff=40, jitter=0))
    def again():
        ran.append(current_job.attempt)
        memory.move_time(100)  # expires while it runs
        raise RetryLater(10)

    job = again.options(expires=60)()
    memory.drain()
    assert ran == [1]
    assert job.state() is JobState.DELAYED
    memory.move_time(10)
    memory.drain()
    assert ran == [1]
    assert job.state() is JobState.DONE


def test_a_buried_call_expires_with_its_kick_and_its_story_has_the_time(backend, memory, ran):
    @backend.task(QUEUE, retry=Retry(max_retries=0))
    def fail():
        raise ValueError

    fail.options(expires=60)()
    memory.drain(raise_errors=False)
    [buried] = memory.buried()
    assert buried.note.expires_at == pytest.approx(time.time() + 60, abs=30)


def test_real_time_does_not_pass_in_memory(hello, memory, ran):
    hello.options(expires=0.05)("a")
    time.sleep(0.1)  # more than that: the test must show that this does not count
    memory.drain()
    assert ran == ["a"]


def test_each_call_of_a_map_expires(hello, memory, ran):
    hello.options(expires=60).map(["a", "b"])
    hello.map(["c"])
    memory.move_time(60)
    memory.drain()
    assert ran == ["c"]


def test_middleware_sees_the_option_and_cannot_replace_the_header(backend, hello, memory, ran):
    seen = []

    @backend.schedule_middleware
    def around(call, proceed):
        seen.append(call.options.expires)
        call.headers["expires"] = 1
        call.headers["mine"] = 2
        return proceed()

    hello("a")
    assert body_of(memory)["headers"].keys() == {"id", "at", "mine"}
    hello.options(expires=60)("b")
    hello.options(expires=60).map(["c"])
    assert body_of(memory)["headers"]["expires"] > time.time()
    assert seen == [None, 60, 60]
    memory.move_time(60)
    memory.drain()
    assert ran == ["a"]


def test_the_run_middleware_does_not_see_an_expired_call(backend, hello, memory, ran):
    @backend.middleware
    def around(job, proceed):
        ran.append(job.endpoint)
        return proceed()

    hello.options(expires=60)("a")
    memory.move_time(60)
    memory.drain()
    assert ran == []


def test_the_running_task_sees_its_expiry_by_the_moved_time(backend, memory, ran):
    @backend.task(QUEUE)
    def look():
        ran.append(current_job.headers["expires"] - time.time())

    look.options(expires=60)()
    memory.move_time(50)
    memory.drain()
    assert ran == [pytest.approx(10, abs=5)]


def test_a_call_that_runs_at_once_does_not_expire(ran):
    app = Flask("example")
    app.config["BACKEND_CONNECTION_URI"] = "sync://"
    backend = Backend(app)

    @backend.task(QUEUE, expires=0.05)
    def hello(name):
        ran.append(name)

    hello("a")
    hello.options(delay=30, expires=60)("b")
    hello.map(["c"])
    assert ran == ["a", "b", "c"]


def test_the_test_kit_shows_and_compares_the_option(hello, memory):
    hello.options(expires=60)("a")
    hello("b")
    assert [record.expires for record in memory.scheduled()] == [pytest.approx(60, abs=0.4), None]
    memory.assert_scheduled(hello, "a", expires=60)
    memory.assert_scheduled(hello, "a", expires=timedelta(minutes=1))
    memory.assert_scheduled(hello, "b", expires=None)
    memory.assert_not_scheduled(hello, "a", expires=None)
    memory.assert_not_scheduled(hello, "a", expires=61)
    memory.assert_not_scheduled(hello, "b", expires=60)
    until = datetime.now(UTC) + timedelta(hours=1)
    hello.options(expires=until)("c")
    memory.assert_scheduled(hello, "c", expires=until)
    with pytest.raises(AssertionError, match=r"\+ expires = "):
        memory.assert_scheduled(hello, "a", expires=90)


@pytest.mark.parametrize(
    "value", [None, True, False, "1", "soon", 0, -1, 2**40, float("nan"), float("inf"), [1], {"a": 1}], ids=str
)
def test_another_producers_header_that_is_no_time_does_not_drop_its_call(value):
    assert expires_at({"expires": value}) is None
    assert not is_expired({"expires": value}, time.time())


def test_a_call_is_expired_from_that_moment_on():
    assert not is_expired({"expires": 100.5}, 100.499)
    assert is_expired({"expires": 100.5}, 100.5)
    assert is_expired({"expires": 100}, 101)
    assert not is_expired({}, 101)


def test_the_time_is_rounded_down():
    until = datetime(2030, 1, 1, microsecond=999_999, tzinfo=UTC)
    assert Options(expires=until).headers() == {"expires": until.timestamp().__floor__() + 0.999}


def test_a_call_that_has_saved_a_checkpoint_has_started_and_does_not_expire(backend, memory, ran):
    @backend.task(QUEUE, retry=Retry(min_backoff=600, jitter=0))
    def long():
        ran.append(current_job.cursor)
        current_job.checkpoint(1)
        if len(ran) == 1:
            raise ValueError

    long.options(expires=60)()
    memory.drain(raise_errors=False)
    memory.move_time(600)
    memory.drain()
    assert ran == [None, 1]
