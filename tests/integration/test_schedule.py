"""Scheduling and sending: what a web process does, against a real server."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time

import pytest
from flask import Flask
from support.beanstalkd import Beanstalkd
from support.waiting import wait_until

from flask_backend import (
    Backend,
    BrokerConnectionError,
    BrokerError,
    Job,
    JobTooBigError,
    MessageEncodeError,
    QueueNameError,
    RegistrationError,
    TaskArgumentsError,
)

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
    assert job == Job(QUEUE, job.id)
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


def test_send_puts_the_json_and_nothing_else(broker, backend):
    job = backend.send("com.external/other", {"any": ["json", 1, None]})
    assert broker.peek(job.id) == b'{"any":["json",1,null]}'


def test_nothing_connects_before_first_use(broker):
    app = make_app(broker)
    backend = Backend(app)
    backend.task(QUEUE)(len)
    with broker.client() as client:
        assert client.stats()["current-connections"] == 1  # the one that asks


def test_map_schedules_in_order_as_the_builtin_map_would(broker, backend, hello):
    jobs = hello.map(str(n) for n in range(1201))
    assert [json.loads(broker.peek(job.id))["args"] for job in jobs[::400]] == [["0"], ["400"], ["800"], ["1200"]]
    assert broker.count(QUEUE, "ready") == 1201

    @backend.task("pairs")
    def pair(a, b): ...

    _, second = pair.map([1, 2], ["x", "y"])
    assert json.loads(broker.peek(second.id))["args"] == [2, "y"]
    assert hello.map([]) == []


def test_map_and_single_calls_share_a_connection_without_mixing_replies(broker, hello):
    for n in range(20):
        ids = [job.id for job in hello.map(range(n * 30))]
        single = hello("single").id
        assert ids == list(range(single - len(ids), single))


def test_a_refused_item_of_a_map_is_an_error_that_names_it(broker, hello):
    with pytest.raises(MessageEncodeError) as caught:
        hello.map(["a", object(), "c"])
    assert "0 items were accepted; index 1 is at fault" in caught.value.__notes__[0]
    assert broker.is_empty(QUEUE)
    with pytest.raises(JobTooBigError) as caught:
        hello.map(["a", "x" * 70_000, "c"])
    assert "refused: index [1]; accepted: the others before 3" in caught.value.__notes__[0]
    assert broker.count(QUEUE, "ready") == 2
    hello("next")
    assert broker.count(QUEUE, "ready") == 3


class TestRefusals:
    """Bad calls raise in the caller, and put nothing."""

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

    def test_a_body_over_the_servers_limit_tells_the_limit(self, hello):
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
        with pytest.raises(BrokerError, match="drain mode"):
            hello.map(["x"])

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

    def test_an_app_that_is_gone_leaves_nothing_behind(self, broker):
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
        # and they end with their threads
        wait_until(lambda: self._connections(broker) == 1, "the threads' connections are closed")

    def test_a_forked_process_opens_its_own(self, broker, hello):
        """What a preloading gunicorn does: the master has used the connection, its workers inherit it."""
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

    def test_a_broker_that_is_away_is_an_error_that_tells_the_address(self, broker, hello):
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
        for _ in range(2):  # on the connection that was open, and on a new one
            with pytest.raises(BrokerConnectionError, match=r"no answer within 0\.3 s"):
                task()
        assert time.monotonic() - start < 4
        broker.thaw()
        task()

    def test_a_broker_that_dies_in_the_middle_of_a_reply_is_an_error(self):
        """A server that answers half a line and closes: greenstalk asserts, we translate."""
        for reply in (b"INSER", b"INSERTED 1", b"\r\n", b"NONSENSE 7\r\n", b""):
            for put in (
                lambda backend: backend.send("default", 1),
                lambda backend: backend.put_many("default", [b"1", b"2"]),
            ):
                with _half_a_server(reply) as port:
                    app = Flask("app")
                    app.config["BACKEND_CONNECTION_URI"] = f"btq://127.0.0.1:{port}"
                    backend = Backend(app)
                    with pytest.raises(BrokerConnectionError, match=r"lost the connection|answered a put with"):
                        put(backend)

    # The exception may strike while Python itself tidies up, where it can only be reported.
    @pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
    def test_an_exception_in_the_middle_of_a_command_never_shifts_replies(self, broker, hello):
        """As when a web server's timeout raises in a handler while the reply is on its way."""
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
    """Accepts one connection, reads something, answers with ``reply`` and closes."""

    def __init__(self, reply: bytes) -> None:
        self._reply = reply
        self._socket = socket.create_server(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._serve)

    def _serve(self) -> None:
        connection, _ = self._socket.accept()
        with connection:
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
