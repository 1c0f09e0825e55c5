"""Processes that are killed at any moment around a commit, and a broker that goes away: what is lost, what never is.

Each process writes a row for each call, in one transaction with it, and rolls every third one back. A call may be lost
only if its process was killed after the commit and before ``commit()`` returned.

``SEED`` in the environment repeats a run, as far as a random driver of real processes can; ``FAULTS`` is the number of
faults of the long versions.
"""

from __future__ import annotations

import http.client
import json
import os
import random
import re
import secrets
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text
from support.beanstalkd import free_port
from support.databases import Postgres
from support.supervised import Supervised
from support.waiting import wait_until

pytestmark = pytest.mark.any_broker

KILLS = 200
FAULTS = int(os.environ.get("FAULTS", "500"))
CLIENTS = 4
WORKERS = 3
BIN = Path(sys.executable).parent / "flask-backend"

APP = """
import logging
import os
import random
import signal
import sys
import time

from flask import Flask
from flask_backend import Backend
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy.orm import Mapped, mapped_column
from werkzeug.serving import make_server

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

def transact(number):
    db.session.add(Row(id=number))
    db.session.flush()
    hello(number)
    if number % 3 == 0:
        db.session.rollback()
    else:
        db.session.commit()

@backend.task("work")
def step(number):
    if db.session.get(Row, number) is None:  # an earlier run may have been killed after its commit
        transact(number)
        fd = os.open(os.environ["LEDGER"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(fd, f"{number}\\n".encode())  # commit() has returned
        os.close(fd)

@app.post("/<int:number>")
def view(number):
    if number % 3 == 0:  # ends without a commit
        db.session.add(Row(id=number))
        db.session.flush()
        hello(number)
    else:
        transact(number)
    return "done"

def work(first, until=None, begun=None):
    number = first
    while until is None or number < until:
        with app.app_context():
            transact(number)
        if begun is not None:
            os.write(begun, b".")
            begun = None
        number += 1

if __name__ == "__main__":
    with app.app_context():
        db.create_all()
        if db.engine.name == "sqlite":
            db.session.execute(db.text("pragma journal_mode=wal"))
            db.session.execute(db.text("pragma synchronous=off"))
    if sys.argv[1] == "prepare":
        pass
    elif sys.argv[1] == "serve":
        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        make_server("127.0.0.1", int(sys.argv[2]), app, threaded=True).serve_forever()
    elif sys.argv[1] == "work":
        work(1, int(sys.argv[2]))
    else:
        work(1, 10)  # the children inherit the imports and caches, and are fast
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


@pytest.fixture(scope="module")
def postgres():
    server = Postgres()
    yield server
    server.stop()


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request, tmp_path):
    """Make the app's database, and return its URI."""
    (tmp_path / "committing.py").write_text(APP)
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/rows.db"
    uri = request.getfixturevalue("postgres").uri
    engine = create_engine(uri)
    with engine.begin() as connection:
        connection.execute(text('drop table if exists "row"'))
    engine.dispose()
    return uri


@pytest.fixture
def run(tmp_path, database):
    started = []

    def run(broker, *args: str | int) -> subprocess.Popen[bytes]:
        environment = os.environ | broker.env | {"DATABASE": database}
        command = [sys.executable, "committing.py", *map(str, args)]
        with (tmp_path / "log").open("ab") as log:
            started.append(subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=log, stderr=log))
        return started[-1]

    yield run
    for process in started:
        process.kill()
        process.wait()


def rows(database) -> set[int]:
    engine = create_engine(database, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        if engine.name == "postgresql":  # it ends the commit that a killed process has asked for
            clients = "select count(*) from pg_stat_activity where backend_type = 'client backend'"
            others = text(f"{clients} and pid != pg_backend_pid()")
            wait_until(lambda: connection.execute(others).scalar() == 0, "the connections of all processes have ended")
        found = {number for (number,) in connection.execute(text('select id from "row"'))}
    engine.dispose()
    return found


def calls(broker) -> list[int]:
    """Take all jobs of ``hello``; return the number of each."""
    found = []
    with broker.client("q") as client:
        for _ in range(broker.count("q", "ready")):
            job = client.reserve(timeout=1)
            found.append(json.loads(job.body)["args"][0])
            client.delete(job)
    return found


def logged(tmp_path) -> list[int]:
    """Return the number of each call that could not be sent and was logged."""
    log = (tmp_path / "log").read_text()
    return [int(number) for number in re.findall(r"to send it: flask-backend call hello '\[(\d+)\]'", log)]


def test_kills_lose_at_most_the_calls_of_the_last_commit_and_send_none_that_was_rolled_back(
    run, broker, tmp_path, database
):
    kills = KILLS if database.startswith("sqlite") else KILLS // 8
    process = run(broker, "kill", kills)
    assert process.wait(300) == 0, (tmp_path / "log").read_text()
    committed, sent = rows(database), calls(broker)
    assert len(committed) > kills
    assert len(sent) == len(set(sent))
    assert set(sent) <= committed
    lost = committed - set(sent)
    print(f"{kills} kills: {len(committed)} commits, {len(sent)} sent, {len(lost)} lost")  # noqa: T201  # for -s: what was tried
    # Of each process only the last commit may lack its call.
    for number in lost:
        assert not [other for other in committed if number < other < (number // 1_000_000 + 1) * 1_000_000]


def test_a_broker_that_goes_away_costs_no_commit_and_each_call_is_sent_or_logged(
    run, durable_broker, tmp_path, database
):
    broker = durable_broker
    count = 900
    process = run(broker, "work", count)
    sent: list[int] = []
    for end in [broker.stop, broker.kill] * 2:
        wait_until(lambda: process.poll() is not None or broker.jobs() > 0, "it works")
        time.sleep(random.random() * 0.2)  # a random moment of its work
        sent += calls(broker)  # which keeps the binlog short, see may_lose_a_job
        end()
        time.sleep(random.random() * 0.1)  # the length of the outage
        broker.start()
    assert process.wait(300) == 0, (tmp_path / "log").read_text()
    committed, failed = rows(database), logged(tmp_path)
    sent += calls(broker)
    assert committed == {number for number in range(1, count) if number % 3}
    assert set(sent) | set(failed) == committed
    assert set(sent) <= committed
    print(f"{len(committed)} commits: {len(sent)} sent, {len(failed)} logged, {len(set(sent) & set(failed))} both")  # noqa: T201  # likewise
    if failed:
        [line] = re.findall(rf"flask-backend (call hello '\[{failed[0]}\]'.*)", (tmp_path / "log").read_text())
        environment = os.environ | broker.env | {"DATABASE": database}
        subprocess.run(
            [BIN, "--app", "committing", *shlex.split(line)],
            cwd=tmp_path,
            env=environment,
            check=True,
            capture_output=True,
        )
        assert calls(broker) == [failed[0]]


class Clients:
    """Threads that send requests one after another, each with a number of its own."""

    def __init__(self, port: int) -> None:
        self.answered: set[int] = set()  # with 200: commit() has returned
        self._port = port
        self._numbers = iter(range(1, sys.maxsize))
        self._is_over = threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(CLIENTS)]

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self._is_over.set()
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        while not self._is_over.is_set():
            number = next(self._numbers)
            connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=20)
            try:
                connection.request("POST", f"/{number}")
                if connection.getresponse().status == 200:
                    self.answered.add(number)
            except (OSError, http.client.HTTPException):
                time.sleep(0.02)  # it was killed, and is started again
            finally:
                connection.close()


def check(tmp_path, database, calls: list[int], acknowledged: set[int], what: str) -> int:
    """Compare the committed rows with the sent calls; return how many calls are lost."""
    committed, sent, failed = rows(database), set(calls), set(logged(tmp_path))
    lost = committed - sent - failed
    print(f"{what}: {len(committed)} commits, {len(sent)} sent, {len(failed)} logged, {len(lost)} lost")  # noqa: T201  # what was tried
    assert committed
    assert all(number % 3 for number in committed)
    assert sent <= committed
    assert failed <= committed
    assert not lost & acknowledged
    return len(lost)


def kill_web_processes(run, broker, tmp_path, database, kills: int, seed: int) -> None:
    chance = random.Random(seed)
    port = free_port()
    outages = 0
    sent: list[int] = []
    web = run(broker, "serve", port)
    with Clients(port) as clients:
        for _ in range(kills):
            before = len(clients.answered)
            wait_until(lambda n=before: len(clients.answered) > n, f"seed {seed}: it answers")
            time.sleep(chance.uniform(0, 0.05))  # a random moment of its work
            if chance.random() < 0.2:
                sent += calls(broker)  # which keeps the binlog short, see may_lose_a_job
                broker.kill()
                time.sleep(chance.uniform(0, 0.1))  # the length of the outage
                broker.start()
                outages += 1
            else:
                web.kill()
                web.wait()
                web = run(broker, "serve", port)
    web.kill()
    web.wait()
    what = f"seed {seed}, {kills - outages} kills of web processes, {outages} of the broker"
    committed = {number for number in clients.answered if number % 3}
    lost = check(tmp_path, database, sent + calls(broker), committed, what)
    assert lost <= CLIENTS * (kills - outages)


class Steps:
    """Workers that commit and schedule, and their supervisors: one after another."""

    def __init__(self, broker, tmp_path, database, seed: int) -> None:
        self._broker = broker
        self._home = tmp_path
        self._database = database
        self._seed = seed
        self._chance = random.Random(seed)
        self._started: list[Supervised] = []
        self.counts: Counter[str] = Counter()
        self.scheduled = 0
        self.sent: list[int] = []
        self.supervised = self._start()

    def run(self, faults: int) -> None:
        actions = {
            self._kill_worker: 20,
            self._kill_supervisor: 2,
            self._kill_broker: 3,
            self._drain: 3,
            self._reload: 1,
        }
        for _ in range(faults):
            self._kick()
            if self._broker.count("work", "ready") < 100:
                self._schedule(100)
            time.sleep(self._chance.uniform(0, 0.05))  # a random moment of their work
            [action] = self._chance.choices(list(actions), list(actions.values()))
            self.counts[action.__name__.strip("_").replace("_", " ")] += 1
            action()
        wait_until(self._is_done, f"seed {self._seed}: all steps are done", 60)
        self.supervised.send(signal.SIGTERM)
        assert self.supervised.wait() == 0

    def end(self) -> None:
        for each in self._started:
            each.end()

    def _start(self) -> Supervised:
        options = ("--queue", "work", "--give-up-after", "1000", "--drain-timeout", "60")
        started = Supervised(
            self._broker, self._home, *options, workers=WORKERS, app="committing", DATABASE=self._database
        )
        self._started.append(started)
        before = started.log.count("ready: ")
        wait_until(lambda: started.log.count("ready: ") > before, f"seed {self._seed}: it is ready")
        return started

    def _schedule(self, count: int) -> None:
        with self._broker.client("work") as client:
            for _ in range(count):
                self.scheduled += 1
                client.put(json.dumps({"endpoint": "step", "args": [self.scheduled]}).encode())

    def _kick(self) -> None:
        """Retry the jobs that were buried after their third killed worker."""
        if self._broker.count("work", "buried"):
            with self._broker.client("work") as client:
                client.kick(100)

    def _is_done(self) -> bool:
        self._kick()
        return self._broker.is_empty("work")

    def _kill_worker(self) -> None:
        self._send_to_worker(signal.SIGKILL)

    def _drain(self) -> None:
        self._send_to_worker(signal.SIGTERM)

    def _send_to_worker(self, number: signal.Signals) -> None:
        if workers := self.supervised.workers():
            with suppress(ProcessLookupError):
                os.kill(self._chance.choice(workers), number)

    def _kill_supervisor(self) -> None:
        self.supervised.send(signal.SIGKILL)
        self.supervised.wait()
        self.supervised = self._start()

    def _kill_broker(self) -> None:
        self.sent += calls(self._broker)
        if self._broker.may_lose_a_job:
            self.counts["kill broker"] -= 1
            return
        self._broker.kill()
        time.sleep(self._chance.uniform(0, 0.1))  # the length of the outage
        self._broker.start()

    def _reload(self) -> None:
        self.supervised.send(signal.SIGHUP)


def kill_workers(run, broker, tmp_path, database, faults: int, seed: int) -> None:
    assert run(broker, "prepare").wait() == 0
    steps = Steps(broker, tmp_path, database, seed)
    try:
        steps.run(faults)
    finally:
        steps.end()
    committed = rows(database)
    assert committed == {number for number in range(1, steps.scheduled + 1) if number % 3}
    returned = {int(line) for line in steps.supervised.ledger} & committed
    counts = steps.counts
    lost = check(tmp_path, database, steps.sent + calls(broker), returned, f"seed {seed}, {counts}")
    assert lost <= counts["kill worker"] + WORKERS * (counts["kill supervisor"] + counts["kill broker"])


def seed() -> int:
    return int(os.environ.get("SEED") or secrets.randbelow(1 << 32))


def test_killed_web_processes_lose_only_calls_whose_commit_has_not_returned(run, durable_broker, tmp_path, database):
    kill_web_processes(run, durable_broker, tmp_path, database, 4, seed())


def test_killed_workers_and_supervisors_lose_only_calls_whose_commit_has_not_returned(
    run, durable_broker, tmp_path, database
):
    kill_workers(run, durable_broker, tmp_path, database, 10, seed())


@pytest.mark.soak
@pytest.mark.timeout(2 * FAULTS + 300)
def test_hundreds_of_killed_web_processes_lose_only_calls_whose_commit_has_not_returned(
    run, durable_broker, tmp_path, database
):
    kill_web_processes(run, durable_broker, tmp_path, database, FAULTS, seed())


@pytest.mark.soak
@pytest.mark.timeout(2 * FAULTS + 300)
def test_hundreds_of_killed_workers_lose_only_calls_whose_commit_has_not_returned(
    run, durable_broker, tmp_path, database
):
    kill_workers(run, durable_broker, tmp_path, database, FAULTS, seed())
