"""Long tasks with checkpoints, under faults of every kind at random moments, with a count at the end.

Each task counts its steps in a ledger, and so does each save of its cursor. Whatever the faults were, the ledger must
show that each step was done, and that a step was only done again if the last saved cursor was before it.

``SEED`` in the environment repeats a run, as far as a random driver of real processes can; ``FAULTS`` is the number of
faults of the long versions.
"""

from __future__ import annotations

import json
import os
import random
import re
import secrets
import signal
import time
from collections import Counter, deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

import pytest
from support.supervised import Supervised
from support.waiting import wait_until

from flask_backend.broker import cursors
from flask_backend.broker.connection import Connection
from flask_backend.config import Address
from flask_backend.names import is_cursor_tube
from flask_backend.retry import MAX_CRASHES

pytestmark = pytest.mark.any_broker

QUEUE = "q"
WORKERS = 3
AHEAD = 5  # tasks at once: some wait while others are disturbed
STEPS = 150
PAUSE_S = 0.004  # of a step
SAVE_EVERY_S = 0.1  # in place of 5 s
FAULTS = int(os.environ.get("FAULTS", "500"))

APP = f"""
import os
import time

from flask import Flask
from flask_backend import Backend, Retry, current, current_job

current.SAVE_EVERY_S = {SAVE_EVERY_S}
app = Flask(__name__)
backend = Backend(app)
forever = Retry(max_retries=None, max_backoff=1)
ballast = []

def say(text):
    fd = os.open(os.environ["LEDGER"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(fd, f"{{text}}\\n".encode())
    os.close(fd)

save = current.cursors.save

def save_and_say(connection, owner, value, old):
    kept = save(connection, owner, value, old)
    say(f"{{owner.uid}} saved {{value}}")
    return kept

current.cursors.save = save_and_say

def grow():
    try:
        os.unlink("grow")
    except FileNotFoundError:
        return
    ballast.append(b"x" * (200 << 20))

def work(name, to):
    start = current_job.cursor or 0
    say(f"{{name}} from {{start}} attempt {{current_job.attempt}} in {{os.getpid()}}")
    for number in range(start + 1, to + 1):
        time.sleep({PAUSE_S})  # it works
        say(f"{{name}} {{number}} in {{os.getpid()}}")
        grow()
        current_job.checkpoint(number)
    say(f"{{name}} done")

@backend.task("q", retry=forever)
def free(name, to):
    work(name, to)

@backend.task("q", retry=forever, time_limit=0.5)
def limited(name, to):
    work(name, to)
"""


@dataclass
class Record:
    """One task, as its ledger shows it."""

    steps: list[int] = field(default_factory=list)
    starts: list[tuple[int, int]] = field(default_factory=list)  # the cursor, and the attempt
    pid: str = ""  # of the last start
    reached: int = 0  # by that process
    saved: int = 0
    is_done: bool = False
    has_seen_outage: bool = False  # since its last start

    def start(self, cursor: int, attempt: int, pid: str) -> None:
        assert self.saved <= cursor <= max(self.steps, default=0)
        # What follows a save takes as long as its steps: more of them than fit in the interval have seen another save.
        again = self.reached - cursor
        assert self.has_seen_outage or again <= SAVE_EVERY_S / PAUSE_S + 1, f"{again} steps are done again"
        self.starts.append((cursor, attempt))
        self.pid, self.reached, self.has_seen_outage = pid, cursor, False

    def step(self, number: int, pid: str) -> None:
        self.steps.append(number)
        if pid == self.pid:  # after an outage an earlier process may go on for a moment
            self.reached = number


def read(lines: list[str]) -> dict[str, Record]:
    """Read the ledger in its order, and check each start against what came before."""
    records: dict[str, Record] = {}
    for line in lines:
        name, *words = line.split()
        record = records.setdefault(name, Record())
        match words:
            case ["from", cursor, "attempt", attempt, "in", pid]:
                record.start(int(cursor), int(attempt), pid)
            case ["saved", value]:
                record.saved = max(record.saved, int(value))
            case ["done"]:
                record.is_done = True
            case ["is", "killed"]:
                for each in records.values():
                    each.has_seen_outage = True
            case [number, "in", pid]:
                record.step(int(number), pid)
    records.pop("broker", None)
    return records


class Ordeal:
    """Draws faults and applies them, to one supervisor after another, while tasks are scheduled."""

    def __init__(self, broker, tmp_path, seed: int) -> None:
        self.broker = broker
        self._home = tmp_path
        (tmp_path / "enduring.py").write_text(APP)
        self._seed = seed
        self._chance = random.Random(seed)
        self._recent: deque[str] = deque(maxlen=12)
        self._scheduled = 0
        self.counts: Counter[str] = Counter()
        self._started: list[Supervised] = []
        self.supervised = self._start()
        # Such a fault starts nothing twice and counts no attempt, with its weight.
        self.gentle = [
            (self.drain_worker, 10),
            (self.reload, 2),
            (self.restart, 1),
            (self.shrink_and_grow, 2),
            (self.stop_worker_for_a_while, 2),
            (self.fill_memory, 1),
        ]
        self.violent = [
            (self.kill_worker, 10),
            (self.crash_worker, 4),
            (self.kill_group_of_worker, 3),
            (self.kill_supervisor, 2),
            (self.quit_supervisor, 1),
            (self.kill_broker, 4),
        ]

    def run(self, faults: list[tuple[Callable[[], None], int]], count: int, *, endpoints: list[str]) -> None:
        actions, weights = zip(*faults, strict=True)
        try:
            for _ in range(count):
                self._feed(endpoints)
                time.sleep(self._chance.uniform(0, 0.15))  # a random moment of their work
                [action] = self._chance.choices(actions, weights)
                name = action.__name__.replace("_", " ")
                self._recent.append(name)
                self.counts[name] += 1
                action()
            self._finish()
        except AssertionError as error:
            told = "\n".join(self._recent)
            error.add_note(f"seed {self._seed}, after {self.counts}; the last:\n{told}\n{self.supervised.log[-3000:]}")
            raise

    def records(self) -> dict[str, Record]:
        records = read(self.supervised.ledger)
        assert len(records) == self._scheduled
        for record in records.values():
            assert record.is_done
            assert set(record.steps) == set(range(1, STEPS + 1))
        return records

    def end(self) -> None:
        for each in self._started:
            each.end()

    # -- faults ----------------------------------------------------------------------------------------------

    def kill_worker(self) -> None:
        self._send_to_worker(signal.SIGKILL)

    def crash_worker(self) -> None:
        self._send_to_worker(signal.SIGSEGV)

    def kill_group_of_worker(self) -> None:
        """Kill it with all its processes, as the kernel does when a control group has no memory left."""
        if worker := self._worker():
            with suppress(ProcessLookupError):
                os.killpg(worker, signal.SIGKILL)

    def drain_worker(self) -> None:
        self._send_to_worker(signal.SIGTERM)

    def stop_worker_for_a_while(self) -> None:
        if worker := self._worker():
            self._signal(worker, signal.SIGSTOP)
            time.sleep(self._chance.uniform(0, 0.1))  # the machine is busy with something else
            self._signal(worker, signal.SIGCONT)

    def fill_memory(self) -> None:
        """One task fills the memory of its worker, which is recycled then."""
        (self._home / "grow").touch()

    def reload(self) -> None:
        self.supervised.send(signal.SIGHUP)

    def shrink_and_grow(self) -> None:
        self.supervised.send(signal.SIGTTOU)
        time.sleep(self._chance.uniform(0, 0.1))  # a random moment of the drain
        self.supervised.send(signal.SIGTTIN)

    def restart(self) -> None:
        self.supervised.send(signal.SIGTERM)
        assert self.supervised.wait(60) == 0
        self.supervised = self._start()

    def kill_supervisor(self) -> None:
        self.supervised.send(signal.SIGKILL)
        self.supervised.wait()
        self.supervised = self._start()

    def quit_supervisor(self) -> None:
        self.supervised.send(signal.SIGQUIT)
        assert self.supervised.wait(60) in (0, 4)
        self.supervised = self._start()

    def kill_broker(self) -> None:
        if self.broker.may_lose_a_job:
            self.counts["kill broker"] -= 1
            return
        self._say("broker is killed")
        self.broker.kill()
        time.sleep(self._chance.uniform(0, 0.3))  # the length of the outage
        self.broker.start()
        self._say("broker is killed")  # a task that started meanwhile has seen it too

    # -- processes -------------------------------------------------------------------------------------------

    def _start(self) -> Supervised:
        sizes = ("--max-memory", "150M", "--drain-timeout", "60", "--give-up-after", "1000")
        self._started.append(
            Supervised(self.broker, self._home, "--queue", QUEUE, *sizes, workers=WORKERS, app="enduring")
        )
        started = self._started[-1]
        before = started.log.count("ready: ")
        wait_until(lambda: started.log.count("ready: ") > before or started.process.poll() is not None, "it is ready")
        return started

    def _worker(self) -> int | None:
        workers = self.supervised.workers()
        return self._chance.choice(workers) if workers else None

    def _send_to_worker(self, number: signal.Signals) -> None:
        if worker := self._worker():
            self._signal(worker, number)

    def _signal(self, pid: int, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            os.kill(pid, number)

    def _say(self, text: str) -> None:
        with (self._home / "ledger").open("a") as ledger:
            ledger.write(f"{text}\n")

    # -- load ------------------------------------------------------------------------------------------------

    def _feed(self, endpoints: list[str]) -> None:
        """Keep the workers busy, and kick what was buried after too many crashes: that is a decision for a person."""
        tube = self.broker.tube(QUEUE)
        unfinished = sum(tube[f"current-jobs-{state}"] for state in ("ready", "reserved", "delayed"))
        for _ in range(AHEAD - unfinished):
            self.call(self._chance.choice(endpoints), STEPS)
        self._kick(tube)

    def call(self, endpoint: str, to: int) -> int:
        name = f"t{self._scheduled}"
        self._scheduled += 1
        message = {"endpoint": endpoint, "args": [name, to], "headers": {"id": name}}
        return self.broker.put(QUEUE, json.dumps(message).encode())

    def _kick(self, tube: dict) -> None:
        if tube["current-jobs-buried"]:
            with self.broker.client(QUEUE) as client:
                self.counts["kicked"] += client.kick(100)

    def _is_empty(self) -> bool:
        self._kick(self.broker.tube(QUEUE))
        return self.broker.is_empty(QUEUE)

    def _finish(self) -> None:
        wait_until(self._is_empty, "the queue is empty", 120)
        self.supervised.send(signal.SIGTERM)
        assert self.supervised.wait(60) == 0
        self.counts["cursors swept"] = len(self.cursors())
        connection = Connection(Address(self.broker.host, self.broker.port), 5)
        cursors.sweep(connection)
        connection.close()
        assert self.cursors() == []

    def cursors(self) -> list[str]:
        with self.broker.client() as client:
            return [tube for tube in client.tubes() if is_cursor_tube(tube)]


@pytest.fixture
def begin(durable_broker, tmp_path):
    ordeals = []

    def begin(seed: int) -> Ordeal:
        ordeals.append(Ordeal(durable_broker, tmp_path, seed))
        return ordeals[-1]

    yield begin
    for ordeal in ordeals:
        ordeal.end()


def endure_a_month(ordeal: Ordeal, stops: int, stop: Callable[[int], None]) -> None:
    """Interrupt one task again and again."""
    job = ordeal.call("free", 1_000_000)

    def record() -> Record:
        return read(ordeal.supervised.ledger).get("t0", Record())

    for number in range(stops):
        wait_until(lambda n=number: len(record().starts) > n, "it goes on")
        stop(int(record().pid))
    wait_until(lambda: len(record().starts) > stops, "it goes on")
    steps, starts = record().steps, record().starts
    assert steps == list(range(1, len(steps) + 1))
    assert {attempt for _, attempt in starts} == {1}
    shown = ordeal.broker.job(job)
    assert (shown["releases"], shown["buries"], shown["timeouts"]) == (0, 0, 0)
    assert shown["reserves"] > stops
    print(f"{stops} stops of one task: {len(starts)} runs, {len(steps)} steps, each once")  # noqa: T201  # what was tried


def seed() -> int:
    return int(os.environ.get("SEED") or secrets.randbelow(1 << 32))


def endure_everything(ordeal: Ordeal, count: int) -> None:
    ordeal.run([*ordeal.gentle, *ordeal.violent], count, endpoints=["free", "limited"])
    records = ordeal.records()
    steps = sum(len(record.steps) for record in records.values())
    again = steps - STEPS * len(records)
    starts = sum(len(record.starts) for record in records.values())
    print(f"{len(records)} tasks in {starts} runs, {again} of {steps} steps again; {ordeal.counts}")  # noqa: T201  # what was tried
    crashes = sum(ordeal.counts[fault] for fault in ("kill worker", "crash worker", "kill group of worker"))
    assert ordeal.counts["kicked"] * MAX_CRASHES <= crashes  # no other end buries a job


def endure_deploys(ordeal: Ordeal, count: int) -> None:
    ordeal.run(ordeal.gentle, count, endpoints=["free"])
    records = ordeal.records()
    starts = [start for record in records.values() for start in record.starts]
    print(f"{len(records)} tasks in {len(starts)} runs; {ordeal.counts}")  # noqa: T201  # what was tried
    for record in records.values():
        assert record.steps == list(range(1, STEPS + 1))  # nothing is done twice
    assert {attempt for _, attempt in starts} == {1}
    assert ordeal.counts["kicked"] == 0
    assert not re.search("Traceback|WARNING|ERROR", ordeal.supervised.log)


def test_faults_of_every_kind_repeat_only_what_follows_the_last_saved_cursor(begin):
    endure_everything(begin(int(os.environ.get("SEED", "1"))), 20)


def test_stops_reloads_and_recycles_repeat_nothing_and_count_no_attempt(begin):
    endure_deploys(begin(int(os.environ.get("SEED", "1"))), 15)


def test_a_task_that_is_interrupted_many_times_is_neither_counted_nor_buried(begin):
    ordeal = begin(1)
    endure_a_month(ordeal, 30, lambda worker: os.kill(worker, signal.SIGTERM))


@pytest.mark.soak
@pytest.mark.timeout(1200)
def test_a_task_outlives_200_reloads_in_a_row(begin):
    ordeal = begin(1)
    endure_a_month(ordeal, 200, lambda _: ordeal.reload())


@pytest.mark.soak
@pytest.mark.timeout(2 * FAULTS + 300)
def test_hundreds_of_faults_repeat_only_what_follows_the_last_saved_cursor(begin):
    endure_everything(begin(seed()), FAULTS)


@pytest.mark.soak
@pytest.mark.timeout(2 * FAULTS + 300)
def test_hundreds_of_stops_reloads_and_recycles_repeat_nothing(begin):
    endure_deploys(begin(seed()), FAULTS)
