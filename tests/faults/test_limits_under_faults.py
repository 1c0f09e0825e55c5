"""Limits while hosts vanish, and workers, supervisors and the broker are killed at random moments.

At the end, the tests count the jobs that have run, the tasks that ran at once at most, and the tokens.
"""

from __future__ import annotations

import json
import random
import signal
import time
from collections import Counter
from contextlib import ExitStack, suppress

import psutil
import pytest
from support.beanstalkd import Beanstalkd
from support.hosts import Network, RemoteBeanstalkd
from support.limited import QUICK, count_tokens, events, most_at_once, waiting
from support.limited_app import GPU, MAIL
from support.supervised import APP, Supervised, title
from support.waiting import wait_until

from flask_backend.broker.limits import registry_tube
from flask_backend.names import limit_tube

pytestmark = pytest.mark.any_broker

TESTS = str(APP.parent.parent)
N = 3
# The TTR of tokens where a host vanishes: long enough for a heartbeat on a busy machine.
TTR_S = 4
PATIENCE_S = 45


class Fleet:
    """Supervisors of workers with limits, on one broker; what their tasks write down is in one ledger."""

    def __init__(self, broker: Beanstalkd, tmp_path, stack: ExitStack, **env: str) -> None:
        self.broker = broker
        self._folder = tmp_path
        self._stack = stack
        self._ledger = tmp_path / "ledger"
        self._env = {"LEDGER": str(self._ledger), "LIMIT_N": str(N), "FLASK_BACKEND_TIMEOUT": "1", **env}
        self.put_so_far = self.mails = 0
        self.began = time.monotonic()

    def start(self, name: str, *args: str, under=()) -> Supervised:
        folder = self._folder / name
        folder.mkdir(exist_ok=True)
        (folder / "quick_limits.py").write_text(QUICK + f"limits.TOKEN_TTR_S = {TTR_S}\n" * bool(under))
        env = self._env | {"PYTHONPATH": f"{folder}:{TESTS}"}
        started = Supervised(self.broker, folder, *args, app="quick_limits", under=under, **env)
        self._stack.callback(started.end)
        return started

    def put(self, count: int, seconds: float) -> None:
        with self.broker.client(GPU) as client:
            for number in range(self.put_so_far, self.put_so_far + count):
                call = {"endpoint": "train", "args": [number, seconds], "headers": {"id": f"u{number}"}}
                client.put(json.dumps(call).encode())
        self.put_so_far += count

    @property
    def ledger(self) -> list[str]:
        return self._ledger.read_text().splitlines() if self._ledger.exists() else []

    @property
    def ended(self) -> Counter[str]:
        return Counter(number for _, _, kind, number in events(self.ledger) if kind == "end")

    def mail(self) -> None:
        call = {"endpoint": "mail", "args": [self.mails], "headers": {"id": f"m{self.mails}"}}
        self.broker.put(MAIL, json.dumps(call).encode())
        self.mails += 1

    def kill(self, pid: int) -> None:
        """Kill a worker. Its task counts as running until the worker is stopped, which it was before its death."""
        with suppress(psutil.NoSuchProcess):
            worker = psutil.Process(pid)
            worker.suspend()
            wait_until(lambda: worker.status() == psutil.STATUS_STOPPED, f"{pid} is stopped")
            with self._ledger.open("a") as ledger:
                ledger.write(f"{time.monotonic():.6f} {pid} killed -\n")
            worker.kill()

    def assert_all_have_run(self) -> None:
        wait_until(self._are_all_done, f"all are done; in the log:\n{self.log()[-3000:]}", PATIENCE_S)
        assert self.ended.keys() == {str(number) for number in range(self.put_so_far)}
        assert {number for _, _, kind, number in events(self.ledger) if kind == "mail"} == {
            str(number) for number in range(self.mails)
        }

    def _are_all_done(self) -> bool:
        if self.broker.count(GPU, "buried"):  # a job that was at work at three kills
            with self.broker.client(GPU) as client:
                client.kick(100)
        return self.broker.is_empty(GPU) and self.broker.is_empty(MAIL)

    def log(self) -> str:
        return "".join(path.read_text() for path in self._folder.glob("*/log"))

    def assert_tokens_are_complete(self) -> None:
        wait_until(lambda: count_tokens(self.broker, "gpu") == (N, N), "all tokens are free", PATIENCE_S)
        assert self.broker.count(registry_tube("gpu"), "ready") <= 2


@pytest.fixture
def stack():
    with ExitStack() as stack:
        yield stack


def test_of_three_hosts_one_is_cut_off_and_one_killed(tmp_path, stack):
    network = Network()
    stack.callback(network.close)
    server, cut_off, killed, survivor = (network.add() for _ in range(4))
    broker = RemoteBeanstalkd(server)
    stack.callback(broker.stop)
    fleet = Fleet(broker, tmp_path, stack)
    hosts = [
        fleet.start(host.address, "--queue", f"{GPU}={count}", under=host.under)
        for host, count in ((cut_off, 2), (killed, 2), (survivor, N + 1))
    ]
    wait_until(lambda: broker.waiting(GPU) == N + 5, "all workers wait")

    fleet.put(120, 0.1)
    wait_until(lambda: len(fleet.ended) > 30, "they are at work")
    of_killed, of_survivor = (set(host.workers()) for host in hosts[1:])
    network.cut(cut_off)
    wait_until(lambda: runs_on(fleet, of_killed), "a task runs on the host that is killed next")
    for pid in of_killed:
        fleet.kill(pid)
    hosts[1].end()
    # The tokens of the killed host are free at once, those of the other one after their TTR, or by a census.
    wait_until(lambda: all_tokens_serve(fleet, of_survivor), "the last host has all tokens", PATIENCE_S)
    assert most_at_once(fleet.ledger) == N

    network.mend(cut_off)
    # Otherwise its jobs come back only when its kernel sends the ends of its connections again: the pauses double.
    server.run("ss", "--kill", "dst", cut_off.address)
    fleet.assert_all_have_run()
    fleet.put(30, 0.1)
    fleet.assert_all_have_run()
    fleet.assert_tokens_are_complete()
    assert most_at_once(fleet.ledger) == N
    wait_until(lambda: broker.tube(limit_tube("gpu"))["current-jobs-ready"] == N, "and no others")


def runs_on(fleet: Fleet, pids: set[int]) -> bool:
    kinds = [kind for _, pid, kind, _ in events(fleet.ledger) if pid in pids]
    return bool(kinds) and kinds[-1] == "begin"


def all_tokens_serve(fleet: Fleet, pids: set[int]) -> bool:
    """Whether as many tasks as allowed have run at once in these workers since the last kill; keep them at work."""
    if fleet.broker.count(GPU, "ready") < 2 * N:
        fleet.put(2 * N, 0.1)
    lines = fleet.ledger
    killed = max(number for number, line in enumerate(lines) if " killed " in line)
    return most_at_once(line for line in lines[killed:] if int(line.split()[1]) in pids) == N


class Killer:
    """Kills at random, and starts again what does not come back by itself."""

    def __init__(self, fleet: Fleet, seed: int) -> None:
        self.fleet = fleet
        self.chance = random.Random(seed)
        self.kills: Counter[str] = Counter()
        self.supervisors = [self._start(number) for number in range(2)]

    def _start(self, number: int) -> Supervised:
        queues = ("--queue", f"{GPU}=3", "--queue", f"{MAIL}=1", "--give-up-after", "100000")
        return self.fleet.start(f"supervisor-{number}", *queues)

    def kill_a_worker(self) -> None:
        workers = [pid for each in self.supervisors for pid in each.workers() if GPU in title(pid)]
        if workers:
            self.fleet.kill(self.chance.choice(workers))
            self.kills["worker"] += 1

    def kill_a_supervisor(self) -> None:
        number = self.chance.randrange(2)
        self.supervisors[number].workers()  # to clean up at the end
        self.supervisors[number].send(signal.SIGKILL)
        self.supervisors[number].wait()
        self.supervisors[number] = self._start(number)
        self.kills["supervisor"] += 1

    def kill_the_broker(self) -> None:
        self.fleet.broker.kill()
        self.fleet.broker.start()
        self.kills["broker"] += 1

    def kill(self, turns: int, pause_s: tuple[float, float], *, with_broker: bool) -> None:
        for _ in range(turns):
            kind = self.chance.random()
            if with_broker and kind < 0.25:
                self.kill_the_broker()
                wait_until(lambda: self.fleet.broker.waiting(limit_tube("gpu")) or self.is_idle, "they are back")
            elif kind < 0.35:
                self.kill_a_supervisor()
            else:
                self.kill_a_worker()
            if self.fleet.broker.count(GPU, "ready") < 20:
                self.fleet.put(10, self.chance.choice([0.0, 0.05, 0.2]))
            self.fleet.mail()
            time.sleep(self.chance.uniform(*pause_s))  # a random moment, not a wait for something

    @property
    def is_idle(self) -> bool:
        return self.fleet.broker.count(GPU, "ready") == 0

    def finish(self) -> None:
        """Let jobs wait for tokens, so that a census takes place, and all end."""
        self.fleet.put(4 * N, 0.3)
        self.fleet.assert_all_have_run()
        self.fleet.put(4 * N, 0.3)
        wait_until(lambda: waiting(self.fleet.broker, "gpu"), "workers wait for tokens")
        self.fleet.assert_all_have_run()
        self.fleet.assert_tokens_are_complete()


@pytest.mark.parametrize(
    ("turns", "pause_s"),
    [
        (8, (0.05, 0.3)),
        pytest.param(400, (0.05, 1.0), marks=[pytest.mark.soak, pytest.mark.timeout(1500)]),
    ],
)
@pytest.mark.parametrize("with_broker", [False, True])
def test_kills_at_random_moments_lose_no_job_and_no_token(durable_broker, tmp_path, stack, turns, pause_s, with_broker):
    fleet = Fleet(durable_broker, tmp_path, stack)
    killer = Killer(fleet, seed=turns)
    fleet.put(60, 0.05)
    wait_until(lambda: len(fleet.ended) > 10, "they are at work")

    killer.kill(turns, pause_s, with_broker=with_broker)
    killer.finish()

    most = most_at_once(fleet.ledger)
    sent = [at for at, _, kind, _ in events(fleet.ledger) if kind == "mail"]
    took_s = sent[-1] - sent[0]
    print(f"kills: {dict(killer.kills)}; {fleet.put_so_far} jobs, {fleet.ended.total()} runs; at most {most} at once")  # noqa: T201  # for a soak
    assert len(sent) <= 3 * (took_s + 1) + 1  # it is taken down a moment after the token
    # After a restart of the broker the tasks that run go on, beside new ones that have taken the tokens.
    assert most <= (2 * N if with_broker else N)
