"""The signals of tasks, in memory; see integration/test_worker_signals.py for those of real workers."""

from __future__ import annotations

import asyncio

import pytest
from flask import g
from support.in_memory import make_app

from flask_backend import BulkError, Bury, Discard, Retry, RetryLater, current_job, signals, testing
from flask_backend.errors import MessageDecodeError

QUEUE = "q"
NAMES = ["scheduled", "started", "succeeded", "failed", "retried", "buried", "discarded"]


@pytest.fixture(params=["memory://"])
def app_and_backend(request):
    return make_app(request.param)


@pytest.fixture
def sent(app):
    """The signals of the app in their order: their names and facts."""
    seen: list[tuple[str, dict]] = []
    receivers = []
    for name in NAMES:

        def receive(sender, *, name=name, **facts):
            assert sender is app
            seen.append((name, facts))

        getattr(signals, f"task_{name}").connect(receive, app)
        receivers.append(receive)
    yield seen
    for name, receive in zip(NAMES, receivers, strict=True):
        getattr(signals, f"task_{name}").disconnect(receive)


def names(sent) -> list[str]:
    return [name for name, _ in sent]


def test_a_call_that_succeeds(app, backend, sent):
    @backend.task(QUEUE)
    def hello(name): ...

    job = hello("world")
    testing.drain(app)
    assert names(sent) == ["scheduled", "started", "succeeded"]
    scheduled, started, succeeded = (facts for _, facts in sent)
    assert scheduled == {"endpoint": "hello", "jobs": [job]}
    assert started["job"] is succeeded["job"]
    assert (started["job"].id, started["job"].queue, started["job"].endpoint) == (job.id, QUEUE, "hello")
    assert started["job"].headers["id"] == job.uid
    assert succeeded["job"].attempt == 1
    assert 0 <= succeeded["ran_s"] < 60


def test_a_map_is_announced_once_with_all_its_jobs(app, backend, sent):
    @backend.task(QUEUE)
    def hello(name): ...

    jobs = hello.map(["a", "b", "c"])
    [(name, facts)] = sent
    assert (name, facts["endpoint"], list(facts["jobs"])) == ("scheduled", "hello", list(jobs))
    with pytest.raises(BulkError) as caught:
        hello.map(["a", object(), "c"])
    assert list(sent[1][1]["jobs"]) == list(caught.value.jobs.values())
    assert len(sent[1][1]["jobs"]) == 2
    with pytest.raises(BulkError):
        hello.map([object()])
    hello.map([])
    backend.send("com.example/elsewhere", 1)
    assert len(sent) == 2


def test_failures_until_the_burial(app, backend, sent):
    error = ValueError("no")

    @backend.task(QUEUE, retry=Retry(max_retries=1, min_backoff=5, jitter=0))
    def fails():
        raise error

    fails()
    testing.drain(app, raise_errors=False)
    testing.move_time(5, app)
    testing.drain(app, raise_errors=False)
    assert names(sent) == ["scheduled", *["started", "failed", "retried"], *["started", "failed", "buried"]]
    assert sent[2][1]["error"] is sent[3][1]["error"] is error
    assert sent[3][1]["delay_s"] == 5
    assert sent[6][1]["reason"] == "failed twice"
    assert [facts["job"].attempt for _, facts in sent[1:]] == [1, 1, 1, 2, 2, 2]


@pytest.mark.parametrize(
    ("decision", "name", "fact"),
    [
        (RetryLater(7), "retried", ("delay_s", 7)),
        (Bury("odd"), "buried", ("reason", "odd")),
        (Discard("old"), "discarded", ("reason", "old")),
    ],
)
def test_a_decision_is_not_a_failure(app, backend, sent, decision, name, fact):
    @backend.task(QUEUE)
    def decides():
        raise decision

    decides()
    testing.drain(app)
    assert names(sent) == ["scheduled", "started", name]
    assert sent[2][1]["error"] is decision
    assert sent[2][1][fact[0]] == fact[1]


def test_a_body_that_cannot_be_decoded(app, backend, sent):
    @backend.task(QUEUE)
    def hello(): ...

    backend.send(QUEUE, {"not": "a call"})
    testing.drain(app, raise_errors=False)
    assert names(sent) == ["failed", "buried"]
    assert isinstance(sent[0][1]["error"], MessageDecodeError)
    assert (sent[1][1]["job"].endpoint, sent[1][1]["job"].queue) == ("", QUEUE)
    assert sent[1][1]["reason"].startswith("it can never run: ")


def test_a_receiver_of_messages_sends_the_signals_of_its_runs(app, backend, sent):
    @backend.receiver(QUEUE)
    def inbox(message): ...

    backend.send(QUEUE, {"any": "json"})
    testing.drain(app)
    assert names(sent) == ["started", "succeeded"]
    assert sent[0][1]["job"].endpoint == "inbox"


@pytest.mark.parametrize("app_and_backend", ["sync://"], indirect=True)
def test_sync_sends_what_happens_there(app, backend, sent):
    @backend.task(QUEUE)
    def hello(): ...

    @backend.task(QUEUE)
    def fails():
        raise ValueError("no")

    hello()
    assert names(sent) == ["started", "succeeded", "scheduled"]
    with pytest.raises(ValueError, match="no"):
        fails()
    assert names(sent)[3:] == ["started", "failed"]


async def is_async(_app, **_facts):
    raise ValueError("it was awaited")


def raise_(error):
    raise error


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("receiver", "said"),
    [
        (lambda _app, **_facts: 1 / 0, "ZeroDivisionError"),
        (lambda _app: None, "unexpected keyword argument"),
        (is_async, ""),
    ],
    ids=["raises", "wrong signature", "async"],
)
def test_a_receiver_that_fails_is_logged_and_changes_nothing(app, backend, sent, caplog, name, receiver, said):
    @backend.task(QUEUE)
    def decides(how):
        if how is not None:
            raise {"fail": ValueError, "discard": Discard, "bury": Bury}[how]("x")

    signal = getattr(signals, f"task_{name}")
    with signal.connected_to(receiver, app):
        decides.map([None, "fail", "discard", "bury"])
        ran = testing.drain(app, raise_errors=False)
    assert [type(each.error) for each in ran] == [type(None), ValueError, Discard, Bury]
    outcomes = [["succeeded"], ["failed", "retried"], ["discarded"], ["buried"]]
    assert names(sent) == ["scheduled", *(each for outcome in outcomes for each in ["started", *outcome])]
    records = [record for record in caplog.records if record.name == "flask_backend.signals"]
    assert records
    assert all(f"of the signal task-{name} failed" in record.getMessage() for record in records)
    if receiver is is_async:
        said = "a receiver of this signal cannot be async" if name == "scheduled" else "it was awaited"
    assert all(said in record.exc_text for record in records)


@pytest.mark.parametrize("app_and_backend", ["memory://", "sync://"], indirect=True)
def test_an_async_receiver_runs_in_the_event_loop_of_the_tasks(app, backend):
    loops = []

    @backend.task(QUEUE)
    async def hello():
        loops.append(asyncio.get_running_loop())

    async def receive(_app, job, **_facts):
        await asyncio.sleep(0)
        loops.append((job.endpoint, asyncio.get_running_loop()))

    async def drain_in_a_loop():
        hello()
        testing.drain(app)

    with signals.task_succeeded.connected_to(receive, app):
        hello()
        testing.drain(app)
        asyncio.run(drain_in_a_loop())
    assert loops[:2] == [loops[0], ("hello", loops[0])]
    assert [name for name, _ in loops[3:]] == ["hello"]


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), GeneratorExit()], ids=repr)
def test_no_exception_of_a_receiver_leaves_a_worker(app, backend, caplog, error):
    @backend.task(QUEUE)
    def hello(): ...

    hello()
    with signals.task_started.connected_to(lambda _app, **_facts: raise_(error), app):
        assert [ran.error for ran in testing.drain(app)] == [None]
    assert "of the signal task-started failed" in caplog.text


def test_a_caller_is_not_kept_from_ending(app, backend):
    @backend.task(QUEUE)
    def hello(): ...

    with (
        signals.task_scheduled.connected_to(lambda _app, **_facts: raise_(SystemExit(3)), app),
        pytest.raises(SystemExit),
    ):
        hello()
    testing.assert_scheduled(hello)


def test_receivers_run_in_an_app_context_of_their_own(app, backend, caplog):
    seen = []

    @backend.task(QUEUE)
    def hello():
        g.mine = True

    @app.teardown_appcontext
    def end(_error):
        seen.append("end")

    def receive(_app, **_facts):
        seen.append((hasattr(g, "mine"), current_job.id if current_job else None))

    job = hello()
    with signals.task_succeeded.connected_to(receive, app):
        testing.drain(app)
    assert seen == ["end", (False, None), "end"]
    assert job.state() == "done"


def test_a_context_of_the_app_that_fails_is_logged(app, backend, caplog):
    @backend.task(QUEUE)
    def hello(): ...

    @app.teardown_appcontext
    def end(_error):
        if hasattr(g, "received"):
            raise RuntimeError("teardown")

    def receive(_app, **_facts):
        g.received = True

    hello()
    with signals.task_succeeded.connected_to(receive, app):
        assert [ran.error for ran in testing.drain(app)] == [None]
    assert "the app context of the signal task-succeeded failed" in caplog.text


def test_only_the_receivers_of_the_app_are_called(app, backend):
    other, _ = make_app("memory://")
    seen = []

    @backend.task(QUEUE)
    def hello(): ...

    def receive(sender, **_facts):
        seen.append(sender)

    with signals.task_scheduled.connected_to(receive, other):
        hello()
    assert seen == []
    with signals.task_scheduled.connected_to(receive):
        hello()
    assert seen == [app]


def test_a_muted_signal_is_not_sent(app, backend, sent):
    @backend.task(QUEUE)
    def hello(): ...

    with signals.task_scheduled.muted():
        hello()
    assert sent == []
