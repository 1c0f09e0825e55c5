"""Periodic tasks with real supervisors, whose schedulers, supervisors and broker are stopped, reloaded and killed."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Sequence

import psutil
import pytest
from support.supervised import COMMAND, Command, title
from support.waiting import wait_until

from flask_backend.config import Address, Settings
from flask_backend.operations.schedules import Schedules
from flask_backend.system.procfs import PROC_IS_THERE

pytestmark = [pytest.mark.any_broker, pytest.mark.skipif(not PROC_IS_THERE, reason="needs Linux")]

QUEUE = "q"
KILLS = int(os.environ.get("KILLS", "100"))  # of each run of the long version
APP = """
import os

from flask import Flask
from flask_backend import Backend, Retry, current_job

app = Flask(__name__)
backend = Backend(app)

@backend.task("q", retry=Retry(max_retries=None, max_backoff=1))
def note(name):
    fd = os.open(os.environ["LEDGER"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    slot = current_job.headers.get("slot", "by hand")
    os.write(fd, f"{name} {slot} {current_job.headers['id']}\\n".encode())
    os.close(fd)

for name in NAMES:
    backend.periodic(every=1, name=name, args=[name])(note)
"""
SLOW = """

@backend.task("q")
def slow():
    import time
    while not os.path.exists("end"):
        time.sleep(0.05)
"""


class Fleet:
    """Supervisors of one app on one broker, which share a ledger and a log."""

    def __init__(self, broker, tmp_path) -> None:
        self.broker, self._tmp_path = broker, tmp_path
        self._started: list[Command] = []
        self.write("a", "b")

    def write(self, *names: str) -> None:
        (self._tmp_path / "periodic.py").write_text(APP.replace("NAMES", repr(names)))

    def start(self, *args: str) -> Command:
        args = args or ("supervise", "--workers", "1", "--queue", QUEUE)
        running = Command(self.broker, self._tmp_path, *args, app="periodic", PYTHONDONTWRITEBYTECODE="1")
        self._started.append(running)
        return running

    def end(self) -> None:
        for each in self._started:
            each.end()

    @property
    def alive(self) -> list[Command]:
        return [each for each in self._started if each.process.poll() is None]

    @property
    def runs(self) -> list[list[str]]:
        """The name, the slot and the id of each call that has run."""
        return [line.split() for line in self._started[0].ledger]

    def runs_of(self, name: str) -> list[str]:
        return [slot for each, slot, _ in self.runs if each == name]

    @property
    def log(self) -> str:
        return self._started[0].log

    def schedules(self):
        with Schedules(Settings(Address("127.0.0.1", self.broker.port))) as schedules:
            [queue] = schedules.queues([QUEUE])
            return queue

    def wait_for_schedulers(self, count: int) -> None:
        wait_until(
            lambda: self.broker.tube(f"{QUEUE}.schedule").get("current-watching") == count,
            f"{count} schedulers watch; log:\n{self.log[-3000:]}",
        )

    def wait_for_runs(self, count: int, name: str = "a") -> None:
        wait_until(
            lambda: len(self.runs_of(name)) >= count, f"{count} runs of {name} in {self.runs}; log:\n{self.log[-3000:]}"
        )


@pytest.fixture
def fleet(broker, tmp_path):
    fleet = Fleet(broker, tmp_path)
    yield fleet
    fleet.end()


@pytest.fixture
def durable_fleet(durable_broker, tmp_path):
    fleet = Fleet(durable_broker, tmp_path)
    yield fleet
    fleet.end()


def scheduler_of(supervisor: Command) -> int | None:
    try:
        children = psutil.Process(supervisor.pid).children()
    except psutil.NoSuchProcess:
        return None
    return next((child.pid for child in children if title(child.pid) == f"flask-backend: scheduler {QUEUE}"), None)


def the_scheduler_of(supervisor: Command, *not_: int) -> int:
    def found() -> int | None:
        pid = scheduler_of(supervisor)
        return None if pid in not_ else pid

    return wait_until(found, f"a scheduler; log:\n{supervisor.log[-3000:]}")


def test_two_live_supervisors_schedule_each_slot_once_and_give_a_broker_that_lost_its_memory_the_state_again(fleet):
    one, two = fleet.start(), fleet.start()
    fleet.wait_for_schedulers(2)
    [told] = [
        each
        for each in json.loads(subprocess.run([*COMMAND, "status", "--json"], capture_output=True, text=True).stdout)
        if each["pid"] == one.pid
    ]
    assert told["scheduler"] == {"pid": scheduler_of(one), "queues": [QUEUE]}
    with Schedules(Settings(Address("127.0.0.1", fleet.broker.port))) as schedules:
        fleet.wait_for_runs(1, "b")
        schedules.pause(QUEUE, "b")
    fleet.wait_for_runs(len(fleet.runs_of("a")) + 2)  # both have seen the pause, or the token with it
    for name in ("a", "b"):
        assert set(Counter(fleet.runs_of(name)).values()) == {1}
    fleet.broker.kill()
    fleet.broker.start()
    fleet.wait_for_runs(len(fleet.runs_of("a")) + 1)
    [_, b] = fleet.schedules().schedules
    assert b.is_paused
    assert "was lost: what is known here is put again" in fleet.log
    for each in fleet.alive:
        each.send(signal.SIGTERM)
    assert [one.wait(), two.wait()] == [0, 0]


def test_a_killed_scheduler_is_replaced_and_a_drain_ends_it_while_a_task_still_runs(fleet, tmp_path):
    (tmp_path / "periodic.py").write_text(APP.replace("NAMES", "('a',)") + SLOW)
    supervisor = fleet.start()
    first = the_scheduler_of(supervisor)
    fleet.wait_for_runs(1)
    os.kill(first, signal.SIGKILL)
    second = the_scheduler_of(supervisor, first)
    fleet.wait_for_runs(len(fleet.runs_of("a")) + 1)
    assert "the process that schedules periodic tasks was killed by signal 9" in fleet.log
    fleet.broker.put(QUEUE, b'{"endpoint": "slow"}', priority=0)
    wait_until(lambda: fleet.broker.count(QUEUE, "reserved") == 1, "it runs")
    supervisor.send(signal.SIGTERM)
    wait_until(lambda: not psutil.pid_exists(second), "the scheduler ends")
    assert supervisor.process.poll() is None
    (tmp_path / "end").touch()
    assert supervisor.wait() == 0
    assert fleet.schedules().schedulers == 0


def test_a_reload_takes_new_definitions_and_the_old_scheduler_ends(fleet):
    supervisor = fleet.start()
    first = the_scheduler_of(supervisor)
    fleet.wait_for_runs(1)
    fleet.write("a", "c")
    supervisor.send(signal.SIGHUP)
    fleet.wait_for_runs(1, "c")
    the_scheduler_of(supervisor, first)
    wait_until(lambda: not psutil.pid_exists(first), "the old one has ended")
    states = {each.name: each.is_retired for each in fleet.schedules().schedules}
    assert states == {"a": False, "b": True, "c": False}
    before = len(fleet.runs_of("b"))
    fleet.wait_for_runs(len(fleet.runs_of("a")) + 1)
    assert len(fleet.runs_of("b")) == before
    assert set(Counter(fleet.runs_of("a")).values()) == {1}
    supervisor.send(signal.SIGTERM)
    assert supervisor.wait() == 0


def test_two_releases_schedule_what_the_newer_one_says(fleet):
    fleet.start()
    fleet.wait_for_runs(1)
    fleet.write("a", "c")
    new = fleet.start()
    fleet.wait_for_runs(1, "c")
    new.process.kill()  # the older one goes on with the definitions of the newer one
    new.wait()
    before = len(fleet.runs_of("c"))
    fleet.wait_for_runs(before + 2, "c")


def test_a_queue_without_periodic_tasks_has_no_scheduler_and_a_single_worker_warns(fleet, supervise):
    plain = supervise(workers=1)
    plain.wait_ready()
    assert [pid for pid in plain.children() if "scheduler" in title(pid)] == []
    worker = fleet.start("worker", QUEUE)
    worker.wait_for_log("a single worker does not schedule the 2 periodic tasks of q")
    assert fleet.broker.tube(f"{QUEUE}.schedule").get("current-watching", 0) == 0


# -- kills at random moments -------------------------------------------------------------------------------------


def choose(chance: random.Random) -> str:
    return chance.choices(["scheduler", "supervisor", "broker"], [6, 2, 1])[0]


def hurt(fleet: Fleet, chance: random.Random, kind: str, kinds: Counter) -> None:
    """Kill a scheduler, a whole supervisor, or the broker."""
    supervisor = chance.choice(fleet.alive)
    if kind == "broker":
        fleet.broker.kill()
        fleet.broker.start()
    elif kind == "supervisor":
        supervisor.process.kill()
        supervisor.process.wait()
        fleet.start()
    elif (pid := scheduler_of(supervisor)) is not None:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            return
    else:
        return
    kinds[kind] += 1


def run_and_count(fleet: Fleet, seed: int, supervisors: int, plan: Sequence[str] = (), kills: int = 0) -> str:
    """Kill at random moments, most of them around a tick; check that each slot is accounted for; return the numbers.

    ``plan`` is what is killed, by default chosen at random, ``kills`` times.
    """
    chance, kinds = random.Random(seed), Counter()
    for _ in range(supervisors):
        fleet.start()
    fleet.wait_for_schedulers(supervisors)
    fleet.wait_for_runs(1)
    begun = {each.name: each for each in fleet.schedules().schedules}
    while (number := kinds.total()) < (kills or len(plan)):
        # Ticks are at full seconds: die in one, or at any other moment.
        at_tick = max(0.0, 1 - time.time() % 1 + chance.gauss(0.004, 0.004))
        time.sleep(at_tick if chance.random() < 0.7 else chance.random())  # a moment of a kill, not a wait
        hurt(fleet, chance, plan[number] if plan else choose(chance), kinds)
    count = len(fleet.runs_of("a"))
    fleet.wait_for_runs(count + 2)
    with Schedules(Settings(Address("127.0.0.1", fleet.broker.port))) as schedules:
        ended = {each: schedules.pause(QUEUE, each) for each in begun}
    wait_until(lambda: fleet.broker.is_empty(QUEUE), "all calls have run")
    told = [f"{kinds.total()} kills ({', '.join(f'{count} {kind}' for kind, count in sorted(kinds.items()))})"]
    for name, end in ended.items():
        runs = [(slot, uid) for each, slot, uid in fleet.runs if each == name]
        ids = {slot: {uid for other, uid in runs if other == slot} for slot, _ in runs}
        assert {len(each) for each in ids.values()} == {1}  # a slot that was scheduled twice has one id
        begin = begun[name]
        made, missed = end.scheduled - begin.scheduled, end.missed - begin.missed
        assert end.skipped == 0
        passed = end.last - begin.last
        # Each slot was scheduled, or counted as one that a later call makes up for. None is lost in silence.
        assert made + missed == passed, (name, begin, end)
        first = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(begin.last))
        last = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(end.last))
        ran = {slot for slot in ids if first < slot <= last}
        assert made <= len(ran) <= passed
        twice = sum(count > 1 for count in Counter(slot for slot, _ in runs).values())
        told.append(
            f"{name}: {passed} slots, {made} scheduled, {missed} made up for by a later call, {twice} ran twice"
        )
    return "; ".join(told)


def test_kills_at_random_moments_lose_no_slot(durable_fleet):
    plan = ("scheduler", "broker", "supervisor", "scheduler")
    print(run_and_count(durable_fleet, 1, 2, plan))  # noqa: T201  # for -s: what was tried


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", range(3))
def test_hundreds_of_kills_at_random_moments_lose_no_slot(durable_fleet, seed):
    print(run_and_count(durable_fleet, 100 + seed, 3, kills=KILLS))  # noqa: T201  # likewise
