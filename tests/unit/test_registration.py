"""Callables that can be a task, a receiver or a hook, and those refused at their definition."""

from __future__ import annotations

import functools
import importlib
import inspect
import sys

import pytest
from flask import Flask

from flask_backend import Backend, QueueNameError, RegistrationError, TaskArgumentsError, testing
from flask_backend.cli.commands.call import find_handler
from flask_backend.functions import signature_of
from flask_backend.operations.compatibility import Fault, check_compatibility
from flask_backend.registry import Handler, Handlers

QUEUE = "com.example/default"


class Example:
    def __init__(self) -> None:
        self.app = Flask("example")
        self.app.config["BACKEND_CONNECTION_URI"] = "memory://"
        self.backend = Backend(self.app)
        self.ran: list = []

    def drain(self) -> list:
        testing.drain(self.app)
        return self.ran


@pytest.fixture
def example():
    return Example()


@pytest.fixture
def backend(example):
    return example.backend


def with_session(function):
    """Give a function an argument that its caller does not pass."""

    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        return function("session", *args, **kwargs)

    return wrapper


def with_user(function):
    """Take an argument that the function does not have."""

    @functools.wraps(function)
    def wrapper(*args, as_user=None, **kwargs):
        return function(*args, **kwargs), as_user

    return wrapper


def strictly(function):
    """Have a signature independent of the function's."""

    @functools.wraps(function)
    def wrapper(number):
        return function("session", number)

    return wrapper


class TestDecoratedFunctions:
    """The signature of the decorated callable is the one that counts."""

    def test_a_decorator_may_give_arguments(self, example, backend):
        @backend.task(QUEUE)
        @with_session
        def report(session, number):
            example.ran.append((session, number))

        report(1)
        report(number=2)
        report.map([3])
        assert example.drain() == [("session", 1), ("session", 2), ("session", 3)]

    def test_a_decorator_may_take_arguments(self, example, backend):
        @backend.task(QUEUE)
        @with_user
        def audit(number):
            example.ran.append(number)

        audit(1, as_user=2)
        testing.assert_scheduled(audit, 1, as_user=2)
        assert example.drain() == [1]

    def test_a_call_is_checked_against_the_decorators_own_signature(self, example, backend):
        @backend.task(QUEUE)
        @strictly
        def report(session, number): ...

        report(1)
        report(number=1)
        testing.assert_scheduled(report, number=1)
        with pytest.raises(TaskArgumentsError, match=r"report\(number\) cannot be called"):
            report("session", 1)
        assert str(inspect.signature(report)) == "(number)"

    def test_commands_check_against_the_decorators_signature_too(self):
        tasks = Handlers("q", tasks={"report": Handler("report", strictly(lambda session, number: None))})
        assert check_compatibility(tasks, b'{"endpoint": "report", "args": [1]}') is None
        assert check_compatibility(tasks, b'{"endpoint": "report", "args": ["s", 1]}').fault is Fault.BAD_ARGUMENTS

    def test_a_cache_of_c_code_has_the_signature_of_its_function(self, backend):
        @backend.task(QUEUE)
        @functools.lru_cache
        def cached(number): ...

        assert cached(1).id
        with pytest.raises(TaskArgumentsError, match=r"cached\(number\)"):
            cached()

    def test_a_callable_without_a_signature_takes_all_arguments(self):
        assert str(signature_of(max)) == "(*args, **kwargs)"


class Mailer:
    def __init__(self, ran: list | None = None) -> None:
        self.ran = ran if ran is not None else []
        self.queue = self.map = "an attribute of its own"

    def __call__(self, to):
        self.ran.append(("called", to))

    def send(self, to):
        self.ran.append(("sent", to))

    @staticmethod
    def static(to): ...

    @classmethod
    def of_class(cls, to): ...


class TestCallables:
    @pytest.mark.parametrize("function", [functools.partial(print, 1), Mailer(), functools.partial(Mailer())])
    def test_without_a_name_an_endpoint_is_required(self, backend, function):
        with pytest.raises(RegistrationError, match=rf'has no name .* backend.task\(\'{QUEUE}\', endpoint="..."\)'):
            backend.task(QUEUE)(function)
        assert backend.queues == {}

    def test_with_an_endpoint_they_work(self, example, backend):
        mailer = Mailer(example.ran)
        tasks = [
            backend.task(QUEUE, "partial")(functools.partial(mailer.send, "Ada")),
            backend.task(QUEUE, "object")(mailer),
            backend.task(QUEUE)(mailer.send),
            backend.task(QUEUE)(Mailer.static),
            backend.task(QUEUE)(Mailer.of_class),
        ]
        assert [task.__name__ for task in tasks] == ["partial", "object", "send", "static", "of_class"]
        tasks[0]()
        tasks[1].map(["Alan"])
        tasks[2]("Grace")
        assert example.drain() == [("sent", "Ada"), ("called", "Alan"), ("sent", "Grace")]
        with pytest.raises(TaskArgumentsError, match=r"object\(to\)"):
            tasks[1]()
        with pytest.raises(TaskArgumentsError, match=r"partial\(\)"):
            tasks[0]("too many")

    @pytest.mark.parametrize("function", [print, len, max, lambda: None, [].append])
    def test_built_ins_and_lambdas_work(self, backend, function):
        assert backend.task(QUEUE)(function).endpoint == function.__name__

    @pytest.mark.parametrize("function", [None, 5, "hello", object()])
    def test_a_value_that_cannot_be_called_is_refused(self, backend, function):
        for register in (backend.task, backend.receiver, backend.before_first_task):
            with pytest.raises(RegistrationError, match=r"@backend\.\w+\('.*'\) expects a function, got "):
                register(QUEUE)(function)
        assert backend.queues == {}

    def test_a_class_is_refused(self, backend):
        for register in (backend.task, backend.receiver, backend.before_first_task):
            with pytest.raises(RegistrationError, match="Mailer is a class, and a worker would only create an"):
                register(QUEUE)(Mailer)

    def test_a_task_cannot_be_the_function_of_another_task(self, backend):
        hello = backend.task(QUEUE, "hello")(lambda: None)
        with pytest.raises(RegistrationError, match=r"<Task hello .*> is already a task, .*\.function\)"):
            backend.task("another")(hello)
        backend.task("another")(hello.function)

    @pytest.mark.parametrize("endpoint", [5, "", print, "a\nb", "caf\udce9"])
    def test_an_endpoint_that_cannot_be_a_name_is_refused(self, backend, endpoint):
        with pytest.raises(RegistrationError, match=r"endpoint is .*; expected a name"):
            backend.task(QUEUE, endpoint)


class TestMethods:
    """``obj.method(x)`` cannot take its object to a worker."""

    def test_a_method_is_refused_in_its_class(self, backend):
        for register in (backend.task, backend.receiver, backend.before_first_task):
            with pytest.raises(
                RegistrationError, match=r"Sender.send is a method, .* write @staticmethod between @backend\.\w+\("
            ):

                class Sender:
                    @register(QUEUE)
                    def send(self, to): ...

        assert backend.queues == {}

    def test_a_decorated_method_is_refused(self, backend):
        def ours(function):
            return backend.task(QUEUE)(with_session(function))

        with pytest.raises(RegistrationError, match=r"Sender.Inner.send is a method"):

            class Sender:
                class Inner:
                    @ours
                    def send(self, to): ...

    def test_a_method_is_refused_outside_its_class(self, backend):
        with pytest.raises(RegistrationError, match=r"Mailer\.send is a method"):
            Mailer.send = backend.task(QUEUE)(Mailer.send)

    def test_a_classmethod_is_refused(self, backend):
        with pytest.raises(RegistrationError, match=r"Sender\.send is a method"):

            class Sender:
                @backend.task(QUEUE)
                @classmethod
                def send(cls, to): ...

    def test_a_static_method_works(self, example, backend):
        class Sender:
            @backend.task(QUEUE)
            @staticmethod
            def send(to):
                example.ran.append(to)

            @staticmethod
            @backend.task(QUEUE)
            def report(to):
                example.ran.append(to)

            @backend.receiver("inbox")
            @staticmethod
            def inbox(message):
                example.ran.append(message)

            @backend.before_first_task("inbox")
            @staticmethod
            def connect():
                example.ran.append("connected")

        Sender.send("Ada")
        Sender().send("Alan")
        Sender().report(to="Grace")
        Sender.inbox("seen by the caller")
        backend.send("inbox", "message")
        assert example.drain() == ["seen by the caller", "Ada", "Alan", "Grace", "connected", "message"]

    def test_a_class_may_be_a_namespace(self, example, backend):
        class Jobs:
            @backend.task(QUEUE)
            def report(to):  # noqa: N805  # it takes no object
                example.ran.append(to)

        Jobs.report("Ada")
        Jobs().report("Alan")
        assert example.drain() == ["Ada", "Alan"]

    def test_a_class_may_refer_to_a_task(self, example, backend):
        hello = backend.task(QUEUE, "hello")(example.ran.append)

        class Page:
            job = hello

        Page().job("Ada")
        assert example.drain() == ["Ada"]


class TestParentheses:
    """A decorator that would register nothing is refused at its definition."""

    @pytest.mark.parametrize("name", ["task", "receiver", "before_first_task"])
    @pytest.mark.parametrize("function", [lambda: None, print, Mailer, Mailer(), staticmethod(print)])
    def test_without_them(self, backend, name, function):
        with pytest.raises(
            RegistrationError, match=rf'@backend.{name} has no parentheses, .* write @backend.{name}\("QUEUE"\), for'
        ):
            getattr(backend, name)(function)

    @pytest.mark.parametrize("name", ["task", "receiver", "before_first_task"])
    def test_without_a_queue_in_them(self, backend, name):
        with pytest.raises(
            RegistrationError, match=rf'@backend.{name} does not name a queue: write @backend.{name}\("'
        ):
            getattr(backend, name)()

    @pytest.mark.parametrize("name", ["task", "receiver", "before_first_task"])
    @pytest.mark.parametrize("queue", [5, "a b", classmethod(print)])
    def test_with_a_wrong_value_in_them(self, backend, name, queue):
        with pytest.raises(QueueNameError):
            getattr(backend, name)(queue)

    def test_the_queue_may_be_named(self, backend):
        assert backend.task(queue=QUEUE, endpoint="x")(print).queue == QUEUE
        assert inspect.signature(backend.receiver).parameters.keys() >= {"queue", "time_limit", "retry"}


class TestReceiversAndHooks:
    def test_they_need_no_name(self, example, backend):
        backend.receiver("inbox")(functools.partial(example.ran.append))
        backend.before_first_task("inbox")(functools.partial(example.ran.append, "hook"))
        backend.receiver("object")(Mailer(example.ran))
        backend.send("inbox", 1)
        backend.send("object", 2)
        assert example.drain() == ["hook", 1, ("called", 2)]
        assert {name: handlers.names for name, handlers in backend.queues.items()} == {
            "inbox": ["append"],
            "object": ["Mailer"],
        }
        assert find_handler(backend, "Mailer", None)[0].queue == "object"

    @pytest.mark.parametrize("function", [lambda: None, lambda a, b: None, lambda *, message: None])
    def test_a_receiver_takes_one_message(self, backend, function):
        with pytest.raises(RegistrationError, match=r"workers call <lambda>\(message\), which .* does not take"):
            backend.receiver("inbox")(function)

    def test_a_hook_takes_no_argument(self, backend):
        with pytest.raises(RegistrationError, match=r"workers call connect\(\), which connect\(app\) does not take"):

            @backend.before_first_task(QUEUE)
            def connect(app): ...


class TestTwice:
    """The same lines register a task again: the error names the cause."""

    def test_a_factory_that_is_called_twice(self, backend):
        def create_app():
            @backend.task(QUEUE)
            @with_session
            def confirm(session, number): ...

        create_app()
        with pytest.raises(RegistrationError, match=r"task 'confirm': the same lines .* ran twice.*factory"):
            create_app()

    def test_a_module_that_is_reloaded_or_has_two_names(self, backend, tmp_path, monkeypatch):
        (tmp_path / "pack").mkdir()
        (tmp_path / "pack" / "twice.py").write_text("import sys\n@sys.backend.task('q')\ndef f(): ...\n")
        monkeypatch.setattr(sys, "backend", backend, raising=False)
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.syspath_prepend(tmp_path / "pack")
        module = importlib.import_module("twice")
        with pytest.raises(RegistrationError, match=r"one file was imported under two names, twice and pack\.twice:"):
            importlib.import_module("pack.twice")
        with pytest.raises(RegistrationError, match=r"a module with tasks cannot be reloaded: restart the process"):
            importlib.reload(module)
        del sys.modules["twice"]

    def test_another_task_of_that_name_is_only_asked_for_another_name(self, backend):
        backend.task(QUEUE, "f")(lambda: None)
        with pytest.raises(RegistrationError, match=r"already has a task 'f': give one of them another name"):
            backend.task(QUEUE, "f")(print)
