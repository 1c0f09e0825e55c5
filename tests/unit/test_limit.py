"""Limits as values, and where they may be registered."""

from __future__ import annotations

import pytest
from flask import Flask

from flask_backend import Backend, ConfigError, Limit, RegistrationError, Retry, testing
from flask_backend.broker.limits import registry_tube
from flask_backend.names import check_queue_name


def work() -> None:
    """Do nothing."""


def more() -> None:
    """Do nothing either."""


def inbox(message: object) -> None:
    """Do nothing with a message."""


@pytest.fixture
def backend():
    return Backend()


def test_it_is_shown_as_it_is_written():
    assert str(Limit("gpu", 2)) == 'Limit("gpu", 2)'
    assert str(Limit("mail/gun", 3, per=1)) == 'Limit("mail/gun", 3, per=1)'


def test_limits_are_equal_whenever_they_were_loaded():
    one, other = Limit("gpu", 2), Limit("gpu", 2)
    assert one.loaded_at <= other.loaded_at
    assert one == other != Limit("gpu", 2, per=1)
    assert len({one, other}) == 1


@pytest.mark.parametrize("n", [0, -1, 1.0, True, None, "2", 1001, 10**30])
def test_n_is_a_whole_number_from_1_to_1000(n):
    with pytest.raises(ConfigError, match=r"limit 'gpu': n is .*; expected a whole number from 1 to 1000"):
        Limit("gpu", n)


@pytest.mark.parametrize("per", [0, -1, 0.5, 1.0, True, "1", 2**32])
def test_per_is_whole_seconds(per):
    with pytest.raises(ConfigError, match=r"limit 'gpu': per is .*; expected whole seconds, from 1"):
        Limit("gpu", 1, per=per)


@pytest.mark.parametrize("name", ["", "a b", "ü", "x\r\ndelete 1", "a;b", "gpu;registry", "x" * 172, None, 7, b"gpu"])
def test_a_name_must_fit_into_that_of_a_tube(name):
    with pytest.raises(ConfigError, match="cannot be the name of a limit: use 1 to 171 letters"):
        Limit(name, 1)


@pytest.mark.parametrize("name", ["gpu", "-x", "com.example/gpu_(1)+$", "x" * 171])
def test_every_name_that_is_accepted_makes_valid_tubes(name):
    assert check_queue_name(registry_tube(Limit(name, 1).name)).endswith(f"/{name};registry")


def test_per_is_keyword_only():
    with pytest.raises(TypeError):
        Limit("gpu", 2, 1)  # type: ignore[misc]


@pytest.mark.parametrize("limit", ["gpu", 2, ("gpu", 2), object])
def test_another_object_is_not_a_limit(backend, limit):
    for decorator in (backend.task, backend.receiver):
        with pytest.raises(ConfigError, match=r'expected a Limit\(...\), for example Limit\("gpu", 2\)'):
            decorator("q", limit=limit)


def test_all_tasks_of_a_queue_have_the_same_limit(backend):
    backend.task("q", limit=Limit("gpu", 2))(work)
    backend.task("q", limit=Limit("gpu", 2))(more)
    assert backend.queues["q"].limit == Limit("gpu", 2)


@pytest.mark.parametrize(
    ("first", "second", "said"),
    [
        (None, Limit("gpu", 2), r"'more' of 'q' has Limit\(\"gpu\", 2\), and the tasks before it have none"),
        (Limit("gpu", 2), None, r"'more' of 'q' has no limit, and the tasks before it have Limit\(\"gpu\", 2\)"),
        (Limit("gpu", 2), Limit("cpu", 2), r"have Limit\(\"gpu\", 2\)"),
        (Limit("gpu", 2), Limit("gpu", 2, per=1), r"have Limit\(\"gpu\", 2\)"),
    ],
)
def test_tasks_of_one_queue_with_different_limits_are_refused(backend, first, second, said):
    backend.task("q", limit=first)(work)
    with pytest.raises(RegistrationError, match=f"{said}.*give the limited task a queue of its own"):
        backend.task("q", limit=second)(more)
    assert list(backend.queues["q"].tasks) == ["work"]
    assert backend.queues["q"].limit == first


def test_one_limit_may_span_queues_of_tasks_and_a_receiver(backend):
    backend.task("q", limit=Limit("gpu", 2))(work)
    backend.task("r", limit=Limit("gpu", 2))(work)
    backend.receiver("s", limit=Limit("gpu", 2))(inbox)
    assert {handlers.limit for handlers in backend.queues.values()} == {Limit("gpu", 2)}


@pytest.mark.parametrize("other", [Limit("gpu", 3), Limit("gpu", 2, per=1)])
def test_one_name_with_other_numbers_is_refused(backend, other):
    backend.task("q", limit=Limit("gpu", 2))(work)
    with pytest.raises(RegistrationError, match="one name is one limit"):
        backend.task("r", limit=other)(work)
    with pytest.raises(RegistrationError, match="one name is one limit"):
        backend.receiver("s", limit=other)(inbox)
    assert list(backend.queues) == ["q"]


class InMemory:
    def __init__(self) -> None:
        self.app = Flask("example")
        self.app.config["BACKEND_CONNECTION_URI"] = "memory://"
        self.backend = Backend(self.app)
        self.memory = testing.Memory(self.app, self.backend)


@pytest.fixture
def in_memory():
    return InMemory()


def test_in_memory_so_many_start_within_the_time_of_the_broker(in_memory):
    ran: list[int] = []
    send = in_memory.backend.task("q", limit=Limit("mail", 3, per=2))(ran.append)
    in_memory.backend.receiver("inbox", limit=Limit("mail", 3, per=2))(ran.append)
    other = in_memory.backend.task("other")(ran.append)
    send.map(range(4))
    in_memory.backend.send("inbox", 4)
    other(100)
    assert len(in_memory.memory.drain()) == 4
    assert sorted(ran) == [0, 1, 2, 100]
    assert in_memory.memory.drain() == []
    in_memory.memory.move_time(1)
    assert in_memory.memory.drain() == []
    in_memory.memory.move_time(1)
    in_memory.memory.drain()
    assert sorted(ran) == [0, 1, 2, 3, 4, 100]


def test_in_memory_a_retry_takes_its_place_and_an_expired_call_none(in_memory):
    ran: list[str] = []

    @in_memory.backend.task("q", limit=Limit("mail", 1, per=10), retry=Retry(min_backoff=1, jitter=0))
    def send(text):
        ran.append(text)
        if text == "fails" and len(ran) == 1:
            raise ValueError

    send("fails")
    in_memory.memory.drain(raise_errors=False)
    send.options(expires=5)("late")
    send("last")
    in_memory.memory.move_time(9)
    assert in_memory.memory.drain() == []
    in_memory.memory.move_time(1)
    in_memory.memory.drain()
    in_memory.memory.move_time(10)
    in_memory.memory.drain()
    assert sorted(ran) == ["fails", "fails", "last"]
    in_memory.memory.clear()
    send("again")
    assert len(in_memory.memory.drain()) == 1


def test_in_memory_a_limit_on_tasks_that_run_has_no_effect_and_in_sync_no_limit_has(in_memory):
    train = in_memory.backend.task("q", limit=Limit("gpu", 1))(work)
    for _ in range(5):
        train()
    assert len(in_memory.memory.drain()) == 5
    app = Flask("sync")
    app.config["BACKEND_CONNECTION_URI"] = "sync://"
    backend = Backend(app)
    ran: list[int] = []
    backend.task("q", limit=Limit("mail", 1, per=60))(ran.append).map([1, 2])
    assert ran == [1, 2]
