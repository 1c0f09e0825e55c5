"""Where a contender is measured: its own broker, and callers and workers, each in its own process; no leftovers."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path
from typing import Any

import psutil
import stamps
from contenders import BROKER, Contender, Server
from cpu import cpu_s, family_cpu_s
from support.beanstalkd import Beanstalkd, EmbeddedBroker, RealBeanstalkd, free_port
from support.waiting import wait_until

HERE = Path(__file__).parent
# How long a whole measurement may take, and how long workers may take to end after they were asked to.
PATIENCE_S = 60
END_S = 10


class Stage:
    """A contender, its broker and a folder in memory; made by :func:`set_up`."""

    def __init__(self, contender: Contender, folder: Path, broker: Broker) -> None:
        self._contender = contender
        self._folder = folder
        self.broker = broker
        self._stamps = folder / "stamps"
        self._log = folder / "log"
        self._environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("BACKEND_")},
            **contender.environment,
            BROKER: f"127.0.0.1:{broker.port}",
            stamps.VARIABLE: str(self._stamps),
            "PYTHONPATH": f"{HERE}:{HERE.parent}",
            "PYTHONDONTWRITEBYTECODE": "1",
        }

    def call(self, action: str, *arguments: object) -> Any:
        """Schedule calls in a separate process, see ``calling.py``; return its output."""
        command = [sys.executable, str(HERE / "calling.py"), self._contender.module, action, *map(str, arguments)]
        # Its own stamps are discarded: only those of the workers count.
        environment = self._environment | {stamps.VARIABLE: os.devnull}
        done = subprocess.run(command, env=environment, cwd=self._folder, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{self._contender.name}: {' '.join(command)} failed:\n{done.stderr}")
        return json.loads(done.stdout)

    def pace(self, count: int) -> list[float]:
        """Return the ms from call to start of ``count`` tasks; workers must be running."""
        times: list[float] = self.call("pace", count, self._stamps)
        return times

    def run_all(self, count: int) -> array[int]:
        """Wait until ``count`` tasks have run; return when each ran."""
        wait_until(
            lambda: stamps.count(self._stamps) >= count, f"{self._contender.name}: all jobs are done", PATIENCE_S
        )
        return stamps.read(self._stamps)

    def spend(self, how: str, seconds: float) -> float:
        """Return the µs of CPU for each call, in the caller and in the broker, see ``calling.py``."""
        spent_us: float = self.call("spend", how, seconds, self.broker.pid)
        return spent_us

    def spend_on_jobs(self, count: int, workers: Sequence[int]) -> float:
        """Return the µs of CPU for each job, in the workers and in the broker, between a tenth and nine tenths.

        ``count`` jobs must be waiting. ``workers`` are the processes that have started all others.
        """
        moments = [self._spent_at(round(count * share), workers) for share in (0.1, 0.9)]
        (first, before_s), (last, after_s) = moments
        return (after_s - before_s) / (last - first) * 1e6

    def _spent_at(self, count: int, workers: Sequence[int]) -> tuple[int, float]:
        """Wait until ``count`` tasks have run; return how many have, and the CPU time so far."""
        wait_until(
            lambda: stamps.count(self._stamps) >= count, f"{self._contender.name}: {count} jobs are done", PATIENCE_S
        )
        return stamps.count(self._stamps), cpu_s(self.broker.pid) + sum(map(family_cpu_s, workers))

    @contextmanager
    def workers(self, count: int) -> Iterator[list[int]]:
        """Start this many workers; return the processes that were started."""
        with self._log.open("ab") as log:
            processes = [
                subprocess.Popen(command, env=self._environment, cwd=self._folder, stdout=log, stderr=log)
                for command in self._contender.commands(count)
            ]
        try:
            yield [process.pid for process in processes]
        except BaseException as error:
            error.add_note(f"the end of the workers' log:\n{self._log.read_text()[-2000:]}")
            raise
        finally:
            _end(processes)


class Cores(Enum):
    """Where processes run.

    On a virtual machine it takes longer to wake a process on another core than to do the work it is woken for, and the
    kernel sometimes puts two communicating processes on one core: replies then arrive three times as fast, as long as
    that lasts. Figures of one placement are the same each time.
    """

    ANY = auto()  # as the kernel decides
    ONE = auto()  # all on one core: the result is CPU time only
    APART = auto()  # the broker on one, workers and callers on another


@contextmanager
def set_up(contender: Contender, cores: Cores = Cores.ANY) -> Iterator[Stage]:
    """Start a broker for one measurement."""
    available = sorted(os.sched_getaffinity(0))
    one = {available[0]} if cores is not Cores.ANY else set(available)
    other = {available[-1]} if cores is Cores.APART else one
    memory = Path("/dev/shm")  # noqa: S108 - only a folder of our own is made in it
    folder = Path(tempfile.mkdtemp(prefix="bench-", dir=memory if memory.is_dir() else None))
    try:
        os.sched_setaffinity(0, one)  # inherited by the processes started from now on
        with SERVERS[contender.server](folder) as broker:
            os.sched_setaffinity(0, other)
            yield Stage(contender, folder, broker)
    finally:
        os.sched_setaffinity(0, available)
        shutil.rmtree(folder)


@dataclass(frozen=True, slots=True)
class Broker:
    """A running broker."""

    port: int
    pid: int


@contextmanager
def _beanstalkd(_folder: Path) -> Iterator[Broker]:
    with _stopped(RealBeanstalkd()) as broker:
        yield broker


@contextmanager
def _embedded(_folder: Path) -> Iterator[Broker]:
    with _stopped(EmbeddedBroker()) as broker:
        yield broker


@contextmanager
def _stopped(server: Beanstalkd) -> Iterator[Broker]:
    try:
        yield Broker(server.port, server.process.pid)
    finally:
        server.stop()


@contextmanager
def _redis(folder: Path) -> Iterator[Broker]:
    """Start a Redis without persistence, like the Beanstalkd beside it."""
    port = free_port()
    command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
    server = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL)
    try:
        wait_until(lambda: _listens(port), "redis-server answers")
        yield Broker(port, server.pid)
    finally:
        server.terminate()
        server.wait()


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port)).close()
    except ConnectionRefusedError:
        return False
    return True


SERVERS = {Server.BEANSTALKD: _beanstalkd, Server.REDIS: _redis, Server.EMBEDDED: _embedded}


def _end(processes: list[subprocess.Popen[bytes]]) -> None:
    """Terminate the processes; kill the remaining ones and their children."""
    family = [process for each in processes for process in _family(each.pid)]
    for each in processes:
        each.terminate()
    deadline = time.monotonic() + END_S
    for each in processes:
        with suppress(subprocess.TimeoutExpired):
            each.wait(max(0.0, deadline - time.monotonic()))
    for process in family:
        with suppress(psutil.NoSuchProcess):
            process.kill()  # psutil checks that a pid has not been reused by another process
    for each in processes:
        each.wait()


def _family(pid: int) -> list[psutil.Process]:
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []
