"""A server that answers as Beanstalkd does, and lies at some places."""

from __future__ import annotations

import json
import math
import os
import re
import resource
import signal
import socket
import threading
import time
from collections.abc import Sequence
from contextlib import contextmanager, suppress

import psutil
import pytest
from click.testing import CliRunner
from flask import Flask
from flask.cli import ScriptInfo
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from support import hasty
from support.deaths import death_at
from support.lying import JOB_STATS, TUBE_STATS, Liar, Lie, Script, body_of, greetings, ok, scripts
from support.supervised import Command
from support.waiting import wait_until
from support.workload import QUEUE

from flask_backend import Backend
from flask_backend.broker.connection import Connection
from flask_backend.broker.pipeline import Pipeline
from flask_backend.broker.producer import Producer
from flask_backend.broker.stats import JobCounters
from flask_backend.broker.wire import ReservedJob
from flask_backend.cli import main
from flask_backend.config import Address, Settings
from flask_backend.errors import BrokerConnectionError, BrokerError
from flask_backend.options import DEFAULTS, PutOptions
from flask_backend.outcome import Ending
from flask_backend.registry import Handler, Handlers
from flask_backend.retry import Attempts, Retry
from flask_backend.visible import visible_lines
from flask_backend.worker.postmortem import settle

TIMEOUT_S = 0.4
JOB = ReservedJob(1, b"{}")
OPTIONS = PutOptions(1, 0, 60)


@contextmanager
def lying(*answers: bytes, every_s: float = 0):
    """Run a server that gives each command after the first two the next of these answers, the last one for good.

    With ``every_s`` it sends one byte at a time, with so many seconds between. Yields a connection to it.
    """

    def serve() -> None:
        left = list(answers)
        client, _ = listener.accept()
        with client, client.makefile("rb") as lines, suppress(OSError):
            for line in lines:
                if line.startswith(b"put"):
                    lines.readline()
                if line.startswith((b"watch", b"ignore")):
                    client.sendall(b"WATCHING 1\r\n")
                    continue
                data = left.pop(0) if len(left) > 1 else left[0]
                for begin in range(0, len(data), 1 if every_s else len(data) or 1):
                    client.sendall(data[begin : begin + 1] if every_s else data)
                    time.sleep(every_s)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        connection = Connection(Address("127.0.0.1", listener.getsockname()[1]), TIMEOUT_S, watch="q")
        try:
            yield connection
        finally:
            connection.close()
            thread.join()


def recover(connection: Connection):
    return Connection.adopt(connection._socket.detach(), connection.address, TIMEOUT_S).recover_reserved(1)


def reserve_as_a_worker(connection: Connection):
    pipeline = Pipeline(connection)
    pipeline.reserve(0)
    while connection.is_awaiting:
        if not connection.wire.is_readable(TIMEOUT_S):  # as a worker's Link
            connection.close()
            raise BrokerConnectionError("it does not answer")
        connection.receive()


def delete_as_a_worker(connection: Connection):
    pipeline = Pipeline(connection)
    pipeline.delete_and_reserve(JOB)
    connection.receive_all()


CALLS = {
    "counters": lambda c: c.counters(1),
    "counters_within": lambda c: c.counters_within(1, 5),
    "stats": lambda c: c.stats(),
    "list_tubes": lambda c: c.list_tubes(),
    "stats_tube": lambda c: c.stats_tube(["q"]),
    "stats_job": lambda c: c.stats_job([1]),
    "find_jobs": lambda c: c.find_jobs([1], ["q"], ["ready"]),
    "peek": lambda c: c.peek([1]),
    "find": lambda c: c.find(1),
    "peek_ready": lambda c: c.peek_ready(["q"]),
    "peek_buried": lambda c: c.peek_buried(["q"]),
    "kick_job": lambda c: c.kick_job([1]),
    "delete_each": lambda c: c.delete_each([1]),
    "pause_tube": lambda c: c.pause_tube("q", 1),
    "reserve_ready": lambda c: c.reserve_ready(1),
    "reserve_again": lambda c: c.reserve_again(JOB),
    "probe_last_id": lambda c: c.probe_last_id("q"),
    "has_old_jobs": lambda c: c.has_old_jobs("q", 5),
    "delete": lambda c: c.delete(1),
    "release": lambda c: c.release(1, 1, 0),
    "bury": lambda c: c.bury(1, 1),
    "touch": lambda c: c.touch(1),
    "put": lambda c: c.put("default", b"{}", OPTIONS),
    "put into another tube": lambda c: c.put("q", b"{}", OPTIONS),
    "recover_reserved": recover,
    "reserve": reserve_as_a_worker,
    "delete_and_reserve": delete_as_a_worker,
}
ODD_REPLIES = [
    *(b"OK 0\r\n\r\n", b"OK 3\r\nabc\r\n", b"OK 3\r\n\xff\xfe\xfd\r\n", b"OK 1 0\r\n\r\n", b"OK -1\r\n", b"OK x\r\n"),
    *(
        ok(b"---\nid: 1\n"),
        ok(b"---\nid: 1\ntube: q\nstate: ready\n"),
        ok(b"---\n- a b\n- \x1b[31m\n"),
        ok(b"- q\n" * 9),
    ),
    *(b"FOUND\r\n", b"FOUND 0\r\n\r\n", b"FOUND x 0\r\n\r\n", b"FOUND 1 2 0\r\n\r\n", b"FOUND 1 2\r\n{}\r\n"),
    *(b"RESERVED\r\n", b"RESERVED 0\r\n\r\n", b"RESERVED \xb2 0\r\n\r\n", b"RESERVED 1 2\r\n{}\r\n"),
    *(b"INSERTED\r\n", b"INSERTED x\r\n", b"INSERTED \xff\r\n", b"INSERTED " + b"9" * 500 + b"\r\n"),
    *(b"BURIED\r\n", b"BURIED x\r\n", b"USING\r\n", b"KICKED\r\n", b"JOB_TOO_BIG\r\n", b"DEADLINE_SOON\r\n"),
    *(b"\r\n", b" \r\n", b"\xff\xff\r\n", b"\x1b[31mHI\r\n", b"OUT_OF_MEMORY\r\n", b"TIMED_OUT\r\n", b"DELETED\r\n"),
]


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_no_reply_raises_anything_but_our_errors(call):
    for lie in ODD_REPLIES:
        with lying(lie) as connection:
            told = ""
            try:
                call(connection)
            except BrokerError as error:
                told = str(error)
            assert told == "" or told.isprintable()
            assert len(told) < 300


STATS = {
    "counters": (JOB_STATS, "pri ttr age releases buries"),
    "counters_within": (JOB_STATS, "pri ttr age releases buries"),
    "stats_job": (JOB_STATS, "id tube state pri age ttr time-left reserves timeouts releases buries kicks"),
    "find_jobs": (JOB_STATS, "pri age ttr time-left reserves timeouts releases buries kicks"),
    "stats_tube": (TUBE_STATS, "name current-jobs-ready current-waiting current-watching total-jobs pause-time-left"),
    "recover_reserved": (JOB_STATS.replace(b"ready", b"reserved"), "pri ttr age releases buries"),
}


@pytest.mark.parametrize(
    ("name", "key"), [(name, key.encode()) for name, (_, keys) in STATS.items() for key in keys.split()]
)
def test_statistics_without_a_value_or_with_an_odd_one_are_an_error_that_shows_the_reply(name, key):
    sound = STATS[name][0]
    line = re.search(rb"\n" + key + rb": .*", sound)[0]
    shown = r"lost the connection to Beanstalkd at .*: it answered 'OK \d+\\r\\n---\\n.*…$"
    for odd in (b"", b"\n" + key, b"\n" + key + b": -", b"\n" + key + b": a b", b"\n" + key + b": " + b"9" * 5000):
        with lying(ok(sound.replace(line, odd)), b"OK 6\r\n---\n- \r\n") as connection:
            with pytest.raises(BrokerConnectionError, match=shown):
                CALLS[name](connection)
            assert connection.fileno() < 0


@pytest.mark.parametrize(("name", "sound"), [(name, sound) for name, (sound, _) in STATS.items()])
def test_sound_statistics_are_read(name, sound):
    with lying(ok(sound), b"OK 6\r\n---\n- \r\n") as connection:
        assert CALLS[name](connection)


def test_counters_are_found_without_reading_the_rest_and_read_in_any_other_order():
    first, *lines = JOB_STATS.replace(b"releases: 0\nburies: 0", b"releases: 3\nburies: 4").splitlines(keepends=True)
    usual, other = b"".join([first, *lines]), b"".join([first, *reversed(lines)])
    expected = JobCounters(priority=1, ttr_s=60, age_s=2, attempts=Attempts(releases=3, buries=4))
    assert (JobCounters.find(usual), JobCounters.find(other)) == (expected, None)
    for data in (usual, other):
        with lying(ok(data)) as connection:
            assert connection.counters(1) == expected


@pytest.mark.parametrize("name", ["has_old_jobs", "probe_last_id", "put"])
@pytest.mark.parametrize("data", [b"", b"---\nuptime: x\ntotal-jobs: y\nmax-job-size: z\n"])
def test_odd_statistics_of_the_server_are_an_error_that_shows_the_reply(name, data):
    before = {
        "has_old_jobs": [ok(TUBE_STATS)],
        "probe_last_id": [b"USING q\r\n", b"DRAINING\r\n", b"USING default\r\n"],
        "put": [b"JOB_TOO_BIG\r\n"],
    }[name]
    with (
        lying(*before, ok(data)) as connection,
        pytest.raises(BrokerConnectionError, match=r"it answered 'OK \d+"),
    ):
        CALLS[name](connection)


WAITERS = ["stats", "put", "delete", "reserve", "delete_and_reserve", "recover_reserved"]


@pytest.mark.parametrize("name", WAITERS)
def test_a_line_without_an_end_is_refused_at_once(name):
    started = time.monotonic()
    with lying(b"A" * 30_000_000) as connection, pytest.raises(BrokerConnectionError, match="a line without an end"):
        CALLS[name](connection)
    assert time.monotonic() - started < 5
    assert len(connection.wire._received) < 200_000


@pytest.mark.parametrize("name", [name for name in WAITERS if name != "delete"])
@pytest.mark.parametrize("head", [b"OK", b"FOUND 1", b"RESERVED 1"])
@pytest.mark.parametrize("size", [2 * 2**30, 10**500])
def test_a_size_that_no_job_has_is_refused_at_once(name, head, size):
    with lying(b"%b %d\r\n" % (head, size)) as connection, pytest.raises(BrokerConnectionError, match="too much data"):
        CALLS[name](connection)


@pytest.mark.parametrize("name", WAITERS)
@pytest.mark.parametrize("reply", [b"INSERTED 123456789012345678901234567890\r\n", b"OK 900\r\n" + b"x" * 900])
def test_a_reply_that_drips_in_gets_no_extra_time(name, reply):
    started = time.monotonic()
    with lying(reply, every_s=TIMEOUT_S / 4) as connection:
        with pytest.raises(BrokerConnectionError, match=rf"no answer within {TIMEOUT_S} s"):
            CALLS[name](connection)
        assert time.monotonic() - started < 5 * TIMEOUT_S


class Interruption(BaseException):
    """Raised by a signal handler."""


@pytest.mark.parametrize("ending", ["silence", "interruption"])
def test_a_refused_tube_does_not_hide_why_its_jobs_have_no_answer(ending):
    def interrupt(*_: object) -> None:
        raise Interruption

    expected = BrokerConnectionError if ending == "silence" else Interruption
    with lying(b"USING a\r\n", b"OUT_OF_MEMORY\r\n", b"INSERTED 1\r\n", b"") as connection:
        before = signal.signal(signal.SIGALRM, interrupt)
        try:
            signal.setitimer(signal.ITIMER_REAL, TIMEOUT_S / 4 if ending == "interruption" else 0)
            with pytest.raises(expected) as raised:
                connection.receive_results(connection.send_puts("q", [b"{}", b"{}"], OPTIONS), [])
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
    assert ending != "silence" or f"no answer within {TIMEOUT_S} s" in str(raised.value)


@pytest.mark.parametrize(
    "reply", [b"DELETED\r\n", ok(JOB_STATS), b"RESERVED 7 2\r\n{}\r\n"], ids=["stale", "stats", "job"]
)
def test_replies_without_end_on_the_connection_of_a_dead_worker_are_not_read_for_long(reply):
    """Of a server that sends them before any command, and goes on as long as it can."""

    def flood() -> None:
        client, _ = listener.accept()
        with client, suppress(OSError):
            while True:
                client.sendall(reply * 1000)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=flood)
        thread.start()
        address = Address("127.0.0.1", listener.getsockname()[1])
        fd = socket.create_connection((address.host, address.port)).detach()
        started = time.monotonic()
        assert settle(Settings(address, timeout_s=TIMEOUT_S), HANDLERS, fd, death_at(7), 1) is None
        assert time.monotonic() - started < 10 * TIMEOUT_S
        thread.join()


def test_each_of_many_replies_has_the_whole_timeout():
    with lying(b"INSERTED 123\r\n", every_s=TIMEOUT_S / 50) as connection:
        started = time.monotonic()
        assert len(connection.ask([b"put 1 1 1 0\r\n\r\n"] * 8)) == 8
        assert time.monotonic() - started > TIMEOUT_S


def test_a_server_that_hands_out_a_job_and_then_nonsense_causes_no_storm_of_reconnects(broker, command):
    started: list[float] = []

    def serve() -> None:
        while len(started) < 6:
            client, _ = listener.accept()
            started.append(time.monotonic())
            with client, client.makefile("rb") as lines, suppress(OSError):
                for line in lines:
                    match line.split()[0]:
                        case b"watch" | b"ignore":
                            client.sendall(b"WATCHING 1\r\n")
                        case b"stats":
                            client.sendall(ok(b"---\nuptime: 100000\n"))
                        case b"stats-tube":
                            client.sendall(b"NOT_FOUND\r\n")
                        case b"list-tubes":  # for the sweep of batches, at a random time
                            client.sendall(ok(b"---\n- default\n"))
                        case b"reserve-with-timeout":
                            client.sendall(b"RESERVED 7 2\r\n[]\r\n")
                        case _:
                            client.sendall(b"NONSENSE\r\n")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        worker = command("worker", QUEUE, BACKEND_CONNECTION_URI=f"btq://127.0.0.1:{listener.getsockname()[1]}")
        thread.join(timeout=30)
        wait_until(lambda: worker.log.count("job 7 of ") >= 6, "the last one is logged, after its connection is closed")
        worker.end()
    assert worker.log.count("job 7 of ") == 6
    assert started[-1] - started[0] > 1.5, "the delays have doubled, from 0.05 or more"


# -- any lies, by Hypothesis ---------------------------------------------------------------------------------------

SHORT_S = 0.04  # a server may well take longer on a busy machine: that is one more thing to survive
# ``LIES`` in the environment is the number of scripts in the long version of each test.
LIES = int(os.environ.get("LIES", "2000"))


def tried(examples: int, *, anew: bool = False):
    """Have a test tried with this many scripts of lies: the same ones each time, or others."""
    options = settings(
        max_examples=examples,
        derandomize=not anew,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],  # to shrink an example would take many timeouts
    )
    return lambda test: options(given(data=st.data())(test))


@pytest.fixture
def liar():
    server = Liar(drip_s=SHORT_S / 4)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield server
    server.stop()
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    told = ", ".join(f"{how} {count:,}" for how, count in server.told.most_common())
    print(f"{server.commands:,} commands were answered, some with lies: {told}")  # noqa: T201
    print(f"{grown >> 10:,} MiB more memory at the peak, of the client, the server and Hypothesis")  # noqa: T201
    assert grown < 200 << 10


@contextmanager
def only_our_errors(script: Script):
    """Whatever is raised is one of our errors, short and safe to show; and each reply was waited for at most once."""
    started = time.monotonic()
    told = ""
    try:
        yield
    except BrokerError as error:
        told = str(error)
    assert told == "" or told.isprintable()
    assert len(told) < 400
    assert time.monotonic() - started < SHORT_S * (script.commands + 5) + 5


def talk(liar: Liar, data: st.DataObject) -> None:
    """After any calls, the connection is closed, or its next reply is that to its next command."""
    script = liar.tell(data.draw(scripts), data.draw(greetings))
    names = data.draw(st.lists(st.sampled_from(list(CALLS)), min_size=1, max_size=4))
    connection = None
    with only_our_errors(script):
        connection = Connection(liar.address, SHORT_S, watch="q")
    for name in names:
        if connection is None or not connection.is_usable:
            break
        with only_our_errors(script):
            CALLS[name](connection)
    script.lies.clear()
    if connection is not None and connection.is_usable and not connection.is_awaiting:
        with only_our_errors(script):
            assert connection.peek([1234]) in ({1234: body_of(1234)}, {})
    if connection is not None:
        connection.close()


def produce(liar: Liar, data: st.DataObject) -> None:
    """Each job is accepted, refused, unknown or not sent."""
    script = liar.tell(data.draw(scripts), data.draw(greetings))
    producer = Producer(Settings(liar.address, timeout_s=SHORT_S))
    for _ in range(data.draw(st.integers(1, 3))):
        count = data.draw(st.sampled_from([0, 1, 1, 3, 3, 600]))
        with only_our_errors(script):
            outcome = producer.put_many("q", range(count), lambda _index, item: b"%d" % item, DEFAULTS)
            sent = count if outcome.unsent_from is None else outcome.unsent_from
            known = [*outcome.accepted, *(index for run in (*outcome.refused, *outcome.unknown) for index in run)]
            assert sorted(known) == list(range(sent))
            assert sent == count or outcome.failure is not None
        with only_our_errors(script):
            assert isinstance(producer.put("q", b"{}", DEFAULTS), int)
        with only_our_errors(script):
            assert producer.state("q", 7, "7") in (None, "buried", "ready", "delayed", "reserved")
        with only_our_errors(script):
            assert producer.cancel("q", 7, None) in (True, False)
    if (connection := getattr(producer._local, "connection", None)) is not None:
        connection.close()


COMMANDS = [
    *(["queues", "--interval", "0"], ["queues", "--check"], ["jobs", "q"], ["jobs", "q", "--scan", "2000"]),
    *(["peek", "7"], ["explain", "7"], ["failures"], ["failures", "q"], ["failures", "--job", "7"]),
    *(["retry", "7", "8", "--yes"], ["retry", "--all", "--yes"], ["delete", "7", "--yes"], ["delete", "--all", "-y"]),
    *(["pause", "q", "--yes"], ["resume", "q"], ["call", "note", "[1]", "--yes"], ["check", "--waiting"]),
]
NOTE = {"job": 7, "queue": "q", "reason": "failed", "buried_at": 1.8e9, "host": "h", "pid": 1, "traceback": "\x1b[2J\n"}
NOTES = [json.dumps(each).encode() for each in (NOTE, {**NOTE, "job": 8, "message": "\ud800\r"}, {**NOTE, "pid": "x"})]


def command_app(address: Address) -> Flask:
    app = Flask("commands")
    app.config.update(BACKEND_CONNECTION_URI=str(address), BACKEND_TIMEOUT=SHORT_S)
    Backend(app).task("q", endpoint="note")(lambda _number: None)
    return app


def use_commands(liar: Liar, data: st.DataObject) -> None:
    """A command ends well or with one line, and prints only what is safe."""
    script = liar.tell(data.draw(scripts), data.draw(greetings), NOTES, jobs=len(NOTES))
    args = data.draw(st.sampled_from(COMMANDS)) + data.draw(st.sampled_from([[], ["--json"]]))
    started = time.monotonic()
    result = CliRunner().invoke(main, args, obj=ScriptInfo(create_app=lambda: command_app(liar.address)))
    assert time.monotonic() - started < SHORT_S * (script.commands + 5) + 5
    told = f"{args}: {result.output[-2000:]}"
    assert result.exception is None or isinstance(result.exception, SystemExit), told
    assert result.exit_code in (0, 1), told
    assert visible_lines(result.output) == result.output, told
    errors = [line for line in result.output.splitlines() if line.startswith("Error: ")]
    assert len(errors) <= result.exit_code, told
    assert "Traceback" not in result.output, told


HANDLERS = Handlers("q", {"note": Handler("note", print), "proud": Handler("proud", print, retry=Retry(0))})


def settle_a_crash(liar: Liar, data: st.DataObject) -> None:
    """The helper of a supervisor settles the job of a dead worker, or leaves it to the server; nothing is raised."""
    script = liar.tell(data.draw(scripts), data.draw(greetings), state=b"reserved")
    fd = socket.create_connection((liar.address.host, liar.address.port)).detach()
    started = time.monotonic()
    settled = settle(Settings(liar.address, timeout_s=SHORT_S), HANDLERS, fd, death_at(7), data.draw(st.integers(1, 4)))
    assert time.monotonic() - started < SHORT_S * (script.commands + 5) + 5
    assert settled is None or settled.ending in (Ending.RETRIED, Ending.BURIED)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


@pytest.fixture
def lied_to(liar, command):
    """A worker at the liar, which the test has to leave alive and well."""
    worker = command("worker", hasty.QUEUE, app="support.hasty_app", BACKEND_CONNECTION_URI=str(liar.address))
    serve(liar, worker, [])
    before = psutil.Process(worker.pid).memory_full_info().uss
    yield worker
    grown = psutil.Process(worker.pid).memory_full_info().uss - before
    log = worker.log  # it may still write
    print(f"{len(log.splitlines()):,} lines of its log; {grown >> 10:,} KiB more private memory")  # noqa: T201
    assert grown < 32 << 20, "malloc keeps some of what the floods have taken, however many there were"
    assert visible_lines(log) == log
    others = {line for line in log.splitlines() if not re.match(r"\d{4}-\d\d-\d\d |  |Traceback \(", line)}
    assert {line.partition(": ")[0] for line in others} == {
        *("ValueError", "flask_backend.errors.UnknownEndpointError")
    }, "the only tracebacks are those of the tasks"


def serve(liar: Liar, worker: Command, lies: Sequence[Lie | None], greeting: bytes = b"") -> None:
    """After all lies, the worker takes jobs again and settles them."""
    script = liar.tell(lies, greeting, hasty.BODIES, jobs=math.inf)
    assert script.is_over.wait(20), f"{script}; log:\n{worker.log[-3000:]}"
    assert worker.process.poll() is None


@tried(150)
def test_no_lies_break_a_connection(liar, data):
    talk(liar, data)


@tried(25)
def test_no_lies_break_a_producer(liar, data):
    produce(liar, data)


@tried(50)
def test_no_lies_break_a_command(liar, data):
    use_commands(liar, data)


@tried(60)
def test_no_lies_break_the_settlement_of_a_crash(liar, data):
    settle_a_crash(liar, data)


@pytest.mark.any_broker
@tried(30)
def test_no_lies_break_a_worker(liar, lied_to, data):
    serve(liar, lied_to, data.draw(scripts), data.draw(greetings))


@pytest.mark.soak
@pytest.mark.timeout(3600)
@tried(2 * LIES, anew=True)
def test_no_lies_at_all_break_a_connection(liar, data):
    talk(liar, data)


@pytest.mark.soak
@pytest.mark.timeout(3600)
@tried(LIES, anew=True)
def test_no_lies_at_all_break_a_producer(liar, data):
    produce(liar, data)


@pytest.mark.soak
@pytest.mark.timeout(3600)
@tried(LIES, anew=True)
def test_no_lies_at_all_break_a_command(liar, data):
    use_commands(liar, data)


@pytest.mark.soak
@pytest.mark.timeout(3600)
@tried(LIES, anew=True)
def test_no_lies_at_all_break_the_settlement_of_a_crash(liar, data):
    settle_a_crash(liar, data)


@pytest.mark.soak
@pytest.mark.any_broker
@pytest.mark.timeout(3600)
@tried(LIES, anew=True)
def test_no_lies_at_all_break_a_worker(liar, lied_to, data):
    serve(liar, lied_to, data.draw(scripts), data.draw(greetings))
