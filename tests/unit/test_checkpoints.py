"""Cursors and checkpoints, in memory; with real workers: tests/faults/test_checkpoints_under_faults.py."""

from __future__ import annotations

import asyncio
from contextlib import nullcontext

import pytest
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import insert, select
from sqlalchemy.orm import Mapped, mapped_column

from flask_backend import (
    Backend,
    CheckpointError,
    Discard,
    JobState,
    MessageEncodeError,
    OptionError,
    QueueNameError,
    Retry,
    RetryLater,
    TaskInterrupted,
    current,
    current_job,
    signals,
    testing,
)
from flask_backend.broker.cursors import MAX_CURSOR_BYTES, Owner
from flask_backend.current import CurrentJob
from flask_backend.names import is_cursor_tube, is_queue_name

QUEUE = "q"


@pytest.fixture
def backend(request):
    app = Flask(__name__)
    app.config["BACKEND_CONNECTION_URI"] = getattr(request, "param", "memory://")
    yield Backend(app)  # noqa: PT022  # it does not keep its app


@pytest.fixture
def seen():
    return []


@pytest.fixture
def count(backend, seen):
    @backend.task(QUEUE, retry=Retry(max_retries=2))
    def count(to, fail_at=None):
        start = current_job.cursor or 0
        seen.append(f"from {start}, attempt {current_job.attempt}")
        for number in range(start + 1, to + 1):
            if number == fail_at:
                raise ValueError(number)
            seen.append(number)
            current_job.checkpoint(number)

    return count


def kept(backend):
    return [job for job in broker(backend)._store.jobs.values() if is_cursor_tube(job.tube.name)]


def broker(backend):
    return testing.memory(backend)._broker


def test_a_task_that_is_interrupted_goes_on_at_its_cursor_as_the_same_attempt_of_the_same_job(backend, count, seen):
    told = []

    def receive(_app, job, ran_s):
        told.append((job.id, job.cursor, ran_s >= 0))

    job = count(4)
    testing.interrupt(2, app=backend)
    with signals.task_interrupted.connected_to(receive):
        first, second = testing.drain(backend)
    assert seen == ["from 0, attempt 1", 1, 2, "from 2, attempt 1", 3, 4]
    assert [type(first.error), second.error] == [TaskInterrupted, None]
    assert (first.scheduled.job, first.attempt) == (second.scheduled.job, second.attempt) == (job, 1)
    assert told == [(job.id, 2, True)]
    assert job.state() is JobState.DONE
    assert kept(backend) == []


def test_a_task_can_be_interrupted_at_each_of_its_checkpoints(backend, count, seen):
    for at in range(1, 6):
        seen.clear()
        count(5)
        testing.interrupt(at, app=backend)
        ran = testing.drain(backend)
        assert [each for each in seen if isinstance(each, int)] == [1, 2, 3, 4, 5]
        assert len(ran) == 2
        assert kept(backend) == []


def test_a_retry_goes_on_at_the_last_cursor_also_after_a_burial(backend, count, seen):
    job = count(4, fail_at=3)
    for attempt in (1, 2, 3):
        [ran] = testing.drain(backend, raise_errors=False)
        assert (str(ran.error), ran.attempt) == ("3", attempt)
        testing.move_time(1000, app=backend)
    assert seen == ["from 0, attempt 1", 1, 2, "from 2, attempt 2", "from 2, attempt 3"]
    assert job.state() is JobState.BURIED
    assert len(kept(backend)) == 1
    assert job.cancel()
    assert kept(backend) == []


def test_a_discarded_job_leaves_no_cursor(backend):
    @backend.task(QUEUE)
    def discards():
        current_job.checkpoint(1)
        raise Discard("enough")

    discards()
    testing.drain(backend)
    assert kept(backend) == []


@pytest.mark.parametrize(("every_s", "saved"), [(5.0, [[], [], []]), (0.0, [[b"0}"], [b"1}"], [b"2}"]])])
def test_a_cursor_is_saved_after_a_while_in_place_of_the_last_one(backend, monkeypatch, every_s, saved):
    monkeypatch.setattr(current, "SAVE_EVERY_S", every_s)
    saves = []

    @backend.task(QUEUE)
    def long():
        for number in range(3):
            current_job.checkpoint(number)
            saves.append([job.body.rpartition(b":")[2] for job in kept(backend)])

    long()
    testing.drain(backend)
    assert saves == saved
    assert kept(backend) == []


def test_a_swallowed_interruption_is_raised_again_at_the_next_checkpoint(backend, seen):
    @backend.task(QUEUE)
    def stubborn():
        seen.append(current_job.cursor)
        for number in range(3):
            try:
                current_job.checkpoint(number)
            except BaseException as error:
                seen.append(type(error))
                testing.interrupt(app=backend)

    stubborn()
    testing.interrupt(app=backend)
    [ran] = testing.drain(backend)
    assert seen == [None, TaskInterrupted, TaskInterrupted, TaskInterrupted]
    assert ran.error is None
    assert kept(backend) == []


def test_the_exception_itself_is_a_failure_like_any_other(backend):
    @backend.task(QUEUE)
    def raises():
        raise TaskInterrupted

    raises()
    [ran] = testing.drain(backend, raise_errors=False)
    assert ran.scheduled.job.state() is JobState.DELAYED


def test_a_cursor_is_kept_as_it_was_at_its_checkpoint(backend, seen):
    @backend.task(QUEUE)
    def changes():
        cursor = current_job.cursor or {"done": []}
        seen.append(cursor)
        if len(cursor["done"]) == 2:
            return
        cursor["done"].append(len(cursor["done"]))
        current_job.checkpoint(cursor)
        cursor["done"].append("begun")
        current_job.cursor["done"].append("begun")
        raise RetryLater(1)

    changes()
    for _ in range(3):
        testing.drain(backend)
        testing.move_time(2, app=backend)
    assert seen == [{"done": [0, "begun"]}, {"done": [0, 1, "begun"]}, {"done": [0, 1]}]


@pytest.mark.parametrize("depth", [1, 2])
def test_an_interruption_in_a_group_of_coroutines_is_one_too(backend, seen, depth):
    async def part(number, depth):
        async with asyncio.TaskGroup() as group:
            if depth > 1:
                group.create_task(part(number, depth - 1))
            else:
                await asyncio.sleep(0)
                current_job.checkpoint(number)

    @backend.task(QUEUE)
    async def parts():
        seen.append((current_job.cursor, current_job.attempt))
        await part(1, depth)

    parts()
    testing.interrupt(app=backend)
    first, second = testing.drain(backend)
    assert [type(first.error), second.error] == [TaskInterrupted, None]
    assert seen == [(None, 1), (1, 1)]


def test_a_failure_beside_an_interruption_is_a_failure(backend):
    @backend.task(QUEUE)
    async def fails():
        async def part():
            try:
                await asyncio.sleep(60)
            finally:
                raise ValueError("cleaning up")

        async with asyncio.TaskGroup() as group:
            group.create_task(part())
            await asyncio.sleep(0)
            group.create_task(asyncio.to_thread(current_job.checkpoint, 1))

    job = fails()
    testing.interrupt(app=backend)
    with pytest.raises(BaseExceptionGroup):
        testing.drain(backend)
    assert job.state() is JobState.DELAYED


def test_async_tasks_and_receivers_have_cursors_too(backend, seen):
    @backend.task(QUEUE)
    async def asynchronous():
        seen.append(current_job.cursor)
        current_job.checkpoint({"page": 1})
        seen.append("after")

    @backend.receiver("inbox")
    def inbox(message):
        seen.append(current_job.cursor)
        current_job.checkpoint(["a", None])
        seen.append("after")

    asynchronous()
    testing.interrupt(app=backend)
    testing.drain(backend)
    assert seen == [None, {"page": 1}, "after"]
    seen.clear()
    backend.send("inbox", 1)
    testing.interrupt(app=backend)
    testing.drain(backend)
    assert seen == [None, ["a", None], "after"]
    assert kept(backend) == []


@pytest.mark.parametrize(
    ("cursor", "reason"),
    [
        (object(), "the cursor <object object at .*> cannot be kept: JSON cannot carry it"),
        ({1: 2}, "the dict key 1 is not a string"),
        ("x" * MAX_CURSOR_BYTES, r"as JSON it has 8194 bytes, and at most 8192 are allowed; pass a key"),
    ],
)
@pytest.mark.parametrize("backend", ["memory://", "sync://"], indirect=True)
def test_a_cursor_is_json_of_limited_size(backend, cursor, reason):
    @backend.task(QUEUE)
    def task():
        with pytest.raises(MessageEncodeError, match=reason):
            current_job.checkpoint(cursor)
        current_job.checkpoint("x" * (MAX_CURSOR_BYTES - 2))

    task()
    testing.drain(backend)
    task.run()


@pytest.mark.parametrize("backend", ["sync://"], indirect=True)
def test_a_task_that_runs_at_once_has_no_cursor_and_is_never_left(backend, count, seen):
    testing.interrupt(app=backend)
    count(2)
    assert seen == ["from 0, attempt 1", 1, 2]
    assert kept(backend) == []


def test_a_task_in_run_has_no_cursor_also_inside_another_one(backend, seen):
    @backend.task(QUEUE)
    def inner():
        seen.append((current_job.cursor, bool(current_job), current_job.id if current_job else None))
        current_job.checkpoint("inner")

    @backend.task(QUEUE)
    def outer():
        current_job.checkpoint("outer")
        inner.run()
        seen.append((current_job.cursor, current_job.endpoint))

    inner.run()
    job = outer()
    testing.drain(backend)
    assert seen == [(None, False, None), (None, True, job.id), ("outer", "outer")]
    assert not current_job
    with pytest.raises(RuntimeError, match="No job is running here"):
        current_job.checkpoint(1)


def test_what_run_calls_still_has_no_job(backend):
    @backend.task(QUEUE)
    def asks():
        return current_job.id

    with pytest.raises(RuntimeError, match="No job is running here"):
        asks.run()


@pytest.mark.parametrize("at", [0, -1, 1.5, True, None])
def test_it_is_interrupted_at_a_checkpoint_that_can_be(backend, at):
    with pytest.raises(OptionError, match="expected a whole number from 1"):
        testing.interrupt(at, app=backend)


@pytest.mark.parametrize("uid", [None, "", "a" * 32, "with space", "x\r\nkick 1", "é", "a" * 300, "\ud800", "-a/b"])
def test_any_id_of_a_message_makes_a_tube(uid):
    tube = Owner(7, QUEUE, uid or None).tube
    assert is_queue_name(tube)
    assert is_cursor_tube(tube)
    assert tube != Owner(8, QUEUE, f"{uid}2").tube


def test_a_cursor_of_an_earlier_job_with_the_same_id_is_not_taken(backend):
    @backend.receiver("inbox")
    def inbox(message):
        seen.append(current_job.cursor)
        current_job.checkpoint(message)

    seen = []
    job = backend.send("inbox", 1)
    owner = Owner(job.id, "inbox", None)
    broker(backend).put_aside(owner.tube, b'{"job":9,"queue":"inbox","uid":null,"number":1,"cursor":5}', 0)
    broker(backend).put_aside(owner.tube, b"not ours", 1)
    testing.drain(backend)
    assert seen == [None]


class Tubes:
    """The cursors on a server, which all its connections share."""

    def __init__(self, bodies=None):
        self.bodies = {} if bodies is None else bodies  # the priority, then the id

    def put_aside(self, _tube, body, priority):
        self.bodies[priority, len(self.bodies)] = body
        return len(self.bodies)

    def first_ready(self, _tube):
        return next(((key[1] + 1, body) for key, body in sorted(self.bodies.items())), None)

    def delete_each(self, _ids):
        return []  # that of a worker whose connection broke never arrived


class Lease:
    def __init__(self, connection):
        self.connection = connection

    def keeping(self):
        return nullcontext(self.connection)

    def is_leaving(self):
        return False


def test_a_cursor_counts_more_than_all_those_that_were_kept_while_the_connection_was_broken(monkeypatch):
    monkeypatch.setattr(current, "SAVE_EVERY_S", 0.0)
    here = Lease(Tubes())
    job, elsewhere = (
        CurrentJob(1, QUEUE, "long", {"id": "u"}, Retry(), lease) for lease in (here, Lease(here.connection))
    )
    for cursor in (1, 2):
        job.checkpoint(cursor)
    for cursor in (3, 4, 5):
        elsewhere.checkpoint(cursor)
    here.connection = Tubes(here.connection.bodies)
    job.checkpoint(6)
    assert job.cursor == 6
    assert CurrentJob(1, QUEUE, "long", {"id": "u"}, Retry(), here).cursor == 6


def test_queues_of_users_cannot_be_named_like_the_tubes_of_cursors(backend):
    with pytest.raises(QueueNameError, match="the cursor of a task"):
        backend.task("flask-backend.cursor/mine")


@pytest.mark.parametrize("backend", ["memory://", "sync://"], indirect=True)
def test_progress_is_two_whole_numbers(backend, seen):
    @backend.task(QUEUE)
    def task():
        current_job.progress(0, 0)
        current_job.progress(12, 10)
        for done, total in ((-1, 1), (1, 2**63), (1.5, 2), (True, 1), ("1", 2), (1, None)):
            with pytest.raises(OptionError, match=r"progress: (done|total) is .*; expected a whole number from 0"):
                current_job.progress(done, total)
        seen.append(True)

    task()
    testing.drain(backend)
    task.run()
    assert seen == [True, True]


def test_a_checkpoint_before_the_commit_is_refused_each_time(seen):
    app = Flask(__name__)
    app.config.update(BACKEND_CONNECTION_URI="memory://", SQLALCHEMY_DATABASE_URI="sqlite://")
    db = SQLAlchemy(app)
    backend = Backend(app)

    class Row(db.Model):
        id: Mapped[int] = mapped_column(primary_key=True)

    @backend.task(QUEUE)
    def imports():
        db.create_all()
        db.session.scalars(select(Row)).all()
        current_job.checkpoint(0)  # a transaction that has only read
        for how in (lambda: None, db.session.flush):
            db.session.add(Row())
            how()
            with pytest.raises(CheckpointError, match="commit what the cursor covers before the checkpoint"):
                current_job.checkpoint(1)
            db.session.rollback()
        db.session.execute(insert(Row))
        with pytest.raises(CheckpointError):
            current_job.checkpoint(1)
        db.session.commit()
        current_job.checkpoint(2)
        seen.append(current_job.cursor)

    imports()
    testing.drain(backend)
    assert seen == [2]
    with app.app_context():
        db.session.remove()
        for engine in db.engines.values():
            engine.dispose()
