"""The tokens of a limit on a real server, their registry and its census."""

from __future__ import annotations

import random
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace

import pytest
from support.waiting import wait_until

from flask_backend.broker import election, limits
from flask_backend.broker.connection import Connection
from flask_backend.broker.limits import census, load, registry_tube
from flask_backend.config import Address
from flask_backend.limit import Limit
from flask_backend.names import limit_tube, lock_tube
from flask_backend.options import MAX_PRIORITY, PutOptions

TUBE = limit_tube("gpu")


@pytest.fixture
def connect(broker):
    opened: list[Connection] = []

    def connect(watch: str = TUBE) -> Connection:
        opened.append(connection := Connection(Address("127.0.0.1", broker.port), 5, watch=watch))
        return connection

    yield connect
    for connection in opened:
        connection.close()


def at(limit: Limit, loaded_at: float) -> Limit:
    """Return the limit as if its code had been loaded at another time."""
    object.__setattr__(limit, "loaded_at", loaded_at)
    return limit


def take_all(connection: Connection) -> list[int]:
    return [job.id for job in connection.reserve_ready(50)]


def registries(broker) -> int:
    return broker.count(registry_tube("gpu"), "ready")


def test_the_first_census_makes_the_tokens(connect, broker):
    connection = connect()
    assert load(connection, "gpu") is None
    current = census(connection, Limit("gpu", 3))
    assert (current.n, current.per, current.number) == (3, None, 1)
    assert sorted(take_all(connection)) == sorted(current.ids)
    assert census(connection, Limit("gpu", 3)) == current
    assert broker.is_empty(lock_tube(TUBE))


def test_many_at_once_make_n_tokens(connect, broker):
    connections = [connect() for _ in range(8)]
    with ThreadPoolExecutor(len(connections)) as pool:
        for number in range(10):
            name = f"at-once-{number}"
            list(pool.map(lambda connection, name=name: census(connection, Limit(name, 3)), connections))
            current = load(connections[0], name)
            assert broker.count(registry_tube(name), "ready") == 1
            tube = broker.tube(limit_tube(name))
            assert tube["current-jobs-ready"] == tube["total-jobs"] == len(current.ids) == 3


def test_a_token_that_was_deleted_is_replaced(connect, broker):
    connection = connect()
    old = census(connection, Limit("gpu", 3))
    connection.delete_each(old.ids[:2])
    new = census(connection, Limit("gpu", 3))
    assert len(set(new.ids) - set(old.ids)) == 2
    assert sorted(take_all(connection)) == sorted(new.ids)
    assert registries(broker) == 1


def test_a_buried_token_is_replaced_and_deleted(connect, broker):
    connection = connect()
    census(connection, Limit("gpu", 1))
    [token] = take_all(connection)
    connection.bury(token, 0)
    new = census(connection, Limit("gpu", 1))
    assert take_all(connection) == list(new.ids) != [token]
    assert broker.job(token) is None


def test_a_held_token_counts_until_its_reservation_has_expired_for_long(connect, monkeypatch):
    holder, connection = connect(), connect()
    monkeypatch.setattr(limits, "TOKEN_TTR_S", 1)
    old = census(connection, Limit("gpu", 1))
    take_all(holder)
    assert census(connection, Limit("gpu", 1)) == old
    assert not take_all(connection)
    monkeypatch.setattr(limits, "EXPIRED_S", -1)  # as if the server had missed the end of the TTR
    new = census(connection, Limit("gpu", 1))
    assert new.ids != old.ids
    assert take_all(connection) == list(new.ids)


def test_more_tokens_or_fewer_by_the_code_that_was_loaded_last(connect, broker):
    connection = connect()
    first, grown, shrunk = at(Limit("gpu", 2), 100), at(Limit("gpu", 4), 200), at(Limit("gpu", 1), 300)
    census(connection, first)
    assert len(census(connection, grown).ids) == 4
    assert [census(connection, each).n for each in (first, grown, first)] == [4, 4, 4]  # without flapping
    assert census(connection, first).number == 2
    assert len(census(connection, shrunk).ids) == 1
    assert broker.count(TUBE, "ready") == registries(broker) == 1
    assert census(connection, at(Limit("gpu", 4), 400)).n == 4  # loaded again


def test_a_registry_from_the_far_future_does_not_count_for_ever(connect):
    connection = connect()
    census(connection, at(Limit("gpu", 2), time.time() + 10**6))
    assert census(connection, Limit("gpu", 3)).n == 3


def test_when_the_number_shrinks_the_tokens_in_use_stay_listed(connect):
    connection, holder = connect(), connect()
    census(connection, at(Limit("gpu", 5), 100))
    held = [job.id for job in holder.reserve_ready(2)]
    current = census(connection, at(Limit("gpu", 2), 200))
    assert sorted(current.ids) == sorted(held)
    assert not take_all(connection)


def test_tokens_delayed_by_a_longer_time_are_replaced(connect):
    connection = connect()
    census(connection, at(Limit("gpu", 2, per=3600), 100))
    for token in take_all(connection):
        connection.release(token, 0, 3600)
    current = census(connection, at(Limit("gpu", 2, per=1), 200))
    assert sorted(take_all(connection)) == sorted(current.ids)


def test_what_a_dead_process_has_left_is_tidied(connect, broker):
    """It may die between any two of its commands."""
    connection = connect()
    chance = random.Random(7)
    for number in range(60):
        limit = at(Limit("gpu", chance.randint(1, 5)), 100 + number)
        dying = Dying(connect(), after=chance.randint(0, 12))
        try:
            census(dying, limit)
        except InterruptedError:
            connection.delete_each(job_id for job_id, _ in filter(None, [connection.first_ready(lock_tube(TUBE))]))
        current = census(connection, limit)
        assert current.n == limit.n == len(current.ids)
        listed = connection.stats_job(current.ids)
        assert {token.state for token in listed} <= {"ready", "delayed"}  # those become ready by themselves
        assert registries(broker) <= 2
    unlisted = broker.tube(TUBE)["current-jobs-ready"] + broker.tube(TUBE)["current-jobs-delayed"] - current.n
    assert 0 <= unlisted <= 60 * 5


class Dying:
    """A connection whose process dies after some commands."""

    def __init__(self, connection: Connection, after: int) -> None:
        self._connection = connection
        self._left = after

    def __getattr__(self, name: str):
        method = getattr(self._connection, name)

        def call(*args):
            if self._left == 0:
                raise InterruptedError
            self._left -= 1
            return method(*args)

        return call


def test_what_another_program_has_put_in_place_of_the_registry_is_deleted(connect, broker):
    connection = connect()
    for body in (b"", b"{}", b"[1]", b'{"n": 1, "per": null, "ids": "x", "since": 1, "number": 1, "replaces": null}'):
        broker.put(registry_tube("gpu"), body, priority=0)
    assert census(connection, Limit("gpu", 2)).n == 2
    assert registries(broker) == 1


def test_jobs_with_the_ids_of_tokens_in_other_queues_are_not_tokens(connect, broker):
    connection = connect()
    old = census(connection, Limit("gpu", 2))
    other = [broker.put("other", b"") for _ in range(2)]
    facts = {"n": 2, "per": None, "ids": other, "since": 1.0, "number": 9, "replaces": old.id}
    connection.put_aside(registry_tube("gpu"), limits.encode_json(facts), MAX_PRIORITY - 9)
    new = census(connection, Limit("gpu", 2))
    assert not set(new.ids) & set(other)
    assert broker.count("other", "ready") == 2


def test_the_loser_of_two_that_believe_they_are_elected_leaves_nothing(connect, broker, monkeypatch):
    """One that was stopped for longer than the age of its lock goes on, beside another one."""
    monkeypatch.setattr(election, "MAX_LOCK_AGE_S", -1)
    connections = [connect() for _ in range(6)]

    def elect(connection: Connection) -> None:
        with closing(connection):
            try:
                census(connection, Limit("gpu", 3))
            except limits.BrokerError as error:
                assert "another process has written its registry" in str(error)  # noqa: PT017  # only some do

    with ThreadPoolExecutor(len(connections)) as pool:
        list(pool.map(elect, connections))
    connection = connect()
    current = load(connection, "gpu")
    assert current.n == len(current.ids) == 3
    wait_until(lambda: broker.count(TUBE, "ready") >= 3, "the tokens are ready")
    assert set(current.ids) <= set(take_all(connection))


def test_replace_keeps_the_time_of_the_code():
    limit = at(Limit("gpu", 2), 100)
    assert replace(limit, n=3) == Limit("gpu", 3)


def test_the_largest_limit_fits(connect, broker):
    connection = connect()
    current = census(connection, Limit("gpu", 1000))
    assert len(current.ids) == broker.count(TUBE, "ready") == 1000
    assert census(connection, Limit("gpu", 1000)) == current


def test_a_server_that_takes_no_jobs_is_an_error(connect, broker, monkeypatch):
    connection = connect()
    census(connection, Limit("gpu", 1))
    monkeypatch.setattr(connection, "put", refuse)
    connection.delete_each(take_all(connection))
    with pytest.raises(limits.BrokerError, match="refuses"):
        census(connection, Limit("gpu", 1))
    monkeypatch.undo()
    assert census(connection, Limit("gpu", 1)).n == 1


def refuse(_queue: str, _body: bytes, _options: PutOptions) -> int:
    raise limits.BrokerError("the server refuses: it is out of memory")
