"""``@backend.periodic``: what it takes, and what it refuses."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from flask import Flask

from flask_backend import Backend, ConfigError, MessageEncodeError, OptionError, RegistrationError, TaskArgumentsError
from flask_backend.message import decode
from flask_backend.periodic.when import Cron, Every


def test_it_keeps_the_task_and_registers_each_schedule(app, backend):
    @backend.periodic("@daily", timezone="Europe/Prague", name="nightly", args=[1], kwargs={"loud": True})
    @backend.periodic(every=timedelta(minutes=5), catch_up="skip", overlap=False, grace=30)
    @backend.task("q", priority=7, delay=timedelta(seconds=5), expires=60)
    def report(number=0, *, loud=False):
        return number, loud

    assert report.run(2) == (2, False)
    often, nightly = backend.periodic_of(app)["q"]
    assert (often.name, often.when, often.catch_up, often.overlap, often.grace_s) == (
        "report",
        Every(300),
        "skip",
        False,
        30,
    )
    assert (nightly.name, nightly.when, nightly.args) == ("nightly", Cron("@daily", "Europe/Prague"), (1,))
    assert (nightly.options.priority, nightly.options.delay, nightly.options.expires) == (7, 5, 60)


def test_the_zone_of_the_app_is_the_default():
    backend = Backend()

    @backend.periodic("30 2 * * *")
    @backend.task("q")
    def report(): ...

    app = Flask("here")
    app.config.update(BACKEND_CONNECTION_URI="memory://", BACKEND_TIMEZONE="Europe/Prague")
    backend.init_app(app)
    [definition] = backend.periodic_of(app)["q"]
    assert definition.when == Cron("30 2 * * *", "Europe/Prague")


@pytest.mark.parametrize("zone", ["Mars/Olympus", "", "Europe", "../UTC", "/etc/localtime", 5, "CEST\n"])
def test_another_zone_is_refused(backend, zone):
    app = Flask("here")
    app.config.update(BACKEND_CONNECTION_URI="memory://", BACKEND_TIMEZONE=zone)
    with pytest.raises(ConfigError, match=r"BACKEND_TIMEZONE is .* is not a time zone; expected .*'Europe/Prague'"):
        Backend(app)
    with pytest.raises(RegistrationError, match=r"timezone is .* is not a time zone; expected"):
        backend.periodic("@daily", timezone=zone)


def test_it_stands_above_the_task(backend):
    def plain(): ...

    with pytest.raises(RegistrationError, match=r"plain is not a task: write @backend.periodic above @backend.task"):
        backend.periodic(every=5)(plain)
    with pytest.raises(RegistrationError, match=r"5 is not a task"):
        backend.periodic(every=5)(5)
    with pytest.raises(RegistrationError, match=r"@backend.periodic has no parentheses"):
        backend.periodic(plain)


def test_a_receiver_and_the_task_of_another_backend_are_refused(backend):
    @backend.receiver("inbox")
    def inbox(message): ...

    with pytest.raises(RegistrationError, match="inbox is a receiver, whose messages come from elsewhere"):
        backend.periodic(every=5)(inbox)
    other = Backend().task("q")(lambda: None)
    with pytest.raises(RegistrationError, match="belongs to another Backend"):
        backend.periodic(every=5)(other)


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ({}, "needs either a cron expression or every="),
        ({"expression": "@daily", "every": 5}, "needs either a cron expression or every="),
        ({"every": 5, "timezone": "UTC"}, "takes no timezone"),
        ({"every": 5, "catch_up": "all"}, r"catch_up is 'all'; expected \"once\" or \"skip\""),
        ({"every": 5, "overlap": None}, "overlap is None; expected True or False"),
        ({"every": 5, "grace": -1}, "grace is -1; expected whole seconds"),
        ({"every": 5, "grace": 1.5}, "grace is 1.5; expected whole seconds"),
        ({"every": 5, "name": ""}, "name is ''; expected a name"),
        ({"every": 5, "name": "a\nb"}, "expected a name"),
        ({"every": 5, "args": "x"}, "args is 'x'; expected a list or a tuple"),
        ({"every": 5, "kwargs": []}, r"kwargs is \[\]; expected a dict"),
        ({"every": 5, "args": ["x" * 5000]}, "has a call of .* bytes, and at most 4096 are allowed: pass a key"),
    ],
)
def test_other_arguments_are_refused(backend, arguments, why):
    task = backend.task("q")(print_it)
    with pytest.raises(RegistrationError, match=why):
        backend.periodic(**arguments)(task)
    assert not backend._periodic


def print_it(*args): ...


def test_arguments_that_do_not_fit_are_refused_at_once(backend):
    @backend.task("q")
    def greet(name): ...

    with pytest.raises(TaskArgumentsError, match="greet"):
        backend.periodic(every=5)(greet)
    with pytest.raises(MessageEncodeError, match="argument 'name' of greet"):
        backend.periodic(every=5, args=[object()])(greet)


def test_a_name_is_taken_once_in_all_queues(backend):
    first = backend.periodic(every=5)(backend.task("q")(print_it))
    with pytest.raises(RegistrationError, match=r"already a periodic task 'print_it', of print_it on q: .* name="):
        backend.periodic(every=6)(first)
    with pytest.raises(RegistrationError, match="already a periodic task"):
        backend.periodic(every=6)(backend.task("r")(print_it))
    backend.periodic(every=6, name="other")(first)


def test_a_moment_is_no_option_of_a_periodic_task(backend):
    task = backend.task("q", delay=datetime(2030, 1, 1, tzinfo=UTC))(print_it)
    with pytest.raises(RegistrationError, match="one moment for all calls"):
        backend.periodic(every=5)(task)
    with pytest.raises(OptionError):
        backend.task("q", expires=-1)


def test_its_calls_pass_the_middleware_and_have_the_options_of_the_task(app, backend):
    seen = []

    @backend.schedule_middleware
    def around(call, proceed):
        call.headers["tenant"] = "t"
        seen.append((call.endpoint, call.id, proceed().queue))

    task = backend.task("q", expires=60, priority=3)(print_it)
    backend.periodic(every=60, name="minutely", args=["x"])(task)
    [definition] = backend.periodic_of(app)["q"]
    uid = definition.uid(120)
    with app.app_context():
        job = backend.schedule_slot(definition, 120, uid)
    assert seen == [("print_it", uid, "q")]
    assert job.uid == uid
    [put] = backend.producer_of(app).broker.puts.values()
    message = decode(put.body)
    assert (message.args, put.options.priority) == (["x"], 3)
    headers = message.headers
    assert (headers["id"], headers["schedule"], headers["slot"], headers["tenant"]) == (
        uid,
        "minutely",
        "1970-01-01T00:02:00Z",
        "t",
    )
    assert headers["expires"] == pytest.approx(headers["at"] + 60, abs=1)


def test_the_id_of_a_call_is_that_of_its_queue_name_and_slot(app, backend):
    backend.periodic(every=60, name="a")(backend.task("q")(print_it))
    backend.periodic(every=60, name="b")(backend.task("r")(print_it))
    [a], [b] = backend.periodic_of(app).values()
    assert a.uid(60) == a.uid(60) != a.uid(120)
    assert a.uid(60) != b.uid(60)
    assert len(a.uid(60)) == 32
