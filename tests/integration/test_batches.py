"""Batches on a real server, with the steps of workers, people and sweeps one by one."""

from __future__ import annotations

import itertools
import json
import logging
import signal
import time

import psutil
import pytest
from flask import Flask

from flask_backend import Backend, BrokerConnectionError, BrokerError, BulkError, JobState, JobTooBigError
from flask_backend.broker import batch_sweep, batches
from flask_backend.broker.batches import Membership
from flask_backend.broker.connection import Connection
from flask_backend.config import Address, Settings
from flask_backend.names import batch_tube, is_batch_tube
from flask_backend.operations import heads
from flask_backend.operations.console import Console
from flask_backend.options import PutOptions

QUEUE, OTHER, CALLBACKS = "q", "other", "callbacks"


@pytest.fixture
def connect(broker):
    opened = []

    def connect(watch=None):
        opened.append(Connection(Address(broker.host, broker.port), 5, watch=watch))
        return opened[-1]

    yield connect
    for each in opened:
        each.close()


class Tasks:
    def __init__(self, uri):
        self.app = Flask("batching")
        self.app.config["BACKEND_CONNECTION_URI"] = uri
        self.backend = backend = Backend(self.app)

        @backend.task(QUEUE)
        def hello(target): ...

        @backend.task(OTHER)
        def resize(name, *, size=1): ...

        @backend.task(CALLBACKS)
        def done(*args): ...

        self.hello, self.resize, self.done = hello, resize, done


@pytest.fixture
def tasks(broker):
    return Tasks(broker.uri)


@pytest.fixture
def console(broker):
    with Console(Settings(Address(broker.host, broker.port))) as console:
        yield console


def tubes(broker):
    with broker.client() as client:
        return [tube for tube in client.tubes() if is_batch_tube(tube)]


def started(broker, queue=CALLBACKS):
    """Return how many callbacks are on their queue."""
    return broker.tube(queue).get("current-jobs-ready", 0)


def take(connection):
    """Reserve the next job of the queue that the connection watches."""
    [job] = connection.reserve_ready(1)
    return job


def finish(connection):
    """Finish the next job as a worker does."""
    job = take(connection)
    batches.finish(connection, Membership.of_body(job.body))
    connection.delete(job.id)
    return job


def send(tasks, *names, when="done", callback="all"):
    with tasks.backend.batch(when=when) as batch:
        batch.on_complete(tasks.done, callback)
        jobs = [batch.add(tasks.hello, name) for name in names]
    return batch, jobs


def test_the_callback_starts_when_the_last_call_in_any_queue_is_finished(tasks, broker, connect):
    with tasks.backend.batch() as batch:
        batch.on_complete(tasks.done.options(priority=1, delay=2), "all", 7)
        jobs = [batch.add(tasks.hello, "world"), batch.add(tasks.resize.options(priority=3), "a.png", size=4)]
        assert [job.state() for job in jobs] == [JobState.UNSENT] * 2
        mapped = batch.map(tasks.hello, ["a", "b"])
        assert broker.jobs() == 0
        assert len(batch) == 4
    assert [job.state() for job in [*jobs, *mapped]] == [JobState.READY] * 4
    assert broker.job(jobs[1].id)["pri"] == 3
    for queue in (OTHER, QUEUE, QUEUE, QUEUE):
        assert tubes(broker) == [batch_tube(batch.id)]
        assert started(broker) == broker.tube(CALLBACKS).get("current-jobs-delayed", 0) == 0
        finish(connect(queue))
    with broker.client(CALLBACKS) as client:
        job = client.peek_delayed()
        stats = client.stats_job(job)
    assert (stats["pri"], stats["delay"]) == (1, 2)
    message = json.loads(job.body)
    assert (message["endpoint"], message["args"]) == ("done", ["all", 7])
    assert message["headers"]["batch"] == {"id": batch.id}
    assert broker.jobs() == 1
    assert tubes(broker) == []


def test_a_batch_without_calls_schedules_its_callback_at_once(tasks, broker):
    send(tasks)
    assert started(broker) == broker.jobs() == 1


def test_nothing_is_sent_if_the_block_raises(tasks, broker):
    jobs = []

    def broken():
        with tasks.backend.batch() as batch:
            batch.on_complete(tasks.done)
            jobs.append(batch.add(tasks.hello, "world"))
            raise LookupError

    with pytest.raises(LookupError):
        broken()
    assert broker.jobs() == 0
    assert jobs[0].state() is JobState.DROPPED


def test_a_call_that_is_cancelled_in_the_block_is_not_sent(tasks, broker):
    with tasks.backend.batch() as batch:
        batch.on_complete(tasks.done)
        job = batch.add(tasks.hello, "world")
        assert job.cancel()
        assert not job.cancel()
    assert job.state() is JobState.DROPPED
    assert started(broker) == broker.jobs() == 1


def test_many_calls_are_sent_and_each_has_its_own_marker(tasks, broker, console, connect):
    with tasks.backend.batch() as batch:
        batch.on_complete(tasks.done)
        jobs = batch.map(tasks.hello, range(1500))
    connection = connect()
    facts, ids = batches.read_record(connection, batch_tube(batch.id))
    bodies = connection.peek(job.id for job in jobs)
    found = {Membership.of_body(body).marker: job_id for job_id, body in bodies.items()}
    assert dict(ids) == found
    assert len(found) == facts.members == 1500
    assert broker.tube(batch_tube(batch.id))["current-jobs-ready"] == 1501
    [progress] = console.batches().found
    assert (progress.done, progress.members, progress.buried, progress.is_open) == (0, 1500, 0, False)


def test_a_finisher_that_dies_leaves_the_callback_to_the_next_run_of_its_job(tasks, broker, connect):
    send(tasks, "a")
    dying, job = connect(QUEUE), None
    job = take(dying)
    member = Membership.of_body(job.body)
    dying.delete_each([member.marker])
    dying.reserve_job(member.store)
    dying.close()
    assert started(broker) == 0
    assert finish(connect(QUEUE)).id == job.id
    assert started(broker) == broker.jobs() == 1


@pytest.mark.parametrize("when", ["done", "ended"])
def test_a_buried_call_counts_only_if_it_shall(tasks, broker, console, connect, when):
    batch, [job] = send(tasks, "a", when=when)
    connection = connect(QUEUE)
    held = take(connection)
    member = Membership.of_body(held.body)
    assert member.counts_burial is (when == "ended")
    if member.counts_burial:
        batches.finish(connection, member)
    connection.bury(held.id, 1)
    assert started(broker) == (when == "ended")
    if when == "done":
        [progress] = console.batches().found
        assert (progress.id, progress.buried, progress.done) == (batch.id, 1, 0)
        console.kick(job.id)
        finish(connect(QUEUE))
    assert started(broker) == 1


@pytest.mark.parametrize("way", ["cancel", "delete", "delete after a burial"])
def test_what_a_person_deletes_is_finished(tasks, broker, console, connect, way):
    _, [first, second] = send(tasks, "a", "b")
    if way == "cancel":
        assert first.cancel()
        assert second.cancel()
    elif way == "delete":
        assert console.delete_each([first.id, second.id]) == [first.id, second.id]
    else:
        connection = connect(QUEUE)
        for _ in range(2):
            connection.bury(take(connection).id, 1)
        assert heads.delete_buried(console, QUEUE, 2) == [first.id, second.id]
    assert started(broker) == broker.jobs() == 1


def test_a_header_with_the_id_of_another_job_deletes_nothing(tasks, broker, connect):
    innocent = tasks.resize("a.png")
    forged = {"id": "x", "marker": innocent.id, "store": innocent.id}
    body = json.dumps({"endpoint": "hello", "args": ["a"], "headers": {"batch": forged}}).encode()
    broker.put(QUEUE, body)
    finish(connect(QUEUE))
    assert innocent.state() is JobState.READY


NOT_OURS = [None, 7, "x", {}, {"id": "x"}, {"id": "x", "marker": "1", "store": 2}]
NOT_OURS += [{"id": each, "marker": 1, "store": 2} for each in ("x y", "x" * 200, 1)]
NOT_OURS += [{"id": "x", "marker": True, "store": 2}, {"id": "x", "marker": 1, "store": 0}]


@pytest.mark.parametrize("header", NOT_OURS)
def test_a_header_that_is_not_ours_is_no_membership(header):
    assert Membership.of({"batch": header}) is None


# -- sweeps --------------------------------------------------------------------------------------------------------


def test_a_sweep_counts_calls_that_other_tools_deleted(tasks, broker, connect, caplog):
    batch, jobs = send(tasks, *"abc")
    connection = connect()
    batch_sweep.sweep(connection)
    with broker.client() as client:
        client.delete(jobs[0].id)
        client.delete(jobs[2].id)
    batch_sweep.sweep(connection)
    assert batch_sweep.VANISHED % (2, batch.id) in caplog.messages
    assert started(broker) == 0
    finish(connect(QUEUE))
    assert started(broker) == broker.jobs() == 1


def test_a_sweep_starts_the_callback_if_only_the_store_is_left(tasks, broker, connect):
    _, [job] = send(tasks, "a")
    connection = connect()
    connection.delete_each([Membership.of_body(broker.peek(job.id)).marker, job.id])
    batch_sweep.sweep(connection)
    assert started(broker) == broker.jobs() == 1


def test_a_sweep_deletes_the_record_of_a_callback_that_has_started(tasks, broker, connect):
    _, [job] = send(tasks, "a")
    connection = connect()
    member = Membership.of_body(broker.peek(job.id))
    connection.delete_each([member.marker, member.store, job.id])
    assert broker.jobs() == 1
    batch_sweep.sweep(connection)
    assert broker.jobs() == 0


class Dying:
    """The connection of a producer that dies at its n-th command that changes something."""

    def __init__(self, connection, after):
        self._connection = connection
        self._left = after

    def __getattr__(self, name):
        method = getattr(self._connection, name)
        if name not in ("put_all_aside", "send_puts", "delete_each", "put", "reserve_job"):
            return method

        def call(*args):
            self._left -= 1
            if self._left < 0:
                self._connection.close()
                raise BrokerConnectionError("it died")
            return method(*args)

        return call


@pytest.mark.parametrize("after", range(11))
def test_a_batch_whose_producer_died_is_finished_by_a_sweep(tasks, broker, connect, monkeypatch, caplog, after):
    monkeypatch.setattr(batches, "CHUNK_JOBS", 2)
    options = PutOptions(1, 0, 60)
    members = [
        batches.Outgoing(QUEUE, "hello", tasks.hello.encode([str(number)], {}, str(number)), options)
        for number in range(3)
    ]
    callback = batches.Outgoing(CALLBACKS, "done", tasks.done.encode([], {}, "u"), options)
    dying = Dying(connect(), after)
    try:
        sent = batches.send(dying, "b", "done", members, callback)
        is_raised = False
    except BrokerConnectionError:
        is_raised = True
    has_store = after >= 2
    assert is_raised is not has_store
    ready = broker.tube(QUEUE).get("current-jobs-ready", 0)
    if has_store:
        assert ready == len(sent.ids)
    worker, sweeper = connect(QUEUE), connect()
    for _ in range(ready):
        finish(worker)
    early = started(broker)
    batch_sweep.sweep(sweeper)
    assert started(broker) == early
    with caplog.at_level(logging.WARNING):
        monkeypatch.setattr(batch_sweep, "OPEN_LIMIT_S", 0)
        batch_sweep.sweep(sweeper)
    assert started(broker) == has_store
    assert broker.jobs() == has_store
    assert tubes(broker) == []


def test_a_sweep_waits_for_the_calls_that_a_dead_producer_has_sent(tasks, broker, connect, monkeypatch, caplog):
    monkeypatch.setattr(batches, "CHUNK_JOBS", 2)
    members = [
        batches.Outgoing(QUEUE, "hello", tasks.hello.encode([str(number)], {}, str(number)), PutOptions(1, 0, 60))
        for number in range(5)
    ]
    callback = batches.Outgoing(CALLBACKS, "done", tasks.done.encode([], {}, "u"), PutOptions(1, 0, 60))
    sent = batches.send(Dying(connect(), 5), "b", "done", members, callback)
    assert len(sent.ids) == 2  # of the second chunk only the markers were sent
    monkeypatch.setattr(batch_sweep, "OPEN_LIMIT_S", 0)
    monkeypatch.setattr(batch_sweep, "_LOOKED_UP", 2)
    batch_sweep.sweep(connect())
    assert batch_sweep.CLOSED % ("b", 5, "done", 2) in caplog.messages
    worker = connect(QUEUE)
    finish(worker)
    assert started(broker) == 0
    finish(worker)
    assert started(broker) == broker.jobs() == 1


# -- a server that does not take everything ------------------------------------------------------------------------


def test_a_call_that_is_too_big_is_named_and_nothing_is_sent(tasks, broker):
    with pytest.raises(JobTooBigError, match="nothing of the batch was sent: a call of hello has"):
        send(tasks, "a", "b" * 70_000)
    assert broker.jobs() == 0


def test_a_call_that_fits_only_without_the_header_of_its_batch_is_refused_before_anything_is_sent(tasks, broker):
    """For each size around the limit: the whole batch is sent, or none of it."""
    with tasks.app.app_context():
        most = next(size for size in range(65_200, 66_000) if not fits(tasks, "x" * size)) - 1
    before, refused = broker.jobs(), 0
    for size in range(most - 150, most + 1, 5):
        try:
            send(tasks, "a", "x" * size)
        except JobTooBigError:
            assert broker.jobs() == before
            refused += 1
        before = broker.jobs()
    assert 10 < refused < 30


def fits(tasks, argument: str) -> bool:
    try:
        tasks.hello(argument)
    except JobTooBigError:
        return False
    return True


@pytest.mark.parametrize("callback", ["b" * 70_000, '"' * 20_000])
def test_a_callback_that_is_too_big_is_named_and_nothing_is_sent(tasks, broker, callback):
    with pytest.raises(JobTooBigError, match="nothing of the batch was sent: its callback, done, is kept as JSON"):
        send(tasks, "a", callback=callback)
    assert broker.jobs() == 0


def test_a_broker_that_goes_away_while_it_sends_tells_what_was_sent(tasks, broker, connect, monkeypatch):
    monkeypatch.setattr(batches, "CHUNK_JOBS", 2)
    producer = tasks.backend.producer_of(tasks.app)
    monkeypatch.setattr(producer, "connection", lambda: Dying(connect(), 5))
    with pytest.raises(
        BulkError, match=r"accepted: 0 to 1; refused: index 4, at .* not sent: it died; unknown, .*: 2 to 3"
    ) as raised:
        send(tasks, *"abcde")
    assert list(raised.value.jobs) == [0, 1]
    assert "its callback is scheduled when the accepted calls are finished" in raised.value.__notes__[0]
    finish(connect(QUEUE))
    finish(connect(QUEUE))
    assert started(broker) == 0  # the open marker protects it
    monkeypatch.setattr(batch_sweep, "OPEN_LIMIT_S", 0)
    batch_sweep.sweep(connect())
    assert started(broker) == broker.jobs() == 1


def test_a_broker_that_is_away_before_takes_nothing(tasks, broker):
    broker.kill()
    with pytest.raises(BrokerConnectionError):
        send(tasks, "a")


def test_a_broker_that_drains_takes_nothing_and_starts_the_callback_later(tasks, broker, connect):
    if broker.is_embedded:
        pytest.skip("the embedded broker has no drain mode")

    _, [_] = send(tasks, "a")
    worker = connect(QUEUE)
    broker.process.send_signal(signal.SIGUSR1)
    with pytest.raises(BrokerError, match="drain"):
        send(tasks, "b")
    member = Membership.of_body(take(worker).body)
    batches.finish(worker, member)
    assert broker.job(member.store)["state"] == "ready"


def memory_of(broker):
    return psutil.Process(broker.process.pid).memory_info().rss


def test_ten_thousand_calls_take_seconds_and_some_memory_of_the_broker(tasks, broker, connect):
    """The numbers of docs/guide/batches.md."""
    count = 10_000
    tasks.hello("first")
    sizes, times = [memory_of(broker)], [time.perf_counter()]
    tasks.hello.map(range(count))
    sizes.append(memory_of(broker))
    times.append(time.perf_counter())
    with tasks.backend.batch() as batch:
        batch.on_complete(tasks.done)
        batch.map(tasks.hello, range(count))
    sizes.append(memory_of(broker))
    times.append(time.perf_counter())
    plain, member = (after - before for before, after in itertools.pairwise(sizes))
    plain_s, batch_s = (after - before for before, after in itertools.pairwise(times))
    print(  # noqa: T201  # for -s: what was measured
        f"{plain / count:.0f} bytes a call, {member / count:.0f} in a batch; {plain_s:.2f} s to send {count}, "
        f"{batch_s:.2f} s as a batch"
    )
    worker = connect(QUEUE)
    began = time.perf_counter()
    for _ in range(1000):
        worker.delete(take(worker).id)
    middle = time.perf_counter()
    worker.delete_each(range(1, count + 2))
    start = time.perf_counter()
    for _ in range(1000):
        finish(worker)
    end = time.perf_counter()
    print(f"{middle - began:.3f} ms to reserve and delete a call, {end - start:.3f} ms one of the batch")  # noqa: T201  # likewise
    assert member - plain < 1500 * count
    assert broker.tube(batch_tube(batch.id))["current-jobs-ready"] == count - 1000 + 1
