"""Scheduling and sending: what a web process does, against a real server."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
import tracemalloc
from datetime import UTC, datetime, timedelta

import pytest
from flask import Flask
from support.beanstalkd import Beanstalkd
from support.proxy import Proxy
from support.waiting import wait_until

from flask_backend import (
    Backend,
    BrokerConnectionError,
    BrokerError,
    BulkError,
    ConfigError,
    Job,
    JobState,
    JobTooBigError,
    MessageEncodeError,
    OptionError,
    QueueNameError,
    RegistrationError,
    TaskArgumentsError,
)
from flask_backend.broker.producer import Producer
from flask_backend.config import Address, Settings
from flask_backend.options import Options

QUEUE = "com.example/default"


def make_app(broker: Beanstalkd, name: str = "app", **config) -> Flask:
    app = Flask(name)
    app.config.update(BACKEND_CONNECTION_URI=broker.uri, **config)
    return app


@pytest.fixture
def backend(broker):
    app = make_app(broker)
    backend = Backend(app)
    backend.app = app  # keeps it alive: a Backend does not
    return backend


@pytest.fixture
def hello(backend):
    @backend.task(QUEUE)
    def hello(target, *, loud=False):
        return f"hello {target}{'!' if loud else ''}"

    return hello


def test_a_call_puts_one_job_with_the_documented_message(broker, hello):
    before = time.time()
    job = hello("world", loud=True)
    assert job == Job(QUEUE, job.id, broker=broker.uri)
    assert job != Job(QUEUE, job.id, broker="btq://elsewhere:11300")
    message = json.loads(broker.peek(job.id))
    assert message.pop("headers").keys() == {"id", "at"}
    assert message == {"endpoint": "hello", "args": ["world"], "kwargs": {"loud": True}}
    assert before - 1 < json.loads(broker.peek(job.id))["headers"]["at"] < time.time() + 1
    stats = broker.job(job.id)
    assert (stats["tube"], stats["ttr"], stats["delay"], stats["state"]) == (QUEUE, 120, 0, "ready")


def test_run_runs_here_and_schedules_nothing(broker, hello):
    assert hello.run("world", loud=True) == "hello world!"
    assert broker.is_empty(QUEUE)


def test_the_endpoint_may_differ_from_the_function(broker, backend):
    @backend.task(QUEUE, endpoint="mail.send")
    def send(): ...

    assert json.loads(broker.peek(send().id))["endpoint"] == "mail.send"


def test_a_task_keeps_the_functions_name_docstring_and_signature(backend):
    @backend.task(QUEUE)
    def documented(x):
        """Say it."""

    assert (documented.__name__, documented.__doc__) == ("documented", "Say it.")
    assert documented.__wrapped__.__code__.co_varnames == ("x",)


def test_send_puts_only_the_json(broker, backend):
    job = backend.send("com.external/other", {"any": ["json", 1, None]})
    assert broker.peek(job.id) == b'{"any":["json",1,null]}'


def test_nothing_connects_before_first_use(broker):
    app = make_app(broker)
    backend = Backend(app)
    backend.task(QUEUE)(len)
    with broker.client() as client:
        assert client.stats()["current-connections"] == 1  # the connection that asks


def test_map_schedules_in_order_as_the_builtin_map_would(broker, backend, hello):
    jobs = hello.map(str(n) for n in range(1201))
    assert [json.loads(broker.peek(job.id))["args"] for job in jobs[::400]] == [["0"], ["400"], ["800"], ["1200"]]
    assert broker.count(QUEUE, "ready") == 1201

    @backend.task("pairs")
    def pair(a, b): ...

    _, second = pair.map([1, 2], ["x", "y"])
    assert json.loads(broker.peek(second.id))["args"] == [2, "y"]
    assert len(hello.map([])) == 0


def test_map_and_single_calls_share_a_connection_without_mixing_replies(broker, hello):
    for n in range(20):
        ids = [job.id for job in hello.map(range(n * 30))]
        single = hello("single").id
        assert ids == list(range(single - len(ids), single))


def test_items_may_schedule_calls_themselves_while_others_are_in_flight(broker, backend, hello):
    @backend.task("other")
    def other(n): ...

    def items():
        for n in range(1200):
            if n % 100 == 0:
                singles.append(other(n) if n % 200 else hello(f"single {n}"))
            yield f"item {n}"

    singles = []
    jobs = hello.map(items())
    assert [json.loads(broker.peek(job.id))["args"] for job in jobs[::200]] == [
        [f"item {n}"] for n in range(0, 1200, 200)
    ]
    assert [json.loads(broker.peek(job.id))["args"] for job in singles[1::2]] == [[n] for n in range(100, 1200, 200)]
    assert (broker.count("other", "ready"), broker.count(QUEUE, "ready")) == (6, 1206)


def test_a_tube_that_the_server_cannot_create_gets_no_job_and_no_other_tube_does():
    """The use and the put travel together, so the put is read even though the use was refused.

    It goes into a tube that no worker watches, where it may stay if the producer dies before it deletes it.
    """
    asked = []

    def serve():
        connection, _ = server.accept()
        with connection, connection.makefile("rb") as lines:
            for line in lines:
                asked.append(line.split(b" ")[:2] if line.startswith(b"use") else line.split()[0])
                match line.split():
                    case [b"watch" | b"ignore", _]:
                        reply = b"WATCHING 1"
                    case [b"use", b"full"]:
                        reply = b"OUT_OF_MEMORY"
                    case [b"use", tube]:
                        reply = b"USING " + tube
                    case [b"put", *_]:
                        lines.readline()
                        reply = b"INSERTED 7"
                    case [b"delete", _]:
                        reply = b"DELETED"
                connection.sendall(reply + b"\r\n")

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=serve)
        thread.start()
        producer = Producer(Settings(Address("127.0.0.1", server.getsockname()[1])))
        producer.put("q", b"{}", Options())
        with pytest.raises(BrokerError, match="refuses: the server is out of memory"):
            producer.put("full", b"{}", Options())
        producer.put("q", b"{}", Options())
        producer.connection().close()
        thread.join()
    nowhere, q, full = ([b"use", tube + b"\r\n"] for tube in (b"flask-backend.nowhere", b"q", b"full"))
    assert asked == [b"watch", b"ignore", nowhere, q, b"put", nowhere, full, b"put", b"delete", nowhere, q, b"put"]


@pytest.mark.parametrize(
    ("function", "fitting", "unfitting"),
    [
        (lambda: None, [()], [(1,)]),
        (lambda a, b=1, /: None, [(1,), (1, 2)], [(), (1, 2, 3)]),
        (lambda a, *rest: None, [(1,), tuple(range(100))], [()]),
        (lambda a, *, b=1, **c: None, [(1,)], [(), (1, 2)]),
        (lambda *, b: None, [], [(), (1,)]),
    ],
)
def test_calls_without_names_are_checked_as_all_others(backend, function, fitting, unfitting):
    task = backend.task(QUEUE, endpoint="f")(function)
    for args in fitting:
        assert task(*args).id
    for args in unfitting:
        with pytest.raises(TaskArgumentsError, match="cannot be called with these arguments"):
            task(*args)


class TestOptions:
    """The options of a call are separate from its arguments."""

    def test_they_reach_the_server(self, broker, hello):
        stats = broker.job(hello.options(delay=60, priority=10, ttr=7.5)("world").id)
        assert (stats["state"], stats["delay"], stats["pri"], stats["ttr"]) == ("delayed", 60, 10, 8)
        assert broker.job(hello.options(delay=timedelta(hours=1))("x").id)["delay"] == 3600
        assert (
            86_390 <= broker.job(hello.options(delay=datetime.now(UTC) + timedelta(days=1))("x").id)["delay"] <= 86_400
        )

    def test_they_never_collide_with_the_tasks_own_parameters(self, broker, backend):
        @backend.task(QUEUE)
        def wait(delay, *, priority=0, ttr=None): ...

        job = wait.options(delay=5)(delay=7, priority="high", ttr=1)
        assert json.loads(broker.peek(job.id))["kwargs"] == {"delay": 7, "priority": "high", "ttr": 1}
        assert broker.job(job.id)["delay"] == 5

    def test_the_decorators_are_the_defaults(self, broker, backend):
        @backend.task(QUEUE, delay=30, priority=5, ttr=60)
        def later(n): ...

        def put(job):
            stats = broker.job(job.id)
            return stats["delay"], stats["pri"], stats["ttr"]

        assert put(later(1)) == (30, 5, 60)
        assert put(later.options(priority=0)(1)) == (30, 0, 60)
        assert put(later.options(delay=0)(1)) == (0, 5, 60)
        assert put(later.map([1])[0]) == (30, 5, 60)
        assert put(later.options(ttr=9).map([1])[0]) == (30, 5, 9)

    def test_a_message_has_them_too(self, broker, backend):
        stats = broker.job(backend.send("com.external/other", {}, delay=3, priority=1, ttr=5).id)
        assert (stats["delay"], stats["pri"], stats["ttr"]) == (3, 1, 5)
        [job] = backend.send_many("com.external/other", [{}], delay=4)
        assert broker.job(job.id)["delay"] == 4

    def test_an_invalid_option_is_an_error_where_it_is_set(self, backend, hello):
        with pytest.raises(OptionError, match="priority is -1"):
            hello.options(priority=-1)
        with pytest.raises(OptionError, match="delay is 'x'"):
            backend.task(QUEUE, delay="x")
        with pytest.raises(ConfigError, match=r"retry is 5; expected a Retry\(...\), for example Retry\(max_"):
            backend.task(QUEUE, retry=5)
        with pytest.raises(ConfigError, match="retry is 5"):
            backend.receiver(QUEUE, retry=5)


class TestJob:
    """The object that a call returns."""

    def test_it_returns_its_state(self, broker, hello):
        job = hello("x")
        assert job.state() is JobState.READY
        assert str(job.state()) == "ready"
        with broker.client(QUEUE) as client:
            reserved = client.reserve()
            assert job.state() is JobState.RESERVED
            client.bury(reserved)
            assert job.state() is JobState.BURIED
            client.delete(reserved)
        assert job.state() is JobState.DONE
        assert hello.options(delay=9)("x").state() is JobState.DELAYED

    def test_cancel_deletes_a_job_that_no_worker_holds(self, broker, backend, hello):
        for job in (hello("x"), hello.options(delay=9)("x"), hello.map(["x"])[0], backend.send("q", "x")):
            assert job.cancel() is True
            assert job.state() is JobState.DONE
            assert job.cancel() is False
        job = hello("x")
        with broker.client(QUEUE) as client:
            client.reserve()
            assert job.cancel() is False
            assert job.state() is JobState.RESERVED

    def test_a_job_with_the_same_id_after_a_restart_is_another_one(self, broker, backend, hello):
        old, old_of_many, foreign = hello("x"), hello.map(["y"])[0], backend.send("a", 1)
        broker.stop()
        broker.start()
        hello("new"), hello(old.uid), backend.send("b", 1)
        for job in (old, old_of_many, foreign):
            assert job.state() is JobState.DONE
            assert job.cancel() is False
        assert broker.jobs() == 3

    @pytest.mark.parametrize(
        "use",
        [
            "bool(job)",
            "not job",
            "job + 1",
            "1 - job",
            "-job",
            "job < 5",
            "job >= job",
            "job and 1",
            "round(job)",
            "list(job)",
            "int(job)",
            "float(job)",
            "len(job)",
            "sum(job)",
            "job['x']",
            "'x' in job",
            "job % 2",
            "2 ** job",
        ],
    )
    def test_it_is_not_mistaken_for_the_tasks_value(self, hello, use):
        job = hello("x")
        with pytest.raises(TypeError, match=r"is a scheduled job, .* the task has not run yet"):
            eval(use)  # noqa: S307  # ours
        assert job is not None

    def test_a_job_made_by_hand_has_no_server(self):
        with pytest.raises(TypeError, match="was not scheduled by this process"):
            Job("q", 1).state()


class TestBulk:
    """Many at once: errors are reported by index, and the other items are scheduled."""

    def test_invalid_items_are_left_out_and_the_others_are_scheduled(self, broker, hello):
        items = [str(n) for n in range(1200)]
        items[3], items[700], items[701] = object(), "x" * 70_000, "y" * 70_000
        with pytest.raises(BulkError) as caught:
            hello.map(items)
        error = caught.value
        assert list(error.refused) == [range(3, 4), range(700, 702)]
        assert isinstance(error.reasons[3], MessageEncodeError)
        assert isinstance(error.reasons[701], JobTooBigError)
        assert (error.unknown, error.unsent_from) == ([], None)
        assert list(error.jobs) == [n for n in range(1200) if n not in (3, 700, 701)]
        assert 3 not in error.jobs
        assert json.loads(broker.peek(error.jobs[702].id))["args"] == ["702"]
        assert broker.count(QUEUE, "ready") == len(error.jobs) == 1197
        assert str(error).startswith(
            "accepted: 0 to 2, 4 to 699, 702 to 1199; refused: index 3, 700 to 701, at index 3 "
        )
        hello("next")
        assert broker.count(QUEUE, "ready") == 1198

    def test_arguments_that_do_not_fit_are_reported_too(self, hello):
        with pytest.raises(
            BulkError, match=r"refused: 0 to 1, at index 0 because hello\(target, \*, loud=False\) cannot"
        ):
            hello.map([1, 2], [3, 4])

    def test_messages_of_other_systems_go_the_same_way(self, broker, backend):
        jobs = backend.send_many("com.external/other", ({"n": n} for n in range(1001)))
        assert broker.peek(jobs[-1].id) == b'{"n":1000}'
        assert len(jobs) == broker.count("com.external/other", "ready") == 1001
        with pytest.raises(BulkError, match="refused: index 1, at index 1 because the message for 'q' cannot be sent"):
            backend.send_many("q", [1, {2}, 3])
        assert broker.count("q", "ready") == 2

    def test_an_error_of_the_iterable_itself_reports_how_far_it_got(self, broker, hello):
        def items():
            yield from map(str, range(700))
            raise RuntimeError("no more")

        with pytest.raises(RuntimeError, match="no more") as caught:
            hello.map(items())
        assert caught.value.__notes__ == ["of the items before it: accepted: 0 to 499"]
        assert broker.count(QUEUE, "ready") == 500

    def test_a_connection_that_breaks_in_the_middle_reports_the_unknown_jobs(self, broker):
        proxy = Proxy(broker.port, lambda: 10_000)  # bytes of replies
        app = make_app(broker)
        app.config["BACKEND_CONNECTION_URI"] = proxy.uri
        backend = Backend(app)
        with pytest.raises(BulkError) as caught:
            backend.send_many("q", iter(range(100_000)))
        proxy.close()
        error = caught.value
        accepted, open_, unsent = len(error.jobs), error.unknown, error.unsent_from
        assert open_ == [range(accepted, unsent)]
        assert accepted > 500
        assert unsent % 500 == 0
        assert all(broker.peek(error.jobs[n].id) == b"%d" % n for n in range(0, accepted, 50))
        assert accepted <= broker.count("q", "ready") <= unsent
        assert isinstance(error.__cause__, BrokerConnectionError)

    @pytest.mark.parametrize(
        "number", [20_000, pytest.param(1_000_000, marks=[pytest.mark.soak, pytest.mark.timeout(300)])]
    )
    def test_memory_does_not_grow_with_the_number(self, hello, number):
        hello.map(map(str, range(2000)))
        tracemalloc.start()
        jobs = hello.map(map(str, range(number)))
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 1_000_000
        assert jobs[number - 1].id == jobs[0].id + number - 1
        assert [job.id for job in jobs[1:3]] == [jobs[1].id, jobs[2].id]
        with pytest.raises(IndexError, match=f"there are {number} jobs"):
            jobs[number]


class TestRefusals:
    """Bad calls raise in the caller, and put no job."""

    @pytest.fixture(autouse=True)
    def _puts_nothing(self, broker):
        yield
        with broker.client() as client:
            assert client.stats()["total-jobs"] == 0

    @pytest.mark.parametrize(
        ("args", "kwargs", "reason"),
        [
            ((), {}, r"hello\(target, \*, loud=False\) cannot be called with these arguments: missing .*'target'"),
            (("a", "b"), {}, "too many positional arguments"),
            (("a",), {"louder": True}, "unexpected keyword argument 'louder'"),
        ],
    )
    def test_arguments_that_do_not_fit_the_signature(self, hello, args, kwargs, reason):
        with pytest.raises(TaskArgumentsError, match=reason):
            hello(*args, **kwargs)

    def test_an_argument_that_json_cannot_carry_is_named(self, hello):
        with pytest.raises(MessageEncodeError, match=r"argument 'target' of hello is <object .* pass plain data"):
            hello(object())
        with pytest.raises(MessageEncodeError, match="argument 'loud' of hello is nan"):
            hello("x", loud=float("nan"))

    def test_a_message_that_json_cannot_carry(self, backend):
        with pytest.raises(MessageEncodeError, match=r"the message for 'q' cannot be sent as JSON: .*set"):
            backend.send("q", {1, 2})

    def test_a_body_over_the_servers_limit_reports_the_limit(self, hello):
        with pytest.raises(JobTooBigError, match=r"the job has 70\d\d\d bytes, .* takes at most 65535"):
            hello("x" * 70_000)

    @pytest.mark.parametrize("queue", ["a b", "a\r\nput 0 0 1 1\r\nx\r\n", "q" * 201])
    def test_a_wrong_queue_name(self, backend, queue):
        for register in (backend.task, backend.receiver, backend.before_first_task):
            with pytest.raises(QueueNameError):
                register(queue)(lambda: None)
        with pytest.raises(QueueNameError):
            backend.send(queue, {})

    def test_a_server_in_drain_mode(self, broker, hello):
        broker.process.send_signal(10)  # SIGUSR1, see beanstalkd(1)
        wait_until(lambda: self._drains(broker), "drain mode")
        with pytest.raises(BrokerError, match="drain mode"):
            hello("x")
        with pytest.raises(
            BulkError, match=r"accepted: none; refused: 0 to 499, at index 0 because .* drain mode .*; not sent"
        ):
            hello.map(str(n) for n in range(1000))

    @staticmethod
    def _drains(broker) -> bool:
        with broker.client() as client:
            return client.stats()["draining"] in (True, "true")


class TestRegistration:
    def test_one_endpoint_twice(self, backend, hello):
        with pytest.raises(RegistrationError, match="already has a task 'hello'"):
            backend.task(QUEUE)(hello.function)
        backend.task("another")(hello.function)

    def test_tasks_and_a_receiver(self, backend, hello):
        with pytest.raises(RegistrationError, match="either tasks or one receiver"):
            backend.receiver(QUEUE)(print)
        backend.receiver("inbox")(print)
        with pytest.raises(RegistrationError, match="has a receiver"):
            backend.task("inbox")(print)
        with pytest.raises(RegistrationError, match="a receiver"):
            backend.receiver("inbox")(print)

    def test_one_app_twice(self, backend):
        with pytest.raises(RegistrationError, match="already has a Backend"):
            backend.init_app(backend.app)
        with pytest.raises(RegistrationError, match="already has a Backend"):
            Backend(backend.app)


class TestApps:
    """Several apps in one process, each with its own broker."""

    def test_the_current_apps_broker_is_used(self, broker):
        other = Beanstalkd()
        try:
            apps = {server: make_app(server, f"app{server.port}") for server in (broker, other)}
            backend = Backend()
            task = backend.task(QUEUE)(lambda: None)
            for app in apps.values():
                backend.init_app(app)
            for server, count in ((broker, 1), (other, 2)):
                with apps[server].app_context():
                    for _ in range(count):
                        task()
            assert (broker.count(QUEUE, "ready"), other.count(QUEUE, "ready")) == (1, 2)
            with pytest.raises(RegistrationError, match="no app context is active"):
                task()
        finally:
            other.stop()

    def test_a_factory_works_without_a_context_while_it_has_made_one_app(self, broker):
        backend = Backend()
        task = backend.task(QUEUE)(lambda: None)
        with pytest.raises(RegistrationError, match="this Backend has no app"):
            task()
        app = make_app(broker)
        backend.init_app(app)
        task()
        assert broker.count(QUEUE, "ready") == 1
        with Flask("stranger").app_context(), pytest.raises(RegistrationError, match="'stranger' is not initialised"):
            task()

    def test_a_deleted_app_leaves_nothing_behind(self, broker):
        backend = Backend()
        app = make_app(broker)
        backend.init_app(app)
        del app
        import gc

        gc.collect()
        assert not list(backend._producers)


class TestConnections:
    def test_each_thread_has_its_own(self, broker, hello):
        barrier, errors = threading.Barrier(8), []

        def schedule():
            try:
                barrier.wait()
                for _ in range(50):
                    hello("x")
                barrier.wait()
            except Exception as error:
                errors.append(error)

        threads = [threading.Thread(target=schedule) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not errors
        assert broker.count(QUEUE, "ready") == 400
        # and each ends with its thread
        wait_until(lambda: self._connections(broker) == 1, "the threads' connections are closed")

    def test_a_forked_process_opens_its_own(self, broker, hello):
        """As in a preloading gunicorn: the master has used the connection, its workers inherit it."""
        hello("parent")
        children = []
        for _ in range(3):
            pid = os.fork()
            if pid == 0:
                status = 1
                try:
                    for _ in range(100):
                        hello("child")
                    status = 0
                finally:
                    os._exit(status)
            children.append(pid)
        for _ in range(100):
            hello("parent")
        assert [os.waitpid(pid, 0)[1] for pid in children] == [0, 0, 0]
        assert broker.count(QUEUE, "ready") == 401

    def test_a_restarted_broker_is_found_again(self, durable_broker):
        app = make_app(durable_broker)
        task = Backend(app).task(QUEUE)(lambda: None)
        for _ in range(3):
            task()
            task.map([[]] * 0)
            durable_broker.kill()
            durable_broker.start()
        task()
        assert durable_broker.count(QUEUE, "ready") == 4

    def test_an_unreachable_broker_is_an_error_that_names_the_address(self, broker, hello):
        hello("x")
        broker.kill()
        start = time.monotonic()
        with pytest.raises(BrokerConnectionError, match=rf"cannot connect .* btq://127.0.0.1:{broker.port}: .*refused"):
            hello("x")
        assert time.monotonic() - start < 5
        broker.start()
        hello("x")

    def test_a_frozen_broker_is_an_error_within_the_timeout(self, broker):
        app = make_app(broker, BACKEND_TIMEOUT=0.3)
        task = Backend(app).task(QUEUE)(lambda: None)
        task()
        broker.freeze()
        start = time.monotonic()
        for _ in range(2):  # on the open connection, and on a new one
            with pytest.raises(BrokerConnectionError, match=r"no answer within 0\.3 s"):
                task()
        assert time.monotonic() - start < 4
        broker.thaw()
        task()

    def test_a_broker_that_dies_in_the_middle_of_a_reply_is_an_error(self):
        """The server answers half a line and closes: greenstalk asserts, and the package translates the error."""
        for reply in (b"INSER", b"INSERTED 1", b"\r\n", b"NONSENSE 7\r\n", b""):
            for put in (
                lambda backend: backend.send("default", 1),
                lambda backend: backend.send_many("default", [1, 2]),
            ):
                with _half_a_server(reply) as port:
                    app = Flask("app")
                    app.config["BACKEND_CONNECTION_URI"] = f"btq://127.0.0.1:{port}"
                    backend = Backend(app)
                    with pytest.raises(
                        (BrokerConnectionError, BulkError), match=r"lost the connection|answered a put with"
                    ):
                        put(backend)

    # The exception may strike while Python itself cleans up, where it can only be reported.
    @pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
    def test_an_exception_in_the_middle_of_a_command_never_shifts_replies(self, broker, hello):
        """As when a web server's timeout raises in a handler while the reply is in transit."""
        import signal

        class Interruption(Exception):  # noqa: N818
            pass

        is_armed = False

        def interrupt(_number, _frame):
            if is_armed:
                raise Interruption

        old = signal.signal(signal.SIGALRM, interrupt)
        try:
            interrupted = 0
            for n in range(300):
                try:
                    is_armed = True
                    signal.setitimer(signal.ITIMER_REAL, 0.00002 + n % 100 * 0.000003)
                    hello(n)
                    is_armed = False
                except (Interruption, BrokerConnectionError):
                    is_armed = False
                    interrupted += 1
                signal.setitimer(signal.ITIMER_REAL, 0)
                job = hello("check")
                assert json.loads(broker.peek(job.id))["args"] == ["check"]
            assert interrupted
        finally:
            signal.signal(signal.SIGALRM, old)

    @staticmethod
    def _connections(broker) -> int:
        with broker.client() as client:
            return client.stats()["current-connections"]


class _half_a_server:  # noqa: N801
    """Accept one connection as Beanstalkd does, read a command, answer with ``reply`` and close."""

    def __init__(self, reply: bytes) -> None:
        self._reply = reply
        self._socket = socket.create_server(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._serve)

    def _serve(self) -> None:
        connection, _ = self._socket.accept()
        with connection:
            connection.recv(4096)
            connection.sendall(b"WATCHING 2\r\nWATCHING 1\r\n")
            connection.recv(4096)
            connection.sendall(self._reply)

    def __enter__(self) -> int:
        self._thread.start()
        return self._socket.getsockname()[1]

    def __exit__(self, *_: object) -> None:
        self._thread.join()
        self._socket.close()


def test_importing_the_package_imports_neither_click_nor_psutil_nor_flask_script():
    code = (
        "import sys, flask_backend; assert not {'psutil', 'flask_script', 'flask_script_ng', 'flask_backend.cli', "
        "'flask_backend.supervisor'} & set(sys.modules), sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
