"""Batches that wait for a commit."""

from __future__ import annotations

import gc

import pytest
from flask import Flask

from flask_backend import Backend, JobState, OptionError, signals, testing
from flask_backend.broker import batches

pytest.importorskip("flask_sqlalchemy", reason="needs the extra sqlalchemy")

from flask_sqlalchemy import SQLAlchemy
from sqlalchemy.orm import Mapped, mapped_column

QUEUE = "q"


class Example:
    def __init__(self, uri="memory://", setting=None) -> None:
        self.app = Flask("example")
        self.app.config.update(
            BACKEND_CONNECTION_URI=uri,
            BACKEND_AFTER_COMMIT=setting,
            BACKEND_TIMEOUT=1,
            SQLALCHEMY_DATABASE_URI="sqlite://",
        )
        self.backend = backend = Backend(self.app)
        self.db = db = SQLAlchemy(self.app)

        class User(db.Model):
            id: Mapped[int] = mapped_column(primary_key=True)

        @backend.task(QUEUE)
        def hello(name): ...

        @backend.task(QUEUE)
        def done(name): ...

        self.User, self.hello, self.done = User, hello, done

    def batch(self, name="a", **options):
        with self.backend.batch(**options) as batch:
            batch.on_complete(self.done, name)
            self.job = batch.add(self.hello, name)
        return batch

    def write(self):
        self.db.session.add(self.User())

    def sent(self):
        return [record.endpoint for record in testing.scheduled(self.app)]


@pytest.fixture
def make():
    made = []

    def make(**options):
        example = Example(**options)
        context = example.app.app_context()
        made.append((example, context))
        context.push()
        example.db.create_all()
        return example

    yield make
    for example, context in reversed(made):
        example.db.session.remove()
        example.db.engine.dispose()
        context.pop()


def ways(example):
    return {"after_commit": example.db.session} if example.app.config["BACKEND_AFTER_COMMIT"] is None else {}


BOTH = pytest.mark.parametrize("setting", [None, "sqlalchemy"], ids=["explicit", "by setting"])


@BOTH
def test_a_batch_is_sent_after_the_commit(make, setting):
    example = make(setting=setting)
    example.write()
    example.batch(**ways(example))
    assert example.sent() == []
    assert example.job.state() is JobState.UNSENT
    example.db.session.commit()
    assert example.sent() == ["hello"]
    assert example.job.state() is JobState.READY
    testing.drain(example.app)
    assert example.sent() == ["hello", "done"]


@BOTH
def test_a_rollback_drops_the_batch(make, setting, caplog):
    example = make(setting=setting)
    example.write()
    example.batch(**ways(example))
    example.db.session.rollback()
    example.db.session.commit()
    assert example.sent() == []
    assert example.job.state() is JobState.DROPPED
    assert caplog.messages == []


def test_a_savepoint_that_is_rolled_back_drops_only_its_own(make):
    example = make()
    session = example.db.session
    example.write()
    nested = session.begin_nested()
    example.write()
    example.batch("inner", after_commit=session)
    nested.rollback()
    example.batch("outer", after_commit=session)
    example.hello.options(after_commit=session)("alone")
    session.commit()
    assert [record.args for record in testing.scheduled(example.app)] == [["outer"], ["alone"]]


def test_false_sends_at_once_whatever_the_setting_is(make):
    example = make(setting="sqlalchemy")
    example.write()
    example.batch(after_commit=False)
    assert example.sent() == ["hello"]


def test_a_transaction_that_has_only_read_sends_at_the_end_of_the_block_by_the_setting(make):
    example = make(setting="sqlalchemy")
    example.db.session.execute(example.db.text("select 1"))
    example.batch()
    assert example.sent() == ["hello"]


def test_the_option_of_a_task_makes_the_batch_wait(make):
    example = make()
    session = example.db.session
    with example.backend.batch() as batch:
        batch.on_complete(example.done, "a")
        batch.add(example.hello.options(after_commit=session), "a")
        batch.add(example.hello, "b")
    assert example.sent() == []
    session.commit()
    assert example.sent() == ["hello", "hello"]
    from sqlalchemy.orm import Session

    example.done = example.done.options(after_commit=Session(example.db.engine))
    example.hello = example.hello.options(after_commit=session)
    with pytest.raises(OptionError, match="different sessions"):
        example.batch()


def test_what_is_no_session_is_refused_at_once(make):
    with pytest.raises(OptionError, match="after_commit is 'yes'"):
        make().backend.batch(after_commit="yes")


def test_one_that_was_forgotten_is_logged_once(make, caplog):
    example = make()
    example.write()
    batch = example.batch(after_commit=example.db.session)
    example.db.session.remove()
    assert [message.partition(":")[0] for message in caplog.messages] == [f"{batch!r} was dropped"]


def test_one_whose_session_is_left_is_logged_once(make, caplog):
    from sqlalchemy.orm import Session

    example = make()
    session = Session(example.db.engine)
    name = repr(example.batch(after_commit=session))
    session.info.clear()
    del session, example.job
    gc.collect()
    assert [message.partition(":")[0] for message in caplog.messages] == [f"{name} was dropped"]


def test_a_broker_that_is_away_costs_no_commit_and_each_call_is_logged(make, broker, caplog):
    example = make(uri=broker.uri)
    missed = []

    def note(_app, endpoint, command, **_):
        missed.append((endpoint, command))

    example.write()
    batch = example.batch(after_commit=example.db.session)
    broker.kill()
    with signals.task_not_sent.connected_to(note):
        example.db.session.commit()
    assert [endpoint for endpoint, _ in missed] == ["hello", "done"]
    assert example.db.session.query(example.User).count() == 1
    [first, *others] = caplog.messages
    assert first.startswith(f"{batch!r} was not sent after its commit: cannot connect")
    commands = [f"flask-backend call {endpoint} '[\"a\"]' --queue q --yes" for endpoint in ("hello", "done")]
    assert [command for _, command in missed] == commands
    assert [message.partition("to send it: ")[2] for message in others] == commands


def test_a_broker_that_goes_away_while_it_sends_costs_no_commit_either(make, broker, caplog, monkeypatch):
    example = make(uri=broker.uri)
    producer = example.backend.producer_of(example.app)
    monkeypatch.setattr(batches, "CHUNK_JOBS", 1)
    example.write()
    with example.backend.batch(after_commit=example.db.session) as batch:
        batch.on_complete(example.done, "a")
        jobs = batch.map(example.hello, "abc")
    connection = producer.connection()
    monkeypatch.setattr(connection, "send_puts", broker_goes_away(broker, connection, after=1))
    example.db.session.commit()
    assert jobs[0].id > 0
    assert [job.state() for job in jobs[1:]] == [JobState.UNSENT] * 2
    assert len(caplog.messages) == 3


def broker_goes_away(broker, connection, after):
    """Return the method that sends calls; the broker is killed instead, after so many times."""
    send, left = connection.send_puts, iter(range(after))

    def send_puts(*args):
        if next(left, None) is None:
            broker.kill()
        return send(*args)

    return send_puts
