from __future__ import annotations

import threading

import pytest

from flask_backend.broker import election as election_module
from flask_backend.broker.connection import Connection
from flask_backend.broker.election import election
from flask_backend.config import Address
from flask_backend.names import lock_tube

NAME = "com.example/default.schedule"


@pytest.fixture
def connect(broker):
    opened = []

    def connect():
        opened.append(Connection(Address("127.0.0.1", broker.port), 5))
        return opened[-1]

    yield connect
    for each in opened:
        each.close()


def test_one_of_many_is_elected_at_a_time(connect):
    rounds, candidates = 20, 6
    acting, most, elected = 0, 0, []
    lock, start = threading.Lock(), threading.Barrier(candidates)

    def stand(connection):
        nonlocal acting, most
        for number in range(rounds):
            start.wait()
            with election(connection, NAME) as is_elected:
                if is_elected:
                    with lock:
                        acting += 1
                        most = max(most, acting)
                        elected.append(number)
                    connection.stats()
                    with lock:
                        acting -= 1

    threads = [threading.Thread(target=stand, args=(connect(),)) for _ in range(candidates)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert most == 1
    assert set(elected) == set(range(rounds))
    assert connect().first_ready(lock_tube(NAME)) is None


def test_nobody_is_elected_beside_a_lock_until_it_is_old(connect, monkeypatch):
    connection = connect()
    left = connection.put_aside(lock_tube(NAME), b"", 0)  # by a process that was killed
    with election(connection, NAME) as is_elected:
        assert not is_elected
    monkeypatch.setattr(election_module, "MAX_LOCK_AGE_S", -1)
    with election(connection, NAME) as is_elected:
        assert is_elected
    assert connection.stats_job([left]) == []


def test_a_lock_ends_with_an_error_too(connect):
    connection = connect()

    def fail():
        with election(connection, NAME):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert connection.first_ready(lock_tube(NAME)) is None


def test_a_broken_connection_leaves_the_lock_to_its_age(connect):
    connection = connect()
    with election(connection, NAME) as is_elected:
        assert is_elected
        connection.close()
    assert connect().first_ready(lock_tube(NAME)) is not None


def test_locks_of_names_of_any_length_differ():
    names = ["q" * 190, "q" * 199 + "a", "q" * 199 + "b"]
    tubes = {lock_tube(name) for name in names}
    assert len(tubes) == 3
    assert all(len(tube) <= 200 for tube in tubes)
