"""The test kit for users: a broker in memory, calls that run at once, and assertions."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import time
from contextlib import suppress
from contextvars import ContextVar
from datetime import UTC, datetime, timedelta

import pytest
from flask import Flask, current_app, g, has_app_context, has_request_context
from support.hostile import MAKERS, Evil

from flask_backend import (
    Backend,
    BulkError,
    Bury,
    ConfigError,
    Discard,
    JobState,
    JobTooBigError,
    MessageEncodeError,
    OptionError,
    QueueNameError,
    RegistrationError,
    Retry,
    RetryLater,
    TaskArgumentsError,
    current_job,
    testing,
)
from flask_backend.config import Address, Settings, StandIn, parse_broker

QUEUE = "com.example/default"
OTHER = "com.example/other"
INBOX = "com.example/inbox"
OUTSIDE = "com.external/other"

seen_in_context: ContextVar[str] = ContextVar("seen_in_context", default="nothing")


class Example:
    """An app whose tasks record what they see."""

    def __init__(self, uri: str, **config) -> None:  # noqa: C901  # as many tasks, each of a line or two
        self.app = Flask("example")
        self.app.config.update(BACKEND_CONNECTION_URI=uri, **config)
        self.backend = backend = Backend(self.app)
        self.ledger: list = []
        note = self.ledger.append

        @backend.before_first_task(QUEUE)
        def hook():
            assert has_app_context()
            note("hook")

        @backend.task(QUEUE)
        def hello(target, *, loud=False):
            note(f"hello {target}{'!' if loud else ''}")

        @backend.task(QUEUE, retry=Retry(max_retries=2, min_backoff=10, jitter=0))
        def fail(text="no luck"):
            note(f"fail {current_job.attempt} {current_job.will_retry}")
            raise ValueError(text)

        @backend.task(QUEUE)
        def decide(how):
            note(f"decide {how}")
            raise {"later": RetryLater(30, "busy"), "bury": Bury("no such user"), "discard": Discard("late")}[how]

        @backend.task(QUEUE)
        def chain(count):
            note(f"chain {count}")
            if count:
                chain(count - 1)

        @backend.task(OTHER)
        def look(*_):
            g.seen = g.get("seen", 0) + 1
            note((current_app.name, g.seen, has_request_context(), seen_in_context.get(), current_job.endpoint))

        @backend.task(OTHER)
        def age(shift=0):
            note((current_job.id, round(current_job.age)))
            current_job.touch()
            testing.move_time(shift)

        @backend.task(OTHER)
        def leave(error):
            raise {"exit": SystemExit, "interrupt": KeyboardInterrupt}[error]

        @backend.receiver(INBOX)
        def inbox(message):
            note(("inbox", message))

        self.hello, self.fail, self.decide, self.chain = hello, fail, decide, chain
        self.look, self.age, self.leave, self.inbox = look, age, leave, inbox

    @property
    def memory(self) -> testing.Memory:
        return testing.memory(self.app)

    def drain(self, **options) -> list[str | None]:
        return [ran.scheduled.endpoint for ran in self.memory.drain(**options)]


@pytest.fixture
def example():
    return Example("memory://")


@pytest.fixture
def sync():
    return Example("sync://")


# -- recorded calls ------------------------------------------------------------------------------------------


def test_a_call_is_recorded_with_its_options_and_not_run(example):
    job = example.hello.options(delay=60, priority=3, ttr=7)("world", loud=True)
    [record] = testing.scheduled(example.app)
    assert (record.queue, record.endpoint, record.args, record.kwargs) == (QUEUE, "hello", ["world"], {"loud": True})
    assert (record.delay, record.priority, record.ttr, record.message) == (60, 3, 7, None)
    assert record.job == job
    assert record.job.uid == job.uid
    assert abs(record.at - time.time()) < 60
    assert example.ledger == []


def test_a_message_is_recorded_for_a_receiver_and_for_another_system(example):
    example.backend.send(INBOX, {"any": ["json"]})
    example.backend.send_many(OUTSIDE, ["a", "b"], priority=1)
    records = example.memory.scheduled()
    assert [(record.queue, record.endpoint, record.message) for record in records] == [
        (INBOX, None, {"any": ["json"]}),
        (OUTSIDE, None, "a"),
        (OUTSIDE, None, "b"),
    ]
    assert [record.priority for record in records] == [65536, 1, 1]


def test_executed_jobs_stay_recorded_until_they_are_cleared(example):
    job = example.hello("world")
    example.drain()
    [record] = example.memory.scheduled()
    assert record.job.state() is JobState.DONE
    testing.clear(example.app)
    assert example.memory.scheduled() == []
    example.hello("again")  # with the id of the first
    assert job.state() is JobState.DONE
    example.drain()
    assert example.ledger == ["hook", "hello world", "hook", "hello again"]


def test_jobs_tell_their_state_and_can_be_cancelled(example):
    ready, delayed = example.hello("a"), example.hello.options(delay=5)("b")
    assert (ready.state(), delayed.state()) == (JobState.READY, JobState.DELAYED)
    example.memory.move_time(5)
    assert delayed.state() is JobState.READY
    assert delayed.cancel()
    assert not delayed.cancel()
    example.drain()
    assert (ready.state(), delayed.state()) == (JobState.DONE, JobState.DONE)
    assert example.ledger == ["hook", "hello a"]


def test_many_are_put_and_invalid_ones_are_refused_as_by_a_server(example):
    assert len(example.hello.map(f"n{number}" for number in range(1001))) == 1001
    with pytest.raises(BulkError, match="accepted: index 0, index 3; refused: 1 to 2, at index 1 because") as caught:
        example.hello.map(["good", object(), "x" * 70_000, "good too"])
    assert [type(reason) for reason in caught.value.reasons.values()] == [MessageEncodeError, JobTooBigError]
    assert caught.value.jobs[3].state() is JobState.READY
    assert len(example.memory.scheduled()) == 1003


def test_a_value_that_breaks_on_the_wire_breaks_in_the_test(example):
    with pytest.raises(MessageEncodeError, match="argument 'target' of hello"):
        example.hello(object())
    with pytest.raises(TaskArgumentsError):
        example.hello()
    with pytest.raises(OptionError):
        example.hello.options(delay=-1)("world")
    with pytest.raises(QueueNameError):
        example.backend.send("a b", 1)
    with pytest.raises(JobTooBigError, match=r"the job has \d+ bytes, but Beanstalkd takes at most 65535"):
        example.hello("x" * 65_536)
    quotes = 2
    example.backend.send(OUTSIDE, "x" * (65_535 - quotes))
    with pytest.raises(JobTooBigError):
        example.backend.send(OUTSIDE, "x" * (65_536 - quotes))
    assert len(example.memory.scheduled()) == 1


def test_threads_may_schedule_at_once(example):
    def schedule():
        for number in range(200):
            example.hello(number)

    threads = [threading.Thread(target=schedule) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({record.job.id for record in example.memory.scheduled()}) == 800
    assert len(example.drain()) == 800


# -- a drain -------------------------------------------------------------------------------------------------


def test_a_drain_runs_due_jobs_and_the_jobs_they_schedule(example):
    example.chain(2)
    example.hello.options(delay=1)("later")
    assert example.drain() == ["chain"] * 3
    assert example.ledger == ["hook", "chain 2", "chain 1", "chain 0"]
    assert example.drain() == []


def test_a_drain_is_ordered_by_due_time_then_by_priority(example):
    example.hello.options(delay=20, priority=0)("last")
    example.hello.options(delay=10)("after")
    example.hello.options(priority=7)("third")
    example.hello.options(priority=1)("first")
    example.hello.options(priority=1)("second")
    example.memory.move_time(60)
    example.drain()
    assert [line.removeprefix("hello ") for line in example.ledger[1:]] == ["first", "second", "third", "after", "last"]


def test_each_task_has_a_fresh_context_independent_of_the_callers(example):
    example.look()
    example.look()
    token = seen_in_context.set("the caller's")
    try:
        with example.app.test_request_context("/"):
            g.seen = 100
            testing.drain()
            assert g.seen == 100
    finally:
        seen_in_context.reset(token)
    assert example.ledger == [("example", 1, False, "nothing", "look")] * 2
    assert not current_job


def test_hooks_run_once_before_the_first_task_of_their_queue(example):
    example.look()
    example.drain()
    assert "hook" not in example.ledger
    example.hello("a")
    example.drain()
    example.hello("b")
    example.drain()
    assert example.ledger[1:] == ["hook", "hello a", "hello b"]


def test_a_hook_that_fails_is_raised_and_the_job_stays(example):
    @example.backend.before_first_task(QUEUE)
    def connect():
        raise RuntimeError("no database")

    job = example.hello("world")
    for _ in range(2):
        with pytest.raises(RuntimeError, match="no database"):
            example.memory.drain(raise_errors=False)
        assert job.state() is JobState.READY
    assert example.ledger == ["hook", "hook"]


def test_a_receiver_gets_messages_and_those_of_other_systems_stay(example):
    example.backend.send(INBOX, {"any": "json"})
    job = example.backend.send(OUTSIDE, {"any": "json"})
    assert len(example.memory.drain()) == 1
    assert example.ledger == [("inbox", {"any": "json"})]
    assert job.state() is JobState.READY


def test_a_queue_called_default_is_drained_only_if_the_app_serves_it(example):
    example.backend.send("default", 1)
    assert example.memory.drain() == []


def test_a_message_that_is_not_a_call_is_buried_and_raised(example):
    job = example.backend.send(QUEUE, {"any": "json"})
    [record] = example.memory.scheduled()
    assert (record.endpoint, record.message) == (None, {"any": "json"})
    with pytest.raises(ValueError, match="the JSON object has no 'endpoint'"):
        example.memory.drain()
    assert job.state() is JobState.BURIED
    [buried] = example.memory.buried()
    assert buried.note.reason == "it can never run: the JSON object has no 'endpoint'"


def test_async_tasks_run(example):
    @example.backend.task(QUEUE, endpoint="asynchronous")
    async def asynchronous():
        example.ledger.append(current_job.endpoint)

    asynchronous()
    example.drain()
    assert example.ledger[-1] == "asynchronous"


# -- failures and time ---------------------------------------------------------------------------------------


def test_a_failure_is_raised_unchanged_after_its_job_was_released(example, caplog):
    job = example.fail("no luck")
    example.hello("world")
    with pytest.raises(ValueError, match=r"^no luck$"):
        example.memory.drain()
    assert job.state() is JobState.DELAYED
    assert f"task fail of {QUEUE} failed (job {job.id}, attempt 1 of 3), next try in 10 s" in caplog.text
    assert example.drain() == ["hello"]


def test_retries_run_as_time_moves_until_the_job_is_buried_with_its_story(example):
    job = example.fail()
    for seconds in (0, 10, timedelta(seconds=20), 600):
        testing.move_time(seconds, example.app)
        testing.drain(example.app, raise_errors=False)
    assert example.ledger == ["hook", "fail 1 True", "fail 2 True", "fail 3 False"]
    assert job.state() is JobState.BURIED
    [buried] = testing.buried(example.app)
    assert (buried.scheduled.job, buried.note.reason, buried.note.attempts) == (job, "failed 3 times", 3)
    assert (buried.note.exception, buried.note.message, buried.note.call) == ("ValueError", "no luck", "fail()")
    first, second, *_ = buried.note.traceback.splitlines()
    assert first == "Traceback (most recent call last):"
    assert __file__ in second
    assert len(example.memory.scheduled()) == 1  # the story is not among the scheduled jobs
    assert job.cancel()
    assert example.memory.buried() == []


def test_a_drain_reports_each_attempt_and_its_exception(example):
    example.fail()
    example.hello("world")
    failed, went_well = testing.drain(example.backend, raise_errors=False)
    assert (failed.scheduled.endpoint, failed.attempt, str(failed.error)) == ("fail", 1, "no luck")
    assert (went_well.scheduled.endpoint, went_well.attempt, went_well.error) == ("hello", 1, None)
    testing.move_time(10, example.backend)
    [again] = testing.drain(example.backend, raise_errors=False)
    assert (again.scheduled, again.attempt) == (failed.scheduled, 2)


@pytest.mark.parametrize(
    ("how", "state"), [("later", JobState.DELAYED), ("bury", JobState.BURIED), ("discard", JobState.DONE)]
)
def test_a_decision_of_a_task_is_applied_and_not_an_error(example, how, state):
    job = example.decide(how)
    [ran] = example.memory.drain()
    assert type(ran.error) in (RetryLater, Bury, Discard)
    assert job.state() is state
    example.memory.move_time(30)
    assert len(example.memory.drain()) == (how == "later")


def test_the_retry_policy_of_the_settings_counts():
    example = Example("memory://", BACKEND_RETRY={"max_retries": 0})

    @example.backend.task(QUEUE)
    def plain():
        raise OSError

    job = plain()
    example.memory.drain(raise_errors=False)
    assert job.state() is JobState.BURIED


def test_a_task_may_exit_and_ctrl_c_is_always_raised(example):
    left = example.leave("exit")
    [ran] = example.memory.drain(raise_errors=False)
    assert isinstance(ran.error, SystemExit)
    assert left.state() is JobState.DELAYED
    stopped = example.leave("interrupt")
    with pytest.raises(KeyboardInterrupt):
        example.memory.drain(raise_errors=False)
    assert stopped.state() is JobState.DELAYED


def test_the_age_of_a_job_grows_with_the_time_and_it_stays_held_as_time_moves(example):
    job = example.age.options(delay=50, ttr=1)(shift=3600)
    example.memory.move_time(100)
    assert example.drain() == ["age"]
    assert example.ledger == [(job.id, 100)]
    assert job.state() is JobState.DONE


def test_time_moves_only_forward(example):
    for wrong in (-1, float("inf"), float("nan"), timedelta(seconds=-1)):
        with pytest.raises(OptionError, match="expected seconds or a timedelta, 0 or more"):
            example.memory.move_time(wrong)


def test_a_delay_until_a_time_of_day_becomes_due_when_time_is_moved(example):
    job = example.hello.options(delay=datetime.now(UTC) + timedelta(hours=1))("world")
    example.memory.move_time(timedelta(minutes=59))
    assert job.state() is JobState.DELAYED
    example.memory.move_time(timedelta(minutes=1))
    assert example.drain() == ["hello"]


# -- assertions ----------------------------------------------------------------------------------------------


def test_a_call_is_found_however_its_arguments_were_passed(example):
    job = example.hello.options(delay=60)("world")
    assert testing.assert_scheduled(example.hello, "world").job == job
    testing.assert_scheduled(example.hello, target="world")
    testing.assert_scheduled(example.hello, "world", loud=False)
    testing.assert_scheduled(example.hello, "world", delay=60)
    testing.assert_scheduled(example.hello, "world", delay=timedelta(minutes=1), priority=65536, ttr=120)


def test_arguments_are_compared_in_their_json_form(example):
    example.hello(("a", {"x": (2,)}))
    testing.assert_scheduled(example.hello, ("a", {"x": (2,)}))
    testing.assert_scheduled(example.hello, ["a", {"x": [2]}])


def test_a_delay_until_a_time_of_day_is_found(example):
    at = datetime.now(UTC) + timedelta(hours=1)
    example.hello.options(delay=at)("world")
    testing.assert_scheduled(example.hello, "world", delay=at)
    with pytest.raises(AssertionError):
        testing.assert_scheduled(example.hello, "world", delay=at + timedelta(seconds=3))


def test_an_option_with_the_name_of_a_parameter_is_the_parameter(example):
    @example.backend.task(QUEUE)
    def boil(delay):
        """Wait for the kettle."""

    boil.options(delay=5)(delay=180)
    testing.assert_scheduled(boil, delay=180)
    testing.assert_not_scheduled(boil, delay=5)


def test_a_failure_shows_how_the_nearest_call_differs_and_what_was_scheduled(example):
    example.look("elsewhere")
    example.hello.options(delay=5)("worlds")
    example.hello("x" * 500)
    with pytest.raises(AssertionError) as caught:
        testing.assert_scheduled(example.hello, "world", delay=60)
    assert str(caught.value).splitlines() == [
        'hello("world") on com.example/default, delay=60 was not scheduled.',
        "The nearest (- expected, + scheduled):",
        "  - target = 'world'",
        "  + target = 'worlds'",
        "  ?                +",
        "    loud = False",
        "  - delay = 60",
        "  ?         ^^",
        "  + delay = 5",
        "  ?         ^",
        "Scheduled:",
        '  look("elsewhere") on com.example/other, delay=0',
        '  hello("worlds") on com.example/default, delay=5',
        f'  hello("{"x" * 192}… on com.example/default, delay=0',
    ]


def test_a_failure_is_short_if_nothing_or_much_else_was_scheduled(example):
    with pytest.raises(AssertionError, match=r"^hello\(1\) on com.example/default was not scheduled; nothing was$"):
        testing.assert_scheduled(example.hello, 1)
    example.look.map(range(30))
    with pytest.raises(AssertionError) as caught:
        testing.assert_scheduled(example.hello, 1)
    assert str(caught.value).splitlines()[-1] == "  and 20 more"


def test_unexpected_calls_are_shown(example):
    testing.assert_not_scheduled(example.hello)
    example.hello.options(delay=5)("world")
    testing.assert_not_scheduled(example.hello, "moon")
    testing.assert_not_scheduled(example.hello, "world", delay=6)
    testing.assert_not_scheduled(example.look)
    with pytest.raises(AssertionError, match=r'^hello\("world"\) on com.example/default was scheduled, and should not'):
        testing.assert_not_scheduled(example.hello, "world")
    with pytest.raises(AssertionError, match=r"^hello\(\.\.\.\) on com\.example/default was scheduled"):
        testing.assert_not_scheduled(example.hello)


def test_a_message_is_asserted_by_its_queue(example):
    memory = example.memory
    memory.assert_not_scheduled(INBOX)
    example.backend.send(INBOX, {"n": (1, 2)}, delay=3)
    memory.assert_scheduled(INBOX, {"n": [1, 2]}, delay=3)
    memory.assert_not_scheduled(INBOX, {"n": 3})
    with pytest.raises(AssertionError, match=r"- message = \{'n': \[1\]\}"):
        memory.assert_scheduled(INBOX, {"n": [1]})
    with example.app.app_context():
        testing.assert_scheduled(INBOX, {"n": [1, 2]})


def test_an_impossible_assertion_is_refused(example):
    example.hello("world")
    with pytest.raises(TaskArgumentsError, match=r"hello\(target, \*, loud=False\) cannot be called"):
        testing.assert_scheduled(example.hello, "world", lod=True)
    with pytest.raises(OptionError, match="priority is 'high'"):
        testing.assert_scheduled(example.hello, "world", priority="high")
    with pytest.raises(MessageEncodeError):
        testing.assert_scheduled(example.hello, object())
    with pytest.raises(TypeError, match="expected a task, or the name of a queue for a message on it; got <function"):
        testing.assert_scheduled(example.inbox, "x")
    with pytest.raises(TypeError, match=r"expected one message for 'com\.example/inbox', and options by name: delay"):
        example.memory.assert_scheduled(INBOX)


# -- which app -----------------------------------------------------------------------------------------------


def test_each_app_has_its_own_jobs():
    backend, apps = Backend(), [Flask("one"), Flask("two")]

    @backend.task(QUEUE)
    def who():
        pass

    for app in apps:
        app.config["BACKEND_CONNECTION_URI"] = "memory://"
        backend.init_app(app)
    with apps[0].app_context():
        who()
        testing.assert_scheduled(who)
        assert len(testing.scheduled()) == len(testing.scheduled(backend)) == 1
    assert testing.scheduled(apps[1]) == []
    with pytest.raises(RegistrationError, match="no app context is active"):
        testing.assert_scheduled(who)


def test_an_ambiguous_app_is_an_error(example):
    with pytest.raises(RegistrationError, match=r"use testing\.memory\(app\), or `with app.app_context\(\):`"):
        testing.drain()
    with pytest.raises(RegistrationError, match="app 'bare' has no Backend"):
        testing.drain(Flask("bare"))


def test_an_app_with_a_real_broker_gets_instructions():
    with pytest.raises(ConfigError, match=r"uses btq://127.0.0.1:1; expected memory://.*before init_app.*conftest"):
        Example("btq://127.0.0.1:1").memory.scheduled()


# -- sync:// -------------------------------------------------------------------------------------------------


def test_a_call_runs_at_once_after_a_json_round_trip(sync):
    job = sync.hello(("a", 1), loud=True)
    assert sync.ledger == ["hook", "hello ['a', 1]!"]
    assert job.state() is JobState.DONE
    assert not job.cancel()
    with pytest.raises(MessageEncodeError):
        sync.hello(object())
    with pytest.raises(JobTooBigError):
        sync.hello("x" * 70_000)


def test_a_delayed_call_runs_at_once_too(sync):
    job = sync.hello.options(delay=3600)("world")
    assert sync.ledger == ["hook", "hello world"]
    assert job.state() is JobState.DONE
    testing.assert_scheduled(sync.hello, "world", delay=3600)


def test_sync_calls_have_a_context_of_their_own(sync):
    with sync.app.test_request_context("/"):
        g.seen = 100
        sync.look()
        assert g.seen == 100
    assert sync.ledger == [("example", 1, False, "nothing", "look")]


def test_tasks_that_schedule_tasks_nest(sync):
    sync.chain(2)
    assert sync.ledger == ["hook", "chain 2", "chain 1", "chain 0"]


def test_an_exception_of_a_task_is_raised_in_the_caller(sync):
    with pytest.raises(ValueError, match="no luck"):
        sync.fail()
    assert sync.ledger == ["hook", "fail 1 True"]
    for how, kind in (("later", RetryLater), ("bury", Bury), ("discard", Discard)):
        with pytest.raises(kind):
            sync.decide(how)
    assert sync.memory.drain() == []


def test_many_run_at_once_and_invalid_ones_are_reported(sync):
    jobs = sync.hello.map(["a", "b"])
    assert [job.state() for job in jobs] == [JobState.DONE] * 2
    sync.backend.send_many(INBOX, [1, {"b": 2}])
    with pytest.raises(BulkError, match="refused: index 1"):
        sync.hello.map(["c", object(), "d"])
    expected = ["hook", "hello a", "hello b", ("inbox", 1), ("inbox", {"b": 2}), "hello c", "hello d"]
    assert sync.ledger == expected


def test_messages_for_other_systems_stay(sync):
    assert sync.backend.send(OUTSIDE, 1).state() is JobState.READY
    sync.memory.assert_scheduled(OUTSIDE, 1)


# -- the setting ---------------------------------------------------------------------------------------------


def test_the_uri_names_a_server_or_a_stand_in():
    assert parse_broker("memory://") is StandIn.MEMORY
    assert parse_broker("sync://") is StandIn.SYNC
    assert parse_broker("btq://localhost") == Address("localhost")
    assert str(StandIn.MEMORY) == "memory://"


@pytest.mark.parametrize("uri", ["memory", "memory:", "memory://x", "sync:///", "MEMORY://", None, 5])
def test_a_wrong_uri_raises_and_names_all_forms(uri):
    with pytest.raises(ConfigError, match=r"expected btq://HOST or .*; in tests memory:// or sync://"):
        parse_broker(uri)


def test_nothing_connects_to_a_stand_in():
    with pytest.raises(ConfigError, match="BACKEND_CONNECTION_URI is sync://, which is a stand-in for tests"):
        _ = Settings(StandIn.SYNC).address


@pytest.mark.parametrize("uri", ["memory://", "sync://"])
def test_a_stand_in_does_not_keep_its_app_alive(uri):
    backend = Backend()
    app = Flask("app")
    app.config["BACKEND_CONNECTION_URI"] = uri
    backend.init_app(app)
    del app
    gc.collect()
    assert not list(backend._producers)


def test_production_imports_nothing_of_the_test_kit():
    code = (
        "import sys; from flask import Flask; from flask_backend import Backend; Backend(Flask('app'));"
        "print([name for name in sys.modules if name.startswith('flask_backend.') and"
        " name.split('.')[1] in ('memory', 'sync', 'testing', 'embedded')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    assert done.stdout == "[]\n", done.stderr


def test_only_the_plugin_needs_pytest():
    code = "import sys; import flask_backend.testing; print('pytest' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    assert done.stdout == "False\n", done.stderr


@pytest.mark.parametrize("name", MAKERS)
def test_any_exception_is_buried_with_a_story(name):
    app = Flask("hostile")
    app.config["BACKEND_CONNECTION_URI"] = "memory://"
    backend = Backend(app)

    @backend.task("q", retry=Retry(max_retries=0))
    def fail():
        error = MAKERS[name]()
        raise error

    with app.app_context():
        fail()
        with suppress(Evil):  # not an Exception, so it goes to the test
            testing.drain(raise_errors=False)
        [buried] = testing.buried()
    assert buried.note.exception
    assert buried.note.traceback


@pytest.mark.parametrize("uri", ["memory://", "sync://"])
def test_arguments_that_are_nested_too_deeply_are_refused_in_the_caller(uri):
    app = Flask("deep")
    app.config["BACKEND_CONNECTION_URI"] = uri
    backend = Backend(app)
    got = []
    task = backend.task("q", "take")(got.append)
    value = []
    for _ in range(253):
        value = [value]
    with app.app_context():
        task(value)
        with pytest.raises(MessageEncodeError, match="nested too deeply"):
            task([value])
        with pytest.raises(MessageEncodeError, match="nested too deeply"):
            backend.send(OUTSIDE, [[[value]]])
        testing.drain()
    assert got == [value]
