"""A reply is never read for the wrong command, even under random commands and random faults."""

from __future__ import annotations

import gc
import itertools
import os
import random
import signal
import socket
import sys
import time
import traceback
from contextlib import contextmanager, suppress
from pathlib import Path

import greenstalk
import pytest
from support.proxy import Proxy
from support.waiting import wait_until

from flask_backend import broker as broker_room
from flask_backend.broker.connection import Connection
from flask_backend.broker.pipeline import Pipeline
from flask_backend.broker.producer import Producer
from flask_backend.broker.wire import OutOfStepError, Replies, Reply, Wire
from flask_backend.config import Address, Settings
from flask_backend.errors import BrokerConnectionError, JobNotFoundError
from flask_backend.options import Options, PutOptions

JOBS = 30
QUEUES = ["q", "other", "another"]
Known = dict[int, tuple[bytes, int, str]]  # the body, priority and queue of each job, by its id
BROKER_ROOM = str(Path(broker_room.__file__).parent)


class Interruption(Exception):  # noqa: N818
    """Raised by a signal handler, wherever the program is."""


@contextmanager
def interrupted_after(seconds: float):
    """Raise an Interruption after so many seconds, unless the block ends first."""
    is_armed = True

    def interrupt(_number, _frame):
        if is_armed:
            raise Interruption

    old = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
        is_armed = False
    finally:
        is_armed = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)


@contextmanager
def interrupted_at(step: int):
    """Raise an Interruption at a step of the broker room: a line, or the begin or end of a function."""
    steps = itertools.count()

    def trace(frame, _event, _arg):
        if not frame.f_code.co_filename.startswith(BROKER_ROOM):
            return None
        if next(steps) == step:
            raise Interruption
        return trace

    old = sys.gettrace()
    gc.disable()  # its finalizers would run here, and swallow the exception
    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(old)
        gc.enable()


class Driver:
    """Use one connection at random, with a known expected reply: each job has its own body and priority."""

    def __init__(self, rng: random.Random, settings: Settings, known: Known, history: list[str]) -> None:
        self.rng = rng
        self.known = known
        self.history = history
        self.deleted: set[int] = set()
        self.held: dict[int, object] = {}
        self.connection = Connection(settings.address, settings.timeout_s, watch="q")
        self.pipeline = Pipeline(self.connection)
        self.steps = [
            *(self.reserve, self.finish, self.finish_and_reserve, self.receive, self.receive_all, self.prefetch_stats),
            *(self.counters, self.counters_within, self.touch, self.release, self.bury, self.peek, self.put),
            *(self.put_many, self.delete_what_is_not_there, self.ask),
        ]

    def step(self) -> None:
        step = self.rng.choice(self.steps)
        self.history.append(f"\n{step.__name__}")
        try:
            step()
        except BaseException as error:
            caller = traceback.extract_tb(error.__traceback__)[-2]
            self.history.append(f"{error!r} in {caller.name}:{caller.lineno}, {self.connection.fileno()=}")
            raise

    # -- the worker's way: no command waits for a reply -------------------------------------------------------

    def reserve(self):
        self.pipeline.reserve(0, self.rng.randint(1, 4))

    def finish(self):
        if job := self._let_go():
            self.pipeline.delete_and_reserve(job, with_next=self.rng.random() < 0.5)

    def finish_and_reserve(self):
        if job := self._let_go():
            self.pipeline.delete_and_reserve(job, 0, self.rng.randint(1, 4))

    def receive(self):
        if self.connection.is_awaiting:
            self.connection.receive_all() if self.rng.random() < 0.5 else self._receive_one()
        self._take()

    def _receive_one(self):
        with suppress(BlockingIOError):
            if self.connection.wire.is_readable(0.01):
                self.connection.receive()

    def receive_all(self):
        self.connection.receive_all()
        self._take()

    def prefetch_stats(self):
        if self.held:
            job_id = self.rng.choice(list(self.held))
            asked = self.connection.prefetch_stats(job_id)
            if self.rng.random() < 0.5:
                self._check(job_id, self.connection.counters_within(job_id, 1, asked))

    def _take(self):
        for job in self.pipeline.take_jobs():
            assert self.known[job.id][0] == job.body
            assert job.id not in self.deleted
            self.held[job.id] = job
        assert self.pipeline.pop_expired() == []

    def _let_go(self):
        self._take()
        return self.held.pop(self.rng.choice(list(self.held))) if self.held else None

    # -- command by command ----------------------------------------------------------------------------------

    def counters(self):
        job_id = self.rng.choice(list(self.known))
        with suppress(JobNotFoundError):
            self._check(job_id, self.connection.counters(job_id))

    def counters_within(self):
        job_id = self.rng.choice(list(self.known))
        self._check(job_id, self.connection.counters_within(job_id, self.rng.choice([0, 0.0001, 1])))

    def _check(self, job_id, counters):
        assert counters is None or counters.priority == self.known[job_id][1]

    def touch(self):
        if self.held:
            self.connection.touch(self.rng.choice(list(self.held)))

    def release(self):
        if job := self._let_go():
            self.connection.release(job.id, self.known[job.id][1], 1000)

    def bury(self):
        if job := self._let_go():
            self.connection.bury(job.id, self.known[job.id][1])

    def peek(self):
        job_id = self.rng.choice(list(self.known))
        with suppress(JobNotFoundError):
            assert self.connection.peek([job_id]).get(job_id, self.known[job_id][0]) == self.known[job_id][0]

    def put(self):
        body, options = self._new()
        queue = self.rng.choice(QUEUES[1:])
        job_id = self.connection.put(queue, body, options)
        self.known[job_id] = body, options.priority, queue

    def put_many(self):
        bodies = [self._new()[0] for _ in range(self.rng.randint(1, 20))]
        _, options = self._new()
        queue = self.rng.choice(QUEUES[1:])
        results = []
        pending = self.connection.send_puts(queue, bodies, options)
        if self.rng.random() < 0.5:
            self.peek()
        self.connection.receive_results(pending, results)
        self.known |= {job_id: (body, options.priority, queue) for job_id, body in zip(results, bodies, strict=True)}

    def _new(self):
        return self.rng.randbytes(self.rng.choice([0, 1, 20, 3000])), PutOptions(self.rng.randrange(2**32), 0, 600)

    def delete_what_is_not_there(self):
        with pytest.raises((JobNotFoundError, BrokerConnectionError)):
            self.connection.delete(2**40)

    def ask(self):
        chosen = self.rng.choices(list(self.known), k=5)
        replies = self.connection.ask([b"peek %d\r\n" % job_id for job_id in chosen])
        for job_id, reply in zip(chosen, replies, strict=True):
            assert reply.status == "NOT_FOUND" or reply.data == self.known[job_id][0]


def drive(broker, seed: int) -> tuple[int, int]:
    """Use connections that break, one after another; return the numbers of broken ones and of interrupted steps."""
    history: list[str] = []
    try:
        return use_broken_connections(broker, seed, history)
    except AssertionError as error:
        error.add_note(f"seed {seed}: {' '.join(history)}")
        raise


def use_broken_connections(broker, seed: int, history: list[str]) -> tuple[int, int]:
    rng = random.Random(seed)
    known: Known = {}
    for _ in range(JOBS):
        body, priority = rng.randbytes(rng.choice([0, 10, 2000])), rng.randrange(2**32)
        known[broker.put("q", body, priority=priority, ttr=600)] = body, priority, "q"
    faults = random.Random(seed)  # its own: the proxy's threads run at any time
    proxy = Proxy(
        broker.port, lambda: faults.choice([None, faults.randrange(1, 6000)]), lambda: faults.choice([1, 7, 100, 4096])
    )
    settings = Settings(Address.parse(proxy.uri), timeout_s=5)
    broken = interrupted = 0
    driver: Driver | None = None
    try:
        for _ in range(8):
            with suppress(BrokerConnectionError):
                driver = Driver(rng, settings, known, history)
                while driver.connection.fileno() >= 0 and rng.random() > 0.01:
                    try:
                        with interrupted_after(rng.uniform(0.00002, 0.0006) if rng.random() < 0.05 else 60):
                            driver.step()
                    except Interruption:
                        interrupted += 1
                    except BrokerConnectionError:
                        assert driver.connection.fileno() < 0
                        broken += 1
                driver.connection.close()
    finally:
        if driver is not None:
            driver.connection.close()
        proxy.close()
    assert_all_is_as_it_was(broker, known)
    return broken, interrupted


def assert_all_is_as_it_was(broker, known):
    """Check that the server has exactly the jobs that were put, and that no connection holds one. Delete them."""
    with broker.client("q") as client:
        # By then the server has read everything that the closed connections sent, puts too.
        wait_until(lambda: client.stats()["current-connections"] == 1, "only this connection is left")
        assert client.stats()["current-jobs-reserved"] == 0
        for job_id, (body, priority, queue) in known.items():
            with suppress(greenstalk.NotFoundError):
                assert client.peek(job_id).body == body
                stats = client.stats_job(job_id)
                assert (stats["pri"], stats["tube"]) == (priority, queue)
                client.delete(greenstalk.Job(job_id, b""))
    for queue in QUEUES[1:]:  # it also has jobs whose put was answered on a closed connection
        while broker.count(queue, "ready"):
            broker.take(queue)
    tubes = ["default", *QUEUES]
    assert {tube: broker.tube(tube) for tube in tubes if not broker.is_empty(tube)} == {}
    assert broker.jobs() == 0


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # it may strike while Python cleans up
@pytest.mark.parametrize("seed", range(40))
def test_a_reply_is_never_read_for_the_wrong_command(broker, seed):
    drive(broker, seed)


@pytest.mark.soak
@pytest.mark.timeout(600)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_reply_is_never_read_for_the_wrong_command_many_times(broker):
    counts = [drive(broker, seed) for seed in range(1000, 2000)]
    assert all(sum(count) > 100 for count in zip(*counts, strict=True)), "many faults of each kind"


def put_one(connection):
    connection.put("other", b"other", PutOptions(1, 0, 600))


def put_two(connection):
    pending = connection.send_puts("other", [b"other", b"other"], PutOptions(1, 0, 600))
    connection.receive_results(pending, [])


def look_while_a_put_is_in_flight(connection):
    connection.send_puts("other", [b"other"], PutOptions(1, 0, 600))
    connection.peek_ready(QUEUES)


def probe(connection):
    connection.probe_last_id("probe")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # it may strike while Python cleans up
@pytest.mark.parametrize("use", [put_one, put_two, look_while_a_put_is_in_flight, probe])
def test_an_interruption_at_any_line_never_sends_a_job_to_a_wrong_queue(broker, use):
    """As when a web server's timeout raises in a signal handler just before the command is written."""
    still_open = 0
    connections = []  # kept for the same reason
    for step in itertools.count():
        connection = Connection(Address.parse(broker.uri), timeout_s=5)
        connections.append(connection)
        connection.put("another", b"another", PutOptions(1, 0, 600))
        try:
            with interrupted_at(step):
                use(connection)
        except Interruption:
            is_done = False
        else:
            is_done = True
        if connection.is_usable:
            still_open += not is_done
            for queue in QUEUES[1:]:
                connection.put(queue, queue.encode(), PutOptions(1, 0, 600))
        connection.close()
        if is_done:
            break
    assert still_open > 5, "many interruptions before the command and after it"
    for queue in QUEUES:
        while broker.count(queue, "ready"):
            assert broker.take(queue) == queue.encode()
    assert broker.count("default", "ready") == 0


def test_an_interrupted_map_says_which_items_may_have_been_sent(broker):
    producer = Producer(Settings(Address.parse(broker.uri)))
    producer.put("q", b"first", Options())
    broker.freeze()
    with pytest.raises(Interruption) as caught, interrupted_after(0.3):
        producer.put_many("q", range(1200), lambda _index, item: b"%d" % item, Options())
    broker.thaw()
    [note] = caught.value.__notes__
    assert note == (
        "of the items before it: accepted: none; unknown, because the connection broke "
        f"(the connection to Beanstalkd at {broker.uri} is closed): 0 to 499; not sent: from index 500 on"
    )


def test_a_late_reply_that_another_command_has_read_does_not_hide_the_next_one(broker):
    job_id = broker.put("q", b"", ttr=600)
    connection = Connection(Address.parse(broker.uri), timeout_s=5)
    broker.freeze()
    assert connection.counters_within(job_id, 0.01) is None
    broker.thaw()
    assert connection.counters(job_id).ttr_s == 600
    assert connection.counters_within(job_id, 5).ttr_s == 600
    connection.close()


# -- deletions that are sent with the next command ---------------------------------------------------------------


HELD_BACK_S = 0.15  # less than the system holds data back


@pytest.fixture
def held(broker):
    """A worker's pipeline, with four jobs that it holds."""
    for _ in range(4):
        broker.put("q", b"", ttr=600)
    pipeline = Pipeline(Connection(Address.parse(broker.uri), timeout_s=5, watch="q"))
    pipeline.reserve(0, 4)
    pipeline.connection.receive_all()
    yield pipeline, pipeline.take_jobs()
    pipeline.connection.close()


def quickest(action, jobs) -> float:
    """Return the shortest time that an action takes: on a busy machine any single one may take long."""
    times: list[float] = []
    for job in jobs:
        start = time.monotonic()
        action(job)
        times.append(time.monotonic() - start)
    return min(times)


def test_a_deletion_goes_with_the_next_command(held):
    pipeline, jobs = held
    for job in jobs:
        pipeline.delete_and_reserve(job, with_next=True)
    pipeline.reserve(0)
    pipeline.connection.receive_all()
    assert not pipeline.pending_deletes
    assert pipeline.pop_expired() == []


def test_a_deletion_goes_before_its_reply_is_waited_for(held):
    pipeline, jobs = held

    def delete_and_ask(job):
        pipeline.delete_and_reserve(job, with_next=True)
        assert pipeline.connection.counters(jobs[3].id).ttr_s == 600

    assert quickest(delete_and_ask, jobs[:3]) < HELD_BACK_S


def test_a_deletion_goes_at_once_while_another_reply_is_unread(held):
    """Closing a socket with unread data drops what the system has not sent."""
    pipeline, jobs = held

    def delete(job):
        pipeline.connection.prefetch_stats(job.id)
        pipeline.delete_and_reserve(job, with_next=True)
        while pipeline.pending_deletes:
            pipeline.connection.receive()  # unlike receive_next, this sends nothing

    assert quickest(delete, jobs) < HELD_BACK_S


def test_a_deletion_goes_by_itself_within_the_shortest_ttr(held):
    pipeline, jobs = held

    def delete(job):
        pipeline.delete_and_reserve(job, with_next=True)
        while pipeline.pending_deletes:
            pipeline.connection.receive()

    assert quickest(delete, jobs) < 0.5


def test_a_deletion_goes_even_if_its_process_dies_at_once(broker):
    broker.put("q", b"", ttr=600)
    if (pid := os.fork()) == 0:
        pipeline = Pipeline(Connection(Address.parse(broker.uri), timeout_s=5, watch="q"))
        pipeline.reserve(0)
        pipeline.connection.receive_all()
        pipeline.delete_and_reserve(*pipeline.take_jobs(), with_next=True)
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)
    wait_until(lambda: broker.is_empty("q"), "it is deleted")


# -- one reply after another, without a server -----------------------------------------------------------------


@pytest.fixture
def ends():
    ours, theirs = socket.socketpair()
    ours.settimeout(5)
    with ours, theirs:
        yield Wire(ours), theirs


@pytest.mark.parametrize("size", [1, 2, 3, 1000])
def test_replies_come_in_pieces_of_any_size(ends, size):
    wire, server = ends
    replies = Replies()
    wire.send(b"", *[replies] * 3)
    data = b"FOUND 7 4\r\na\r\nb\r\nDELETED\r\nRESERVED 8 0\r\n\r\n"
    for start in range(0, len(data), size):
        server.sendall(data[start : start + size])
        wire.receive()
    assert replies == [Reply("FOUND", ("7", "4"), b"a\r\nb"), Reply("DELETED"), Reply("RESERVED", ("8", "0"))]
    assert not wire.is_awaiting


@pytest.mark.parametrize(
    "data",
    [b"DELETED\r\nDELETED\r\n", b"\r\n", b"OK\r\n", b"OK -3\r\n", b"FOUND 1 x\r\n", b"BAD_FORMAT\r\n", b"DELETED\r\nx"],
)
def test_an_unrequested_reply_breaks_the_stream(ends, data):
    wire, server = ends
    wire.send(b"", Replies())
    server.sendall(data)
    with pytest.raises(OutOfStepError):
        wire.receive()


def test_more_data_than_the_buffers_hold_is_sent_whole(ends):
    wire, server = ends
    body = random.Random(1).randbytes(1 << 20)
    received = bytearray()
    with suppress(BlockingIOError):
        server.setblocking(False)
        received += server.recv(1)
    import threading

    def read():
        server.settimeout(5)
        while len(received) < len(body):
            received.extend(server.recv(1 << 16))

    reader = threading.Thread(target=read)
    reader.start()
    wire.send(body)
    reader.join()
    assert received == body
