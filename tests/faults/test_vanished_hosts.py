"""A host vanishes in the middle of its work: its half-open connections hold jobs, but not for longer than the bound.

The hosts are network namespaces. The kernel's times are set in that of the broker, as an operator sets them on the host
of Beanstalkd.
"""

from __future__ import annotations

import json
import re
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

import pytest
from support.hosts import Host, Network, RemoteBeanstalkd
from support.supervised import APP, Supervised
from support.waiting import wait_until
from support.workload import INBOX, QUEUE

from flask_backend.config import Settings
from flask_backend.worker.link import RESERVE_S

TESTS = Path(__file__).parents[1]
SYSCTLS = TESTS.parent / "deploy" / "systemd" / "sysctl.d" / "60-beanstalkd.conf"

JOBS = 2_000
MESSAGES = 8
BUSY = 4  # workers on each host that have jobs when it vanishes
IDLE = 2  # workers on each host that wait for jobs when it vanishes

# An app whose idle workers ask again each second.
QUICK = """
from flask_backend.worker import link, processing, worker
from support.workload import app

link.RESERVE_S = processing.RESERVE_S = worker.RESERVE_S = 1
"""
# Short times: a silent connection is dead after 3 s, and one with unacknowledged data after at most 3 s.
SHORT = {"tcp_keepalive_time": 1, "tcp_keepalive_intvl": 1, "tcp_keepalive_probes": 2, "tcp_retries2": 2}
SHORT_BOUND_S = 1 + 3
# On a busy machine the processes of a test notice everything late.
LATE_S = 4


class Hosts:
    """Three hosts: one with the broker, and two with workers, of which one vanishes."""

    def __init__(
        self, network: Network, stack: ExitStack, tmp_path: Path, *args: str, app: str = str(APP), **sysctls: int
    ) -> None:
        self._network = network
        self._ledger = tmp_path / "ledger"
        self.server, self.doomed, self._survivor = (network.add() for _ in range(3))
        self.server.set(**sysctls)  # first: a connection begins with the times that are set then
        self._broker = RemoteBeanstalkd(self.server)
        stack.callback(self._broker.stop)
        self.supervisor, _ = [
            self._supervise(stack, host, tmp_path / host.address, *args, app=app)
            for host in (self.doomed, self._survivor)
        ]
        self.wait_for_workers()

    def _supervise(self, stack: ExitStack, host: Host, folder: Path, *args: str, app: str) -> Supervised:
        folder.mkdir()
        (folder / "quick.py").write_text(QUICK)
        queues = ["--queue", f"{QUEUE}={BUSY}", "--queue", f"{INBOX}={IDLE}"]
        env = {"LEDGER": str(self._ledger), "PYTHONPATH": f"{folder}:{TESTS}", "FLASK_BACKEND_TIMEOUT": "1"}
        supervisor = Supervised(self._broker, folder, *queues, *args, app=app, under=host.under, **env)
        stack.callback(supervisor.end)
        return supervisor

    def wait_for_workers(self) -> None:
        """Wait until all workers of both hosts wait for jobs."""
        for queue, count in ((QUEUE, BUSY), (INBOX, IDLE)):
            wait_until(lambda queue=queue, count=count: self._broker.waiting(queue) == 2 * count, f"all wait: {queue}")

    def vanish(self) -> float:
        """Cut one host off in the middle of the jobs, send messages to its idle workers, and return when it was."""
        with self._broker.client(QUEUE) as client:
            for number in range(JOBS):
                call = {"endpoint": "mark", "args": [number, 0.004], "headers": {"id": str(number)}}
                client.put(json.dumps(call).encode())
        wait_until(lambda: len(self._marks()) > JOBS / 10, "a tenth is done")
        self._network.cut(self.doomed)
        cut_at = time.monotonic()
        assert self._broker.count(QUEUE, "ready") > 0
        with self._broker.client(INBOX) as client:
            for number in range(MESSAGES):
                client.put(json.dumps(number).encode())
        return cut_at

    def mend(self) -> None:
        self._network.mend(self.doomed)

    def connections(self) -> list[tuple[str, float]]:
        """Return the timer of each connection to the vanished host that the broker's host takes for alive."""
        return self.server.timers(self.doomed.address)

    def left(self) -> Counter[str]:
        """Count the jobs of both queues by state."""
        tubes = [self._broker.tube(queue) for queue in (QUEUE, INBOX)]
        return +Counter({s: sum(tube[f"current-jobs-{s}"] for tube in tubes) for s in ("ready", "reserved", "buried")})

    def assert_nothing_is_lost(self, *, twice: int) -> None:
        """Check that all jobs have run, and at most ``twice`` of the finished ones again."""
        lines = self._ledger.read_text().splitlines()
        assert {line for line in lines if line.startswith("inbox ")} == {f"inbox {n}" for n in range(MESSAGES)}
        marks = self._marks()
        assert sorted(marks) == list(range(JOBS))
        assert marks.total() - JOBS <= twice

    def _marks(self) -> Counter[int]:
        """Count how often each job has run."""
        lines = self._ledger.read_text().splitlines() if self._ledger.exists() else []
        return Counter(int(line.split()[1]) for line in lines if line.startswith("mark "))


@pytest.fixture
def hosts(tmp_path):
    network = Network()
    with ExitStack() as stack:
        stack.callback(network.close)
        yield lambda *args, **options: Hosts(network, stack, tmp_path, *args, **options)


@pytest.mark.parametrize(("how", "prefetch"), [("power", 1), ("cable", 3)])
def test_jobs_of_a_vanished_host_are_free_within_the_bound(hosts, how, prefetch):
    hosts = hosts("--prefetch", str(prefetch), app="quick", **SHORT)

    cut_at = hosts.vanish()
    if how == "power":
        hosts.supervisor.end()
    wait_until(lambda: not hosts.connections(), "the broker's host has given up all connections")
    assert time.monotonic() < cut_at + SHORT_BOUND_S + LATE_S
    wait_until(lambda: not hosts.left(), "all jobs are done")

    # Of a finished job only the deletion was lost.
    hosts.assert_nothing_is_lost(twice=BUSY * prefetch)
    if how == "cable":
        hosts.mend()
        hosts.wait_for_workers()


def test_with_the_defaults_of_linux_they_are_held_until_their_ttr_or_until_ss_ends_the_connections(hosts):
    hosts = hosts(app="quick")

    cut_at = hosts.vanish()
    hosts.supervisor.end()
    wait_until(lambda: time.monotonic() > cut_at + SHORT_BOUND_S, "the bound of the other settings has passed")
    wait_until(lambda: set(hosts.left()) == {"reserved"}, "only jobs of the vanished host are left")
    timers = hosts.connections()
    assert len(timers) == BUSY + IDLE
    assert {kind for kind, _ in timers} <= {"keepalive", "retransmit"}
    assert all(left_s > 7000 for kind, left_s in timers if kind == "keepalive")

    hosts.server.run("ss", "--kill", "dst", hosts.doomed.address)
    if hosts.connections():
        pytest.skip("ss cannot end connections: this kernel lacks CONFIG_INET_DIAG_DESTROY")
    wait_until(lambda: not hosts.left(), "all jobs are done")
    hosts.assert_nothing_is_lost(twice=BUSY)


def read_sysctls() -> dict[str, int]:
    return {name: int(value) for name, value in re.findall(r"(?m)^net\.ipv4\.(\w+) = (\d+)$", SYSCTLS.read_text())}


@pytest.mark.soak
@pytest.mark.timeout(400)
@pytest.mark.parametrize("with_settings", [True, False])
def test_the_bound_with_the_shipped_settings_and_without(hosts, with_settings):
    sysctls = read_sysctls() if with_settings else {}
    silent_s = sysctls.get("tcp_keepalive_time", 0) + sysctls.get("tcp_keepalive_intvl", 0) * sysctls.get(
        "tcp_keepalive_probes", 0
    )
    bound_s = RESERVE_S + (silent_s or Settings().ttr_s)
    hosts = hosts(**sysctls)

    cut_at = hosts.vanish()
    hosts.supervisor.end()
    wait_until(lambda: set(hosts.left()) == {"reserved"}, "only jobs of the vanished host are left")
    held = hosts.left()["reserved"]
    wait_until(
        lambda: not hosts.left() or time.monotonic() > cut_at + bound_s + LATE_S, "the bound has passed", 2 * bound_s
    )
    took_s = time.monotonic() - cut_at
    missed = hosts.left()["reserved"]
    print(f"{held} jobs held, {missed} of them for longer than the bound of {bound_s:g} s; waited {took_s:.1f} s")  # noqa: T201  # for a soak
    if with_settings:
        assert missed == 0
    else:  # Beanstalkd 1.12 misses the end of a time to run now and then
        hosts.server.run("ss", "--kill", "dst", hosts.doomed.address)
        wait_until(lambda: not hosts.left(), "all jobs are done")
    hosts.assert_nothing_is_lost(twice=BUSY)
