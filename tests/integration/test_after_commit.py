"""Calls that wait for a commit, in SQLite and in PostgreSQL."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import logging
import pickle
import threading

import pytest
import sqlalchemy
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import event, insert, select, text, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession, async_scoped_session, async_sessionmaker, create_async_engine
from sqlalchemy.orm import Mapped, Session, mapped_column, scoped_session, sessionmaker
from support.databases import Postgres

from flask_backend import (
    Backend,
    BulkError,
    ConfigError,
    JobState,
    MessageEncodeError,
    OptionError,
    signals,
    testing,
)

QUEUE = "com.example/default"
OTHER = "com.external/other"


@pytest.fixture(scope="module")
def postgres():
    server = Postgres()
    yield server
    server.stop()


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request, tmp_path):
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/test.db"
    return request.getfixturevalue("postgres").uri


class Example:
    def __init__(self, database: str, *, uri="memory://", setting=None) -> None:
        self.app = Flask("example")
        self.app.config.update(
            BACKEND_CONNECTION_URI=uri,
            BACKEND_AFTER_COMMIT=setting,
            SQLALCHEMY_DATABASE_URI=database,
            BACKEND_TIMEOUT=1,
        )
        self.backend = Backend(self.app)
        self.db = db = SQLAlchemy(self.app)
        self.ran: list = []

        class User(db.Model):
            id: Mapped[int] = mapped_column(primary_key=True)
            name: Mapped[str | None] = mapped_column(unique=True)

        @self.backend.task(QUEUE)
        def hello(name, *, loud=False):
            self.ran.append(name)

        self.User, self.hello = User, hello

    def sent(self) -> list:
        return [record.args[0] if record.endpoint else record.message for record in testing.scheduled(self.app)]

    def later(self, name, **options):
        return self.hello.options(after_commit=self.db.session, **options)(name)


@pytest.fixture
def make(database):
    made = []

    def make(**options):
        example = Example(database, **options)
        with example.app.app_context():
            example.db.drop_all()
            example.db.create_all()
        made.append(example)
        return example

    yield make
    for example in made:
        with example.app.app_context():
            for engine in example.db.engines.values():
                engine.dispose()


@pytest.fixture
def example(make):
    return make()


@pytest.fixture
def by_default(make):
    return make(setting="sqlalchemy")


@pytest.fixture
def context(example):
    with example.app.app_context():
        yield example


def warnings_in(caplog) -> list[str]:
    return [record.message for record in caplog.records if record.name == "flask_backend.after_commit"]


# -- the explicit option -------------------------------------------------------------------------------------------


def test_a_call_is_sent_after_the_commit(context):
    session = context.db.session
    session.add(context.User(name="a"))
    job = context.later("a")
    session.flush()
    assert context.sent() == []
    session.commit()
    assert context.sent() == ["a"]
    assert job.state() is JobState.READY
    session.add(context.User(name="b"))  # the session is usable
    session.commit()
    assert context.sent() == ["a"]


def test_a_call_before_the_first_statement_waits_too(context):
    context.later("a")
    context.db.session.add(context.User(name="a"))
    context.db.session.commit()
    context.later("b")
    context.db.session.add(context.User(name="b"))
    context.db.session.rollback()
    assert context.sent() == ["a"]


def test_a_rollback_drops_it_quietly(context, caplog):
    context.db.session.add(context.User(name="a"))
    job = context.later("a")
    context.db.session.rollback()
    context.db.session.commit()
    assert context.sent() == []
    assert job.state() is JobState.DROPPED
    assert job.wait(10) is JobState.DROPPED
    assert job.cancel() is False
    assert warnings_in(caplog) == []


def test_the_row_is_visible_when_the_call_is_sent(context, database):
    seen = []
    engine = sqlalchemy.create_engine(database)

    def look(_app, jobs, **_):
        with engine.connect() as connection:
            seen.append(connection.scalars(select(context.User.name)).all())

    context.db.session.add(context.User(name="a"))
    context.later("a")
    with signals.task_scheduled.connected_to(look):
        context.db.session.commit()
    engine.dispose()
    assert seen == [["a"]]


class TestSavepoints:
    def test_a_released_one_does_not_send(self, context):
        session = context.db.session
        with session.begin_nested():
            session.add(context.User(name="a"))
            context.later("inner")
        assert context.sent() == []
        context.later("outer")
        session.commit()
        assert context.sent() == ["inner", "outer"]

    def test_one_that_is_rolled_back_drops_only_its_own(self, context):
        session = context.db.session
        session.add(context.User(name="a"))
        context.later("before")
        nested = session.begin_nested()
        session.add(context.User(name="b"))
        dropped = context.later("inside")
        nested.rollback()
        context.later("behind")
        session.commit()
        assert context.sent() == ["before", "behind"]
        assert dropped.state() is JobState.DROPPED

    def test_a_failed_one_drops_and_the_outer_one_goes_on(self, context):
        session = context.db.session
        session.add(context.User(name="a"))
        session.flush()
        context.later("outer")
        with pytest.raises(IntegrityError), session.begin_nested():  # noqa: PT012  # raised at the end of the block
            context.later("inner")
            session.add(context.User(name="a"))
        session.commit()
        assert context.sent() == ["outer"]

    def test_deep_ones(self, context):
        session = context.db.session
        with session.begin_nested():
            context.later("1")
            with session.begin_nested():
                context.later("2")
            two = session.begin_nested()
            context.later("3")
            with session.begin_nested():
                session.add(context.User(name="a"))
                context.later("4")
            two.rollback()
            context.later("5")
        session.commit()
        assert context.sent() == ["1", "2", "5"]

    def test_an_outer_rollback_drops_released_ones(self, context):
        with context.db.session.begin_nested():
            context.later("a")
        context.db.session.rollback()
        assert context.sent() == []

    def test_what_only_a_rolled_back_savepoint_has_written_does_not_count(self, context, caplog):
        session = context.db.session
        context.later("outer")
        nested = session.begin_nested()
        session.add(context.User(name="a"))
        session.flush()
        nested.rollback()
        session.close()
        assert context.sent() == ["outer"]
        assert warnings_in(caplog) == []


WRITES = {
    "flush": lambda e: (e.db.session.add(e.User(name="w")), e.db.session.flush()),
    "insert": lambda e: e.db.session.execute(insert(e.User).values(name="w")),
    "update": lambda e: e.db.session.execute(update(e.User).values(name="w")),
    "query": lambda e: e.db.session.query(e.User).delete(),
    "text": lambda e: e.db.session.execute(text('-- a comment\n insert into "user" (name) values (:n)'), {"n": "w"}),
    "connection": lambda e: e.db.session.connection().execute(insert(e.User).values(name="w")),
    "driver": lambda e: e.db.session.connection().exec_driver_sql("insert into \"user\" (name) values ('w')"),
    "bulk": lambda e: e.db.session.bulk_insert_mappings(e.User, [{"name": "w"}]),
    "with": lambda e: e.db.session.execute(
        text('with x as (select 1) delete from "user" where 1 in (select * from x)')
    ),
}
READS = {
    "nothing": lambda e: None,
    "get": lambda e: e.db.session.get(e.User, 1),
    "select": lambda e: e.db.session.execute(select(e.User)).all(),
    "text": lambda e: e.db.session.execute(
        text("  /* a */ (select 1)" if "postgres" in str(e.db.engine.url) else "SELECT 1")
    ),
    "with": lambda e: e.db.session.execute(text("with x as (select 1) select * from x")),
    "savepoint": lambda e: e.db.session.begin_nested().commit(),
}


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("end", ["close", "teardown"])
def test_where_a_transaction_that_wrote_ends_without_a_commit_it_is_dropped_with_a_warning(example, write, end, caplog):
    with example.app.app_context():
        WRITES[write](example)
        job = example.later("a")
        if end == "close":
            example.db.session.close()
    assert example.sent() == []
    assert job.state() is JobState.DROPPED
    [line] = warnings_in(caplog)
    assert line.startswith(f"a call of hello on {QUEUE} ({job.uid}) was dropped: its transaction has written and has ")


@pytest.mark.parametrize("read", READS)
def test_where_a_transaction_that_only_read_ends_it_is_sent(example, read, caplog):
    with example.app.app_context():
        READS[read](example)
        example.later("a")
        assert example.sent() == []
    assert example.sent() == ["a"]
    assert warnings_in(caplog) == []


def test_unflushed_changes_that_are_closed_are_dropped_with_a_warning(example, caplog):
    with example.app.app_context():
        example.db.session.add(example.User(name="a"))
        example.later("a")
    assert example.sent() == []
    assert len(warnings_in(caplog)) == 1


def test_a_commit_that_fails_sends_nothing(context):
    session = context.db.session
    session.add(context.User(name="a"))
    session.commit()
    session.add(context.User(name="a"))
    job = context.later("a")
    with pytest.raises(IntegrityError):
        session.commit()
    session.rollback()
    assert context.sent() == []
    assert job.state() is JobState.DROPPED


def test_a_call_after_a_failed_flush_is_dropped(context):
    session = context.db.session
    session.add(context.User(name="a"))
    session.commit()
    session.add(context.User(name="a"))
    with pytest.raises(IntegrityError):
        session.flush()
    context.later("a")
    session.rollback()
    session.add(context.User(name="b"))
    context.later("b")
    session.commit()
    assert context.sent() == ["b"]


def test_a_failure_of_the_database_at_commit_sends_nothing(context):
    engine = context.db.engine

    def fail(_connection):
        raise RuntimeError("no disk")

    context.db.session.add(context.User(name="a"))
    job = context.later("a")
    event.listen(engine, "commit", fail)
    with pytest.raises(RuntimeError):
        context.db.session.commit()
    event.remove(engine, "commit", fail)
    context.db.session.rollback()
    assert context.sent() == []
    assert job.state() is JobState.DROPPED


class TestJobs:
    def test_the_uid_is_known_and_the_id_is_not(self, context):
        context.db.session.add(context.User(name="a"))
        job = context.later("a")
        assert len(job.uid) == 32
        assert job.queue == QUEUE
        assert job.broker == "memory://"
        assert job.state() is JobState.UNSENT
        with pytest.raises(RuntimeError, match=f"job {job.uid} of {QUEUE} is unsent: it waits for a commit.*has no id"):
            _ = job.id
        with pytest.raises(TimeoutError, match=r"it waits for a commit>: call wait\(\) after that"):
            job.wait(10)
        with pytest.raises(RuntimeError):
            pickle.dumps(job)
        with pytest.raises(TypeError):
            bool(job)
        assert {job: 1}[job] == 1
        context.db.session.commit()
        [record] = testing.scheduled(context.app)
        assert record.job.uid == job.uid
        assert job.id == record.job.id
        assert pickle.loads(pickle.dumps(job)) == record.job  # noqa: S301  # our own
        testing.drain(context.app)
        assert job.wait(10) is JobState.DONE

    def test_a_cancelled_one_is_not_sent(self, context):
        context.db.session.add(context.User(name="a"))
        job = context.later("a")
        other = context.later("b")
        assert job.cancel() is True
        assert job.state() is JobState.DROPPED
        assert job.cancel() is False
        context.db.session.commit()
        assert context.sent() == ["b"]
        assert other.cancel() is True
        assert other.state() is JobState.DONE


def test_many_calls_and_messages_wait_in_their_order(context):
    session, hello = context.db.session, context.hello
    announced = []

    def count(_app, jobs, **_):
        announced.append(len(jobs))

    with signals.task_scheduled.connected_to(count):
        jobs = hello.options(after_commit=session).map(n for n in "abc")
        context.backend.send(OTHER, "d", after_commit=session)
        messages = context.backend.send_many(OTHER, ["e", "f"], after_commit=session)
        context.later("g")
        assert context.sent() == []
        assert announced == []
        session.commit()
    assert context.sent() == list("abcdefg")
    assert announced == [3, 1]
    assert (len(jobs), len(messages)) == (3, 2)
    assert [job.state() for job in jobs] == [JobState.READY] * 3
    assert [job.uid for job in messages] == [None, None]
    assert len({job.uid for job in jobs}) == 3


def test_invalid_items_of_many_are_an_error_at_the_call_and_the_others_wait(context):
    with pytest.raises(BulkError) as caught:
        context.hello.options(after_commit=context.db.session).map(["a", object(), "c"])
    assert list(caught.value.jobs) == [0, 2]
    assert caught.value.refused == [range(1, 2)]
    assert isinstance(caught.value.reasons[1], MessageEncodeError)
    context.db.session.commit()
    assert context.sent() == ["a", "c"]
    assert caught.value.jobs[2].state() is JobState.READY


def test_errors_of_a_call_are_raised_by_the_call(context):
    with pytest.raises(MessageEncodeError):
        context.later(object())
    context.db.session.commit()
    assert context.sent() == []


def test_schedule_middleware_runs_at_the_call(context):
    seen = []

    @context.backend.schedule_middleware
    def around(call, proceed):
        call.headers["user"] = "me"
        job = proceed()
        seen.append((call.id == job.uid, job.state()) if job is not None else None)
        return job

    context.later("a")
    context.hello.options(after_commit=context.db.session).map(["b"])
    assert seen == [(True, JobState.UNSENT), None]
    context.db.session.commit()
    assert context.sent() == ["a", "b"]
    assert all(b'"user":"me"' in put.body for put in testing.memory(context.app)._broker.puts.values())


def test_other_options_hold_and_a_call_expires_from_when_it_was_made(context):
    context.later("a", delay=30, priority=5, ttr=90, expires=60)
    context.db.session.commit()
    [record] = testing.scheduled(context.app)
    assert (record.delay, record.priority, record.ttr) == (30, 5, 90)
    assert record.expires == pytest.approx(60, abs=0.4)
    context.later("b", expires=60)
    testing.move_time(60, context.app)
    context.db.session.commit()
    testing.clear(context.app)


def test_a_decorator_may_have_the_option_and_a_call_may_do_without(context):
    @context.backend.task(QUEUE, after_commit=context.db.session)
    def always(name): ...

    always("a")
    always.options(after_commit=False)("b")
    always.options(priority=1)("c")
    assert context.sent() == ["b"]
    context.db.session.commit()
    assert context.sent() == ["b", "a", "c"]


# -- kinds of sessions ---------------------------------------------------------------------------------------------


def test_a_plain_session_and_a_scoped_one_in_several_threads(example, database):
    engine = sqlalchemy.create_engine(database)
    scoped = scoped_session(sessionmaker(engine))
    with example.app.app_context(), Session(engine) as session:
        example.hello.options(after_commit=session)("plain")
        session.commit()
    go = threading.Barrier(3, timeout=60)

    def work(name, end):
        with example.app.app_context():
            example.hello.options(after_commit=scoped)(name)
            go.wait()
            getattr(scoped, end)()
            scoped.remove()

    threads = [
        threading.Thread(target=work, args=each) for each in [("a", "commit"), ("b", "rollback"), ("c", "commit")]
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    engine.dispose()
    assert sorted(example.sent()) == ["a", "c", "plain"]


def test_greenlets_have_their_own_sessions(example, database):
    engine = sqlalchemy.create_engine(database)
    scope = contextvars.ContextVar("scope")
    scoped = scoped_session(sessionmaker(engine), scopefunc=scope.get)

    def work(name, end):
        scope.set(name)
        with example.app.app_context():
            example.hello.options(after_commit=scoped)(name)
            yield
            getattr(scoped, end)()
            scoped.remove()

    steps = [(contextvars.Context(), work(*each)) for each in [("a", "commit"), ("b", "rollback")]]
    for _ in range(2):
        for context, step in steps:
            context.run(next, step, None)
    engine.dispose()
    assert example.sent() == ["a"]


def test_several_sessions_are_independent(context):
    with Session(context.db.engine) as other:
        context.hello.options(after_commit=other)("other")
        context.later("own")
        context.db.session.commit()
        assert context.sent() == ["own"]
        other.commit()
    assert context.sent() == ["own", "other"]


def test_nested_app_contexts_have_sessions_of_their_own(context):
    context.later("outer")
    with context.app.app_context():
        context.later("inner")
        context.db.session.rollback()
    context.db.session.commit()
    assert context.sent() == ["outer"]


def test_begin_blocks(context):
    with Session(context.db.engine) as session:
        with session.begin():
            session.add(context.User(name="a"))
            context.hello.options(after_commit=session)("a")
            assert context.sent() == []
        assert context.sent() == ["a"]
        with pytest.raises(ZeroDivisionError), session.begin():  # noqa: PT012  # the block must raise
            context.hello.options(after_commit=session)("b")
            raise ZeroDivisionError
    assert context.sent() == ["a"]


def test_a_session_without_autobegin_must_be_in_a_transaction(context):
    session = Session(context.db.engine, autobegin=False)
    with pytest.raises(OptionError, match=r"make the call inside of `with session.begin\(\):`"):
        context.hello.options(after_commit=session)("a")
    with session.begin():
        context.hello.options(after_commit=session)("b")
    assert context.sent() == ["b"]


def test_a_session_that_joins_an_outer_transaction_sends_at_its_own_commit(context):
    with context.db.engine.connect() as connection:
        outer = connection.begin()
        with Session(connection, join_transaction_mode="create_savepoint") as session:
            session.add(context.User(name="a"))
            context.hello.options(after_commit=session)("a")
            session.commit()
        outer.rollback()
    assert context.sent() == ["a"]


def test_a_session_that_is_left_open_is_told_of(context, caplog):
    session = Session(context.db.engine)
    job = context.hello.options(after_commit=session)("a")
    uid = job.uid
    del session, job
    gc.collect()
    assert context.sent() == []
    assert [line for line in warnings_in(caplog) if uid in line and "left without a commit" in line]


def test_two_phases(context, database):
    if "sqlite" in database:
        pytest.skip("SQLite has no two-phase transactions")
    with Session(context.db.engine, twophase=True) as session:
        session.add(context.User(name="a"))
        context.hello.options(after_commit=session)("a")
        session.prepare()
        assert context.sent() == []
        session.commit()
        assert context.sent() == ["a"]
        session.add(context.User(name="b"))
        context.hello.options(after_commit=session)("b")
        session.prepare()
        session.rollback()
    assert context.sent() == ["a"]


@pytest.mark.parametrize("kind", ["AsyncSession", "async_scoped_session", "db", "sessionmaker", "text", "True"])
def test_what_is_no_session_is_an_error(context, kind):
    engine = create_async_engine("sqlite+aiosqlite://")
    made = async_sessionmaker(engine)
    value = {
        "AsyncSession": AsyncSession(engine),
        "async_scoped_session": async_scoped_session(made, lambda: 1),
        "db": context.db,
        "sessionmaker": sessionmaker(context.db.engine),
        "text": "sqlalchemy",
        "True": True,
    }[kind]
    with pytest.raises(
        OptionError, match="expected a Session or a scoped_session of SQLAlchemy, for example"
    ) as caught:
        context.hello.options(after_commit=value)
    assert ("sync_session" in str(caught.value)) is kind.lower().startswith("async")


def test_the_session_inside_of_an_async_one(tmp_path):
    example = Example(f"sqlite:///{tmp_path}/test.db")

    async def work():
        engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path}/async.db")
        async with AsyncSession(engine) as session:
            await session.execute(text("create table t (a int)"))
            example.hello.options(after_commit=session.sync_session)("a")
            assert example.sent() == []
            await session.commit()
            await session.execute(text("insert into t values (1)"))
            example.hello.options(after_commit=session.sync_session)("b")
            await session.rollback()
        await engine.dispose()

    with example.app.app_context():
        asyncio.run(work())
    assert example.sent() == ["a"]


# -- BACKEND_AFTER_COMMIT ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("write", WRITES)
def test_by_default_calls_in_a_transaction_that_has_written_wait(by_default, write, caplog):
    with by_default.app.app_context():
        WRITES[write](by_default)
        by_default.hello("a")
        assert by_default.sent() == []
        by_default.db.session.rollback()
        WRITES[write](by_default)
        by_default.hello("b")
        by_default.hello.map(["c"])
        by_default.backend.send(OTHER, "d")
        by_default.hello.options(after_commit=False)("now")
        by_default.db.session.commit()
    assert by_default.sent() == ["now", "b", "c", "d"]
    assert warnings_in(caplog) == []


@pytest.mark.parametrize("read", READS)
def test_by_default_calls_in_a_transaction_that_only_reads_are_sent_at_once(by_default, read):
    with by_default.app.app_context():
        READS[read](by_default)
        by_default.hello("a")
        assert by_default.sent() == ["a"]
        WRITES["insert"](by_default)
        by_default.db.session.commit()
        by_default.hello("b")
        assert by_default.sent() == ["a", "b"]


def test_by_default_changes_that_are_not_flushed_count(by_default):
    with by_default.app.app_context():
        session, user = by_default.db.session, by_default.User(name="a")
        session.add(user)
        by_default.hello("added")
        assert by_default.sent() == []
        session.commit()
        assert user.name == "a"  # loaded: a value that is set before counts as changed
        user.name = "a"
        by_default.hello("unchanged")
        assert by_default.sent() == ["added", "unchanged"]
        user.name = "b"
        by_default.hello("changed")
        assert by_default.sent() == ["added", "unchanged"]
        session.commit()
        session.delete(user)
        by_default.hello("deleted")
        session.commit()
        assert by_default.sent() == ["added", "unchanged", "changed", "deleted"]


def test_by_default_nothing_happens_without_a_session_or_a_context(by_default):
    by_default.hello("outside")
    with by_default.app.app_context():
        by_default.hello("inside")
        sessions = by_default.db.session.registry
        assert not sessions.has()
    assert by_default.sent() == ["outside", "inside"]


def test_the_setting_is_checked():
    with pytest.raises(ConfigError, match="BACKEND_AFTER_COMMIT is 'django'; expected \"sqlalchemy\", or None"):
        Example("sqlite://", setting="django")


def test_in_sync_a_call_runs_after_the_commit_and_its_error_does_not_harm_the_session(make):
    example = make(uri="sync://")

    @example.backend.task(QUEUE)
    def read(name):
        example.ran.append(example.db.session.scalars(select(example.User.name)).all())

    @example.backend.task(QUEUE)
    def fail():
        raise ValueError("no luck")

    with example.app.app_context():
        session = example.db.session
        session.add(example.User(name="a"))
        read.options(after_commit=session)("a")
        assert example.ran == []
        session.commit()
        assert example.ran == [["a"]]
        session.add(example.User(name="b"))
        job = fail.options(after_commit=session)()
        read.options(after_commit=session)("b")
        with pytest.raises(ValueError, match="no luck"):
            session.commit()
        assert example.ran == [["a"], ["a", "b"]]
        assert job.state() is JobState.DONE
        session.add(example.User(name="c"))
        session.commit()


# -- a broker that is away -----------------------------------------------------------------------------------------


def test_a_broker_that_is_away_does_not_spoil_the_commit(make, broker, caplog):
    example = make(uri=broker.uri)
    not_sent = []

    def note(app, job, endpoint, error, command, **_):
        not_sent.append((app, job.state(), endpoint, type(error).__name__, command))

    broker.stop()
    with example.app.app_context(), signals.task_not_sent.connected_to(note):
        session = example.db.session
        session.add(example.User(name="a"))
        job = example.hello.options(after_commit=session, priority=3, delay=60)("a b", loud=True)
        example.hello.options(after_commit=session).map(["c", "d"])
        example.backend.send(OTHER, {"e": 1}, after_commit=session)
        session.commit()
        assert session.scalars(select(example.User.name)).all() == ["a"]
        session.commit()
    assert job.state() is JobState.UNSENT
    assert [each[1:4] for each in not_sent] == [
        *[(JobState.UNSENT, "hello", "BrokerConnectionError")] * 3,
        (JobState.UNSENT, None, "BrokerConnectionError"),
    ]
    line = f"""flask-backend call hello '["a b"]' '{{"loud": true}}' --queue {QUEUE} --delay 60 --priority 3 --yes"""
    assert not_sent[0][4] == line
    lines = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert len(lines) == 4
    assert line in lines[0].getMessage()
    assert job.uid in lines[0].getMessage()
    assert f"backend.send('{OTHER}', json.loads('{{\"e\":1}}'))" in lines[3].getMessage()
