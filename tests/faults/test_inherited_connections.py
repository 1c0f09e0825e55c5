"""Connections to a database that the import of the app opens: workers do not use them, and the parent keeps them."""

from __future__ import annotations

import signal

import pytest
from support.databases import Postgres
from support.waiting import wait_until

APP = """
import os

from flask import Flask
from flask_backend import Backend
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import text

app = Flask(__name__)
app.config["SQLALCHEMY_DATABASE_URI"] = os.environ["DATABASE"]
backend = Backend(app)
db = SQLAlchemy(app)

def server():
    return db.session.scalar(text("select pg_backend_pid()"))

with app.app_context():
    print("parent", server(), flush=True)

@backend.task("q")
def look():
    alive = db.session.scalars(text("select pid from pg_stat_activity where state is not null")).all()
    print("worker", server(), sorted(alive), flush=True)

@backend.task("q")
def die():
    os.kill(os.getpid(), 9)
"""


@pytest.fixture
def postgres():
    server = Postgres()
    yield server
    server.stop()


def test_workers_open_their_own_connections_and_do_not_close_the_parents(command, broker, tmp_path, postgres):
    (tmp_path / "connected.py").write_text(APP)
    running = command("supervise", "--workers", "2", app="connected", DATABASE=postgres.uri)
    for body in (b'{"endpoint":"look"}', b'{"endpoint":"die"}') * 2:
        broker.put("q", body)
    wait_until(lambda: running.log.count("\nworker ") == 2, f"both have looked:\n{running.log}")
    [parent] = [int(line.split()[1]) for line in running.log.splitlines() if line.startswith("parent ")]
    looks = [line.split(maxsplit=2)[1:] for line in running.log.splitlines() if line.startswith("worker ")]
    for own, alive in looks:
        assert int(own) != parent
        assert str(parent) in alive
    running.send(signal.SIGTERM)
    assert running.wait() == 0
