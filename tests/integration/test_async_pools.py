"""A pool of asyncpg that an async hook opens, on a real PostgreSQL: it serves all tasks of its worker until its end."""

from __future__ import annotations

import json
import os
import signal

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.pool import NullPool
from support.databases import Postgres
from support.waiting import wait_until

pytest.importorskip("asyncpg", reason="asyncpg is not installed")
pytestmark = pytest.mark.any_broker

APP = """
import asyncio
import os
import asyncpg
from flask import Flask
from flask_backend import Backend, Retry
from flask_backend.signals import worker_stopping

app = Flask(__name__)
backend = Backend(app)

@backend.before_first_task("q")
async def connect():
    app.extensions["pool"] = await asyncpg.create_pool(os.environ["DATABASE"], min_size=1, max_size=2)

@backend.task("q", time_limit=0.5, retry=Retry(max_retries=1))
async def note(number, sleeps=0.0):
    async with app.extensions["pool"].acquire() as connection, connection.transaction():
        await connection.execute("insert into done values ($1, $2, pg_backend_pid())", number, os.getpid())
        await connection.execute("select pg_sleep($1)", sleeps)

@backend.task("q")
async def many(first):
    pool = app.extensions["pool"]
    statement = "insert into done values ($1, $2, pg_backend_pid())"
    await asyncio.gather(*(pool.execute(statement, first + each, os.getpid()) for each in range(10)))

@worker_stopping.connect_via(app)
async def disconnect(sender, **facts):
    await app.extensions["pool"].close()
    print("disconnected", flush=True)
"""


@pytest.fixture(scope="module")
def postgres():
    server = Postgres()
    yield server
    server.stop()


class Database:
    def __init__(self, uri: str) -> None:
        self._engine = create_engine(uri, isolation_level="AUTOCOMMIT", poolclass=NullPool)
        self.ask("drop table if exists done")
        self.ask("create table done (number int, worker int, connection int)")

    def ask(self, statement: str) -> list:
        with self._engine.connect() as connection:
            result = connection.execute(text(statement))
            return list(result) if result.returns_rows else []

    def numbers(self) -> list[int]:
        return [number for (number,) in self.ask("select number from done order by number")]

    def connections(self) -> dict[int, set[int]]:
        """Return the connections that each worker has used."""
        found: dict[int, set[int]] = {}
        for worker, connection in self.ask("select distinct worker, connection from done"):
            found.setdefault(worker, set()).add(connection)
        return found

    def open(self) -> set[int]:
        """Return the connections that are open."""
        others = "select pid from pg_stat_activity where backend_type = 'client backend' and pid != pg_backend_pid()"
        return {pid for (pid,) in self.ask(others)}


@pytest.fixture
def database(postgres):
    return Database(postgres.uri)


@pytest.fixture
def start(command, tmp_path, postgres):
    (tmp_path / "pooled.py").write_text(APP)

    def start(*args, workers=2):
        uri = postgres.uri.replace("+psycopg", "")
        running = command("supervise", "--workers", str(workers), *args, app="pooled", DATABASE=uri)
        running.wait_for_log("ready: q=")
        return running

    return start


def call(broker, *args, endpoint="note"):
    return broker.put("q", json.dumps({"endpoint": endpoint, "args": args}).encode())


def stop(running, database, workers):
    running.send(signal.SIGTERM)
    assert running.wait() == 0
    assert running.log.count("disconnected") == workers
    assert "never awaited" not in running.log
    assert "ResourceWarning" not in running.log
    wait_until(lambda: database.open() == set(), "all connections are closed")


def test_it_serves_all_tasks_of_its_worker_and_is_closed_there(start, broker, database):
    running = start()
    for number in range(30):
        call(broker, number)
    wait_until(lambda: database.numbers() == list(range(30)), "all tasks have run")
    assert all(len(used) == 1 for used in database.connections().values())
    call(broker, 100, endpoint="many")
    wait_until(lambda: len(database.numbers()) == 40, "one task uses several connections at once")
    assert all(len(used) <= 2 for used in database.connections().values())
    stop(running, database, 2)


def test_it_is_usable_after_a_time_limit_and_after_its_connection_was_killed(start, broker, database):
    running = start(workers=1)
    call(broker, 1)
    call(broker, 2, 60)  # it is cancelled in a query, and rolled back
    running.wait_for_log("TaskTimeout")
    call(broker, 3)
    wait_until(lambda: 3 in database.numbers(), "the pool is usable after a cancelled query")
    assert 2 not in database.numbers()
    database.ask("select pg_terminate_backend(pid) from pg_stat_activity where pid in (select connection from done)")
    for number in range(4, 10):
        call(broker, number)
    wait_until(lambda: {1, 3, *range(4, 10)} <= set(database.numbers()), "the pool has opened another connection")
    assert len(database.connections()) == 1  # it is still the same worker
    stop(running, database, 1)


@pytest.mark.parametrize("how", ["recycle", "drain", "reload"])
def test_each_worker_has_a_pool_of_its_own(start, broker, database, how):
    running = start(*(("--max-tasks", "5") if how == "recycle" else ()), workers=1)
    lives = 1
    for number in range(15):
        call(broker, number)
        wait_until(lambda n=number: len(database.numbers()) == n + 1, "it has run")
        if number % 5 != 4:
            continue
        if how == "drain":
            [(worker,)] = database.ask("select worker from done order by number desc limit 1")
            os.kill(worker, signal.SIGTERM)
        elif how == "reload":
            running.send(signal.SIGHUP)
        wait_until(lambda n=lives: running.log.count("disconnected") >= n, "its pool is closed")
        lives += 1
    wait_until(lambda: len(database.open()) == 1, "the last worker has opened its own")
    connections = database.connections()
    assert len(connections) == 3
    assert all(len(used) == 1 for used in connections.values())
    assert not database.open() & set().union(*connections.values())
    stop(running, database, running.log.count("disconnected") + 1)
