"""Processes that are killed at any moment around a commit, and a broker that goes away: what is lost, what never is.

A process writes a row for each call, in one transaction with it, and rolls every third one back.
"""

from __future__ import annotations

import json
import os
import random
import re
import shlex
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.waiting import wait_until

KILLS = 200
BIN = Path(sys.executable).parent / "flask-backend"

APP = """
import os
import random
import signal
import sys
import time

from flask import Flask
from flask_backend import Backend
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy.orm import Mapped, mapped_column

app = Flask(__name__)
app.config["SQLALCHEMY_DATABASE_URI"] = os.environ["DATABASE"]
app.config["BACKEND_AFTER_COMMIT"] = "sqlalchemy"
app.config["BACKEND_TIMEOUT"] = 1
backend = Backend(app)
db = SQLAlchemy(app)

class Row(db.Model):
    id: Mapped[int] = mapped_column(primary_key=True)

@backend.task("q")
def hello(number): ...

def work(first, until=None, begun=None):
    number = first
    while until is None or number < until:
        with app.app_context():
            db.session.add(Row(id=number))
            db.session.flush()
            hello(number)
            if number % 3 == 0:
                db.session.rollback()
            else:
                db.session.commit()
        if begun is not None:
            os.write(begun, b".")
            begun = None
        number += 1

if __name__ == "__main__":
    with app.app_context():
        db.create_all()
        db.session.execute(db.text("pragma journal_mode=wal"))
        db.session.execute(db.text("pragma synchronous=off"))
    if sys.argv[1] == "work":
        work(1, int(sys.argv[2]))
    else:
        work(1, 10)  # what is made once is inherited, so that the children are fast
        with app.app_context():
            db.engine.dispose()
        for round in range(int(sys.argv[2])):
            begun_r, begun_w = os.pipe()
            pid = os.fork()
            if pid == 0:
                work(11 + round * 1_000_000, begun=begun_w)
            os.read(begun_r, 1)
            time.sleep(random.random() * 0.015)  # a random moment of the child's work
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            os.close(begun_r)
            os.close(begun_w)
"""


@pytest.fixture
def run(tmp_path):
    (tmp_path / "committing.py").write_text(APP)
    started = []

    def run(broker, *args: str | int) -> subprocess.Popen[str]:
        environment = os.environ | broker.env | {"DATABASE": f"sqlite:///{tmp_path}/rows.db"}
        command = [sys.executable, "committing.py", *map(str, args)]
        with (tmp_path / "log").open("w") as log:
            started.append(subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=log, stderr=log))
        return started[-1]

    yield run
    for process in started:
        process.kill()
        process.wait()


def rows(tmp_path) -> set[int]:
    with sqlite3.connect(tmp_path / "rows.db") as connection:
        return {number for (number,) in connection.execute("select id from row")}


def calls(broker) -> list[int]:
    """Take all jobs; return the number of each."""
    found = []
    with broker.client("q") as client:
        for _ in range(client.stats_tube("q")["current-jobs-ready"]):
            job = client.reserve(timeout=1)
            found.append(json.loads(job.body)["args"][0])
            client.delete(job)
    return found


def test_kills_lose_at_most_the_calls_of_the_last_commit_and_send_none_that_was_rolled_back(run, broker, tmp_path):
    process = run(broker, "kill", KILLS)
    assert process.wait(300) == 0, (tmp_path / "log").read_text()
    committed, sent = rows(tmp_path), calls(broker)
    assert len(committed) > KILLS
    assert len(sent) == len(set(sent))
    assert set(sent) <= committed
    lost = committed - set(sent)
    print(f"{KILLS} kills: {len(committed)} commits, {len(sent)} sent, {len(lost)} lost")  # noqa: T201  # for -s: what was tried
    # Of each process only the last commit may lack its call.
    for number in lost:
        assert not [other for other in committed if number < other < (number // 1_000_000 + 1) * 1_000_000]


def test_a_broker_that_goes_away_costs_no_commit_and_each_call_is_sent_or_logged(run, durable_broker, tmp_path):
    broker = durable_broker
    count = 900
    process = run(broker, "work", count)
    for _ in range(4):
        wait_until(lambda: process.poll() is not None or broker.jobs() > 0, "it works")
        time.sleep(random.random() * 0.2)  # a random moment of its work
        broker.stop()
        time.sleep(random.random() * 0.1)  # the length of the outage
        broker.start()
    assert process.wait(300) == 0, (tmp_path / "log").read_text()
    log = (tmp_path / "log").read_text()
    committed, sent = rows(tmp_path), calls(broker)
    logged = [int(number) for number in re.findall(r"to send it: flask-backend call hello '\[(\d+)\]'", log)]
    assert committed == {number for number in range(1, count) if number % 3}
    assert set(sent) | set(logged) == committed
    assert set(sent) <= committed
    print(f"{len(committed)} commits: {len(sent)} sent, {len(logged)} logged, {len(set(sent) & set(logged))} both")  # noqa: T201  # likewise
    if logged:
        [line] = re.findall(rf"flask-backend (call hello '\[{logged[0]}\]'.*)", log)
        environment = os.environ | broker.env | {"DATABASE": f"sqlite:///{tmp_path}/rows.db"}
        subprocess.run([BIN, "--app", "committing", *shlex.split(line)], cwd=tmp_path, env=environment, check=True)
        assert calls(broker) == [logged[0]]
