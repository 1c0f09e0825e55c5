"""Batches whose workers, supervisor, producer and broker are killed at random moments, with a count at the end."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter, defaultdict
from contextlib import suppress
from dataclasses import dataclass, field

import pytest
from support.supervised import Supervised
from support.waiting import wait_until

from flask_backend.broker import batch_sweep
from flask_backend.broker.connection import Connection
from flask_backend.config import Address
from flask_backend.errors import BrokerError
from flask_backend.names import is_batch_tube

pytestmark = pytest.mark.any_broker

APP = """
import os
import random
import sys
import time

from flask import Flask
from flask_backend import Backend, BackendError, Discard, Retry, current_job

app = Flask(__name__)
backend = Backend(app)
retry = Retry(max_retries=0, min_backoff=0.1, max_backoff=1)

def say(*words):
    fd = os.open(os.environ["LEDGER"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(fd, (" ".join(map(str, words)) + "\\n").encode())
    os.close(fd)

def member(batch, number, fails):
    time.sleep(random.random() * 0.002)  # it works
    say("member", batch, number, current_job.batch)
    if fails:
        raise Discard("as asked") if number % 2 else LookupError("as asked")

one = backend.task("one", retry=retry)(member)
two = backend.task("two", retry=retry)(member)

@backend.task("two")
def done(batch):
    say("done", batch, current_job.id)

def produce(first):
    number = first
    while True:
        when = random.choice(["done", "ended"])
        say("begin", number, when)
        try:
            with backend.batch(when=when) as batch:
                batch.on_complete(done, number)
                for index in range(random.choice([0, 1, 2, 3, 12])):
                    batch.add(random.choice([one, two]), number, index, when == "ended" and index % 3 == 0)
            say("sent", number)
        except BackendError as error:
            say("failed", number)
            time.sleep(0.05)  # the broker is away
        number += 1
        while os.path.exists(os.environ["PAUSE"]):
            time.sleep(0.01)  # the workers have much to do

if __name__ == "__main__":
    produce(int(sys.argv[1]))
"""
# The faults, and how often each is chosen.
WORKERS_AND_PRODUCER = {"worker": 6, "producer": 2}
EVERYTHING = {"worker": 12, "producer": 3, "supervisor": 1, "broker": 1}
NO_FINISHER = {"producer": 4, "reload": 1}


@dataclass
class Fleet:
    """The processes under test."""

    broker: object
    tmp_path: object
    killed: Counter = field(default_factory=Counter)
    numbers: int = 0

    def start(self):
        self.pause = self.tmp_path / "pause"
        self.environment = {"PAUSE": str(self.pause)}
        self.produce()
        self.supervise()

    def supervise(self):
        self.supervised = Supervised(
            self.broker,
            self.tmp_path,
            *("--queue", "one=2", "--queue", "two=2", "--give-up-after", "100000"),
            app="batching",
            **self.environment,
        )
        self.supervised.wait_for_log("ready: ")

    def produce(self):
        self.numbers += 1_000_000
        environment = os.environ | self.broker.env | self.environment | {"LEDGER": str(self.tmp_path / "ledger")}
        with (self.tmp_path / "producer.log").open("ab") as log:
            command = [sys.executable, "batching.py", str(self.numbers)]
            self.producer = subprocess.Popen(command, cwd=self.tmp_path, env=environment, stdout=log, stderr=log)

    def hurt(self, what, chance):
        if what == "producer":
            self.pause.unlink(missing_ok=True)
            begun = f"begin {self.numbers} "
            wait_until(lambda: begun in (self.tmp_path / "ledger").read_text(), "it has begun")
        time.sleep(chance.random() * 0.03)  # a random moment of its work
        self.killed[what] += 1
        match what:
            case "worker":
                workers = wait_until(self.supervised.workers, f"workers; log:\n{self.supervised.log[-3000:]}")
                with suppress(ProcessLookupError):
                    os.kill(chance.choice(workers), signal.SIGKILL)
            case "producer":
                self.producer.kill()
                self.producer.wait()
                self.produce()
            case "supervisor":
                self.supervised.process.kill()
                self.supervised.wait()
                self.supervise()
            case "reload":
                self.supervised.send(signal.SIGHUP)
            case "broker":
                self.broker.kill()
                time.sleep(chance.random() * 0.05)  # the length of the outage
                self.broker.start()

    def limit_backlog(self):
        """Let the producer wait while the workers are behind, so that callbacks start all the time."""
        waiting = sum(self.broker.tube(queue).get("current-jobs-ready", 0) for queue in QUEUES)
        self.pause.touch() if waiting > 60 else self.pause.unlink(missing_ok=True)  # some batches

    @property
    def ledger(self):
        return [line.split() for line in self.supervised.ledger]

    def end(self):
        self.producer.kill()
        self.producer.wait()
        self.supervised.end()


QUEUES = ("one", "two")


@pytest.fixture
def fleet(durable_broker, tmp_path):
    (tmp_path / "batching.py").write_text(APP)
    fleet = Fleet(durable_broker, tmp_path)
    try:
        fleet.start()
        yield fleet
    finally:
        fleet.end()


def left(broker):
    """Return what is left on the broker: the tubes of batches, and the jobs of the queues."""
    with broker.client() as client:
        tubes = [tube for tube in client.tubes() if is_batch_tube(tube)]
    states = ("ready", "reserved", "delayed", "buried")
    return tubes, sum(broker.tube(queue).get(f"current-jobs-{state}", 0) for queue in QUEUES for state in states)


def sweep_until_nothing_is_left(fleet):
    """Do what workers do in time: sweep; and what a person does: run again what was buried after kills."""

    def is_over():
        with suppress(BrokerError):
            connection = Connection(Address(fleet.broker.host, fleet.broker.port), 5)
            try:
                batch_sweep.sweep(connection)
                for queue in QUEUES:
                    while (job_id := connection.peek_buried([queue]).get(queue)) is not None:
                        body = connection.peek([job_id]).get(job_id, b"")
                        if b'"when":"ended"' in body and b",true]" in body:
                            connection.delete_each([job_id])  # it failed, as asked
                        else:
                            connection.kick_job([job_id])
            finally:
                connection.close()
        return left(fleet.broker) == ([], 0)

    wait_until(is_over, "nothing is left", timeout_s=60)


def play(fleet, faults, rounds, seed, monkeypatch):
    chance = random.Random(seed)
    wait_until(lambda: any(words[0] == "done" for words in fleet.ledger), "batches are complete")
    kinds = list(faults)
    for _ in range(rounds):
        fleet.hurt(chance.choices(kinds, [faults[kind] for kind in kinds])[0], chance)
        fleet.limit_backlog()
    fleet.producer.kill()
    fleet.producer.wait()
    monkeypatch.setattr(batch_sweep, "OPEN_LIMIT_S", 0)
    sweep_until_nothing_is_left(fleet)
    count(fleet)


def count(fleet):
    """Check that each batch of which anything was sent has started its callback, and that few did so twice."""
    begun, sent, members = {}, set(), defaultdict(set)
    started, before = defaultdict(set), {}
    finishers = fleet.killed["worker"] + fleet.killed["supervisor"] * 4 + fleet.killed["broker"] * 5
    for words in fleet.ledger:
        match words:
            case ["begin", number, when]:
                begun[number] = when
            case ["sent", number]:
                sent.add(number)
            case ["member", number, index, batch]:
                assert batch != "None"
                assert number not in started or finishers, "a call ran after the callback"
                members[number].add(index)
            case ["done", number, job_id]:
                started[number].add(job_id)
                before.setdefault(number, members[number].copy())
    assert len(sent) > 3
    assert not (sent | set(members)) - set(started), "a callback was lost"
    # A call may run again after the callback, if its worker died; for the first time, if it was buried after kills.
    early = [number for number, ran in before.items() if ran != members[number] and begun[number] == "done"]
    assert early == [], "a callback started early"
    twice = {number: ids for number, ids in started.items() if len(ids) > 1}
    print(  # noqa: T201  # for -s: what was tried
        f"{dict(fleet.killed)}: {len(begun)} batches begun, {len(sent)} sent, {len(started)} callbacks, "
        f"{len(twice)} of them twice"
    )
    # A producer is a finisher too, if the calls end before it has ended sending.
    assert sum(len(ids) - 1 for ids in twice.values()) <= finishers + fleet.killed["producer"]


@pytest.mark.parametrize("faults", [NO_FINISHER, EVERYTHING], ids=["no-finisher", "everything"])
def test_each_callback_starts_whoever_is_killed(fleet, faults, monkeypatch):
    play(fleet, faults, 12, random.randrange(1000), monkeypatch)


@pytest.mark.soak
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    "faults", [NO_FINISHER, WORKERS_AND_PRODUCER, EVERYTHING], ids=["no-finisher", "workers", "everything"]
)
@pytest.mark.parametrize("seed", range(3))
def test_hundreds_of_kills(fleet, faults, seed, monkeypatch):
    play(fleet, faults, 300, seed, monkeypatch)
