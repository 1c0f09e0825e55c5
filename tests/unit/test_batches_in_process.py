"""Batches in memory:// and sync://: what a block accepts, and what the callback sees."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from support.in_memory import make_app

from flask_backend import (
    Backend,
    Batch,
    BulkError,
    Bury,
    Discard,
    JobState,
    MessageEncodeError,
    OptionError,
    RetryLater,
    TaskArgumentsError,
    current_job,
    testing,
)
from flask_backend.message import add_header, decode, encode_call, head_of
from flask_backend.signals import task_scheduled

QUEUE, OTHER = "q", "other"


class Example:
    def __init__(self, uri="memory://"):
        self.app, self.backend = make_app(uri)
        backend, self.ran = self.backend, []

        @backend.task(QUEUE)
        def hello(what, *, loud=False):
            self.ran.append((what, loud, current_job.batch))
            outcome = {"discard": Discard("x"), "bury": Bury("x"), "later": RetryLater(60), "fail": LookupError("x")}
            if (error := outcome.get(what)) is not None and current_job.attempt == 1:
                raise error

        @backend.task(OTHER)
        def done(*args):
            self.ran.append(("done", *args, current_job.batch))

        self.hello, self.done = hello, done

    def batch(self, *names, **options):
        with self.backend.batch(**options) as batch:
            batch.on_complete(self.done, "all")
            for name in names:
                batch.add(self.hello, name)
        return batch

    def is_done(self, batch):
        return ("done", "all", batch.id) in self.ran

    @property
    def left(self):
        """The tubes that have jobs."""
        return {job.tube.name for job in self.backend.producer_of(self.app).broker._store.jobs.values()}


@pytest.fixture
def example():
    example = Example()
    with example.app.app_context():
        yield example


def test_drain_runs_the_calls_and_then_the_callback(example):
    with example.backend.batch() as batch:
        batch.on_complete(example.done.options(priority=1), "all")
        batch.add(example.hello.options(priority=5), "a", loud=True)
        batch.map(example.hello, "bc")
        assert testing.scheduled() == []
        assert repr(batch) == f"<batch {batch.id} of 3 calls>"
    assert [record.args for record in testing.scheduled()] == [["a"], ["b"], ["c"]]
    assert len(testing.drain()) == 4
    assert example.ran[0] == ("a", True, batch.id)
    assert example.ran[-1] == ("done", "all", batch.id)
    testing.assert_scheduled(example.done, "all", priority=1)
    assert example.left == set()


def test_the_batch_of_other_jobs_is_none(example):
    example.hello("a")
    testing.drain()
    assert example.ran == [("a", False, None)]


@pytest.mark.parametrize("way", ["discard", "later", "fail"])
def test_a_call_that_ends_at_last_does_not_hold_up_the_callback(example, way):
    batch = example.batch(way)
    testing.drain(raise_errors=False)
    assert example.is_done(batch) is (way == "discard")
    testing.move_time(3600)
    testing.drain(raise_errors=False)
    assert example.is_done(batch)
    assert example.left == set()


def test_a_call_that_has_expired_is_finished(example):
    with example.backend.batch() as batch:
        batch.on_complete(example.done, "all")
        batch.add(example.hello.options(expires=10), "a")
    testing.move_time(11)
    testing.drain()
    assert example.ran == [("done", "all", batch.id)]


@pytest.mark.parametrize("when", ["done", "ended"])
def test_a_buried_call_holds_up_the_callback_unless_the_batch_counts_it(example, when):
    batch = example.batch("bury", when=when)
    testing.drain()
    assert example.is_done(batch) is (when == "ended")
    [buried] = testing.buried()
    assert buried.scheduled.job.cancel()
    testing.drain()
    assert example.ran.count(("done", "all", batch.id)) == 1


def test_a_callback_may_send_the_next_batch(example):
    @example.backend.task(QUEUE)
    def following():
        example.batch("next")

    with example.backend.batch() as batch:
        batch.on_complete(following)
        batch.add(example.hello, "first")
    testing.drain()
    assert [words[0] for words in example.ran] == ["first", "next", "done"]


def test_a_batch_in_the_block_of_another_one_is_sent_for_itself(example):
    with example.backend.batch() as outer:
        outer.on_complete(example.done, "outer")
        inner = example.batch("inner")
        outer.add(example.hello, "outer")
        testing.drain()
        assert example.is_done(inner)
    testing.drain()
    assert example.ran[-1] == ("done", "outer", outer.id)


def test_arguments_are_checked_in_the_block(example):
    with example.backend.batch() as batch:
        with pytest.raises(TaskArgumentsError):
            batch.on_complete(example.hello)
        batch.on_complete(example.done, "all")
        with pytest.raises(TaskArgumentsError):
            batch.add(example.hello)
        with pytest.raises(TaskArgumentsError):
            batch.add(example.hello, "a", quiet=True)
        with pytest.raises(MessageEncodeError, match="argument 'what' of hello"):
            batch.add(example.hello, object())
        with pytest.raises(BulkError, match="accepted: index 0, index 2; refused: index 1"):
            batch.map(example.hello, ["a", object(), "b"])
        assert len(batch) == 0
    testing.drain()
    assert example.ran == [("done", "all", batch.id)]


def test_a_call_in_place_of_a_task_is_refused(example):
    with example.backend.batch() as batch:
        batch.on_complete(example.done)
        for wrong in (print, "hello", example.hello("scheduled at once")):
            with pytest.raises(TypeError, match=r"a batch takes a task, or task\.options"):
                batch.add(wrong)
        with pytest.raises(TypeError, match="another Backend"):
            batch.add(Example().hello, "x")


def test_what_a_batch_lacks_or_has_twice_is_named(example):
    batch = example.backend.batch()
    with pytest.raises(RuntimeError, match="takes calls only in its block"):
        batch.add(example.hello, "a")
    with batch:
        batch.on_complete(example.done)
        with pytest.raises(OptionError, match="the batch has a callback already: done"):
            batch.on_complete(example.done)
    with pytest.raises(RuntimeError, match="takes calls only in its block"):
        batch.map(example.hello, "a")
    with pytest.raises(RuntimeError, match="was used already"), batch:
        pass
    with pytest.raises(OptionError, match="has no callback, and was not sent"), example.backend.batch() as batch:
        job = batch.add(example.hello, "a")
    assert job.state() is JobState.DROPPED
    with pytest.raises(OptionError, match="when is 'buried'; expected"):
        example.backend.batch(when="buried")
    with example.backend.batch() as batch:
        with pytest.raises(OptionError, match="counts from its scheduling"):
            batch.on_complete(example.done.options(delay=datetime(2100, 1, 1, tzinfo=UTC)))
        batch.on_complete(example.done)
    assert len(testing.scheduled()) == 2


def test_middleware_sees_each_call_and_writes_headers(example):
    seen = []

    @example.backend.schedule_middleware
    def note(call, proceed):
        call.headers.update(trace="x", batch="forged")
        seen.append((call.endpoint, call.args))
        assert proceed() is not None or call.args == ("mapped",)

    with example.backend.batch() as batch:
        batch.on_complete(example.done)
        batch.add(example.hello, "a")
        batch.map(example.hello, ["mapped"])
    assert seen == [("done", ()), ("hello", ("a",)), ("hello", ("mapped",))]
    testing.drain()
    assert [words[-1] for words in example.ran] == [batch.id] * 3


def test_scheduled_calls_are_announced_once_they_are_sent(example):
    announced = []

    def note(_app, endpoint, jobs, **_):
        announced.append((endpoint, [job.id for job in jobs]))

    with task_scheduled.connected_to(note, sender=example.app), example.backend.batch() as batch:
        batch.on_complete(example.done)
        jobs = [batch.add(example.hello, "a"), *batch.map(example.hello, "bc")]
        assert announced == []
    assert announced == [("hello", [job.id for job in jobs])]


def test_a_block_needs_an_app_in_use():
    backend = Backend()
    with pytest.raises(Exception, match="this Backend has no app"), backend.batch():
        pass


def test_in_sync_the_calls_run_at_the_end_of_the_block_and_then_the_callback():
    example = Example("sync://")
    with example.backend.batch() as batch:
        batch.on_complete(example.done, "all")
        batch.add(example.hello, "a")
        batch.map(example.hello, "bc")
        assert example.ran == []
    assert [words[0] for words in example.ran] == ["a", "b", "c", "done"]
    assert {words[-1] for words in example.ran} == {batch.id}


def test_in_sync_an_exception_of_a_call_is_raised_and_the_callback_does_not_run():
    example = Example("sync://")
    with pytest.raises(LookupError):
        example.batch("fail", "b")
    assert [words[0] for words in example.ran] == ["fail"]


def test_it_is_public():
    example = Example()
    assert isinstance(example.backend.batch(), Batch)
    assert example.backend.batch()


@pytest.mark.parametrize("headers", [None, {"expires": 1.5}])
def test_a_header_is_added_to_a_body(headers):
    body = encode_call(head_of("hello"), ["é}}"], {"a": {}}, "u", headers)
    message = decode(add_header(body, "batch", {"id": "x"}))
    assert message.headers["batch"] == {"id": "x"}
    assert {**message.headers, "batch": None} == {**decode(body).headers, "batch": None}
    assert (message.args, message.kwargs) == (["é}}"], {"a": {}})
