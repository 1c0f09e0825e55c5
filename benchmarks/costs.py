"""Measure what a job, a connection, a tube and a worker cost: the numbers used in docs/explain/scaling.md.

Usage: python benchmarks/costs.py [--rounds N] [--only server|memory|workers] [--write]. Starts its own beanstalkd and
supervisors; prints tables of medians with ranges. --write puts them into docs/explain/scaling.json, and the tables
and numbers of docs/explain/scaling.md that depend on them.
Costs depend on the machine: compare values of one run. Linux only: it reads /proc.

The server is driven over raw sockets, with many commands in a write where noted, so that the measurement covers the
server's own CPU time and not the speed of the client.
"""

from __future__ import annotations

import argparse
import json
import re
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

import costs_page
import greenstalk
import machine
import psutil
from costs_page import BINLOG, IN_MEMORY, SYNCED
from cpu import cpu_s
from figures import Figure

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from support.beanstalkd import PROGRAM, RealBeanstalkd, free_port
from support.supervised import Supervised
from support.waiting import wait_until

if TYPE_CHECKING:
    from flask import Flask

QUEUE = "com.example/default"
BODY = b"x" * 100
BINLOGS = {IN_MEMORY: None, BINLOG: (), SYNCED: ("-f0",)}
PREFETCH = "--prefetch 8"
CONNECTIONS = 50  # concurrent clients, like workers or web processes: a busy server is not woken for each command


class Server(RealBeanstalkd):
    """A beanstalkd with any options, whose memory and CPU time can be read."""

    def __init__(self, *options: str) -> None:
        self.port = free_port()
        self._command = [PROGRAM or "beanstalkd", "-l", "127.0.0.1", "-p", str(self.port), *options]
        self.start()

    @property
    def rss_bytes(self) -> int:
        return psutil.Process(self.process.pid).memory_info().rss

    @property
    def cpu_s(self) -> float:
        return cpu_s(self.process.pid)


@contextmanager
def running(server: Server) -> Iterator[Server]:
    try:
        yield server
    finally:
        server.stop()


class Wire:
    """A connection that sends many commands in one write."""

    def __init__(self, server: Server) -> None:
        self._socket = socket.create_connection(("127.0.0.1", server.port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._socket.close()

    def send(self, commands: bytes) -> None:
        self._socket.sendall(commands)

    def receive(self, lines: int) -> bytes:
        """Return as many lines as were requested: no body contains a line break."""
        chunks: list[bytes] = []
        while lines > 0:
            chunk = self._socket.recv(1 << 18)
            if not chunk:
                raise ConnectionError("beanstalkd hung up")
            chunks.append(chunk)
            lines -= chunk.count(b"\n")
        return b"".join(chunks)

    def ask(self, commands: bytes, lines: int, expected: bytes, count: int) -> bytes:
        """Send commands and return their replies; ``count`` of them must begin with the expected text."""
        self.send(commands)
        replies = self.receive(lines)
        if replies.count(expected) != count:
            raise AssertionError(f"expected {count} x {expected!r}, got {replies[:200]!r}")
        return replies

    def put(self, count: int, body: bytes = BODY, batch: int = 500) -> None:
        command = b"put 1 0 120 %d\r\n%b\r\n" % (len(body), body)
        for _ in range(count // batch):
            self.ask(command * batch, batch, b"INSERTED ", batch)

    def reserve(self, count: int) -> list[bytes]:
        replies = self.ask(b"reserve-with-timeout 0\r\n" * count, 2 * count, b"RESERVED ", count)
        return re.findall(rb"RESERVED (\d+) ", replies)

    def delete(self, ids: list[bytes]) -> None:
        self.ask(b"".join(b"delete %b\r\n" % each for each in ids), len(ids), b"DELETED", len(ids))


# -- the server's time ---------------------------------------------------------------------------------------


@dataclass(slots=True)
class Spent:
    """The cost of a number of operations."""

    count: int = 0
    cpu_s: float = 0.0
    wall_s: float = 0.0

    @contextmanager
    def measured(self, server: Server, count: int) -> Iterator[None]:
        cpu, wall = server.cpu_s, time.perf_counter()
        yield
        self.cpu_s += server.cpu_s - cpu
        self.wall_s += time.perf_counter() - wall
        self.count += count

    def with_each(self, other: Spent) -> Spent:
        """Return the cost of as many of both operations."""
        return Spent(self.count, self.cpu_s + other.cpu_s, self.wall_s + other.wall_s)


def putting(wire: Wire, server: Server, count: int, batch: int) -> Spent:
    took = Spent()
    with took.measured(server, count):
        wire.put(count, batch=batch)
    return took


def in_batches(wire: Wire, server: Server, count: int, batch: int = 100) -> tuple[Spent, Spent]:
    """Take and delete jobs, many in a write; return the cost of each operation."""
    reserving, deleting = Spent(), Spent()
    for _ in range(count // batch):
        with reserving.measured(server, batch):
            held = wire.reserve(batch)
        with deleting.measured(server, batch):
            wire.delete(held)
    return reserving, deleting


def as_web_processes(server: Server, count: int) -> Spent:
    """Put jobs one by one over several connections."""
    wires = [Wire(server) for _ in range(CONNECTIONS)]
    took = Spent()
    with took.measured(server, count):
        for _ in range(count // CONNECTIONS):
            for wire in wires:
                wire.send(b"put 1 0 120 %d\r\n%b\r\n" % (len(BODY), BODY))
            for wire in wires:
                wire.receive(1)
    for wire in wires:
        wire.close()
    return took


def as_workers(server: Server, count: int) -> Spent:
    """Take jobs one by one over several connections: delete the last one and reserve the next in one write."""
    wires = [Wire(server) for _ in range(CONNECTIONS)]
    held = [wire.reserve(1)[0] for wire in wires]

    took = Spent()
    with took.measured(server, count):
        for _ in range(count // CONNECTIONS):
            for wire, job in zip(wires, held, strict=True):
                wire.send(b"delete %b\r\nreserve-with-timeout 20\r\n" % job)
            for index, wire in enumerate(wires):
                held[index] = wire.receive(3).split(b" ", 2)[1]
    for wire, job in zip(wires, held, strict=True):
        wire.delete([job])
        wire.close()
    return took


def measure_server(rounds: int, progress: Callable[[str], None]) -> tuple[list[Figure], list[Figure]]:
    """Return the CPU time of each operation in µs, and the operations per second, with each kind of binlog."""
    costs: dict[tuple[str, str], Figure] = {}
    rates: dict[tuple[str, str], Figure] = {}

    def note(name: str, contender: str, took: Spent) -> None:
        costs.setdefault((name, contender), Figure(name, contender, "µs")).values.append(took.cpu_s / took.count * 1e6)
        rates.setdefault((name, contender), Figure(name, contender, "1/s")).values.append(took.count / took.wall_s)

    for number in range(rounds):
        for contender, options in BINLOGS.items():
            progress(f"server, round {number + 1}: {contender.replace('`', '')}")
            few, many = (5_000, 10_000) if options else (20_000, 60_000)
            with tempfile.TemporaryDirectory() as folder:
                binlog = [] if options is None else ["-b", folder, *options]
                with running(Server(*binlog)) as server, Wire(server) as wire:
                    note("put, one connection", contender, putting(wire, server, few, 1))
                    put, taken = as_web_processes(server, few), as_workers(server, few)
                    note(f"put, {CONNECTIONS} connections", contender, put)
                    note(f"delete + reserve, {CONNECTIONS} connections", contender, taken)
                    note(costs_page.A_JOB, contender, put.with_each(taken))
                    note("put, 500 in a write", contender, putting(wire, server, many, 500))
                    reserving, deleting = in_batches(wire, server, many)
                    note("reserve, 100 in a write", contender, reserving)
                    note("delete, 100 in a write", contender, deleting)
    return list(costs.values()), list(rates.values())


# -- memory, and other costs that grow with numbers ----------------------------------------------------------


def bytes_per_job(size: int, count: int = 100_000) -> float:
    with running(Server()) as server, Wire(server) as wire:
        before = server.rss_bytes
        wire.put(count, b"x" * size, batch=100)
        return (server.rss_bytes - before) / count


def bytes_per_connection(command: bytes, count: int = 2_000) -> float:
    with running(Server()) as server:
        before = server.rss_bytes
        wires = [Wire(server) for _ in range(count)]
        for wire in wires:
            wire.send(command)
        with server.client() as client:
            wait_until(lambda: int(client.stats()["current-connections"]) == count + 1, "all are connected")
        cost = (server.rss_bytes - before) / count
        for wire in wires:
            wire.close()
        return cost


def bytes_per_tube(count: int = 5_000) -> float:
    with running(Server()) as server, Wire(server) as wire:
        before = server.rss_bytes
        watch_tubes(wire, count)
        return (server.rss_bytes - before) / count


def put_cpu_us(tubes: int, count: int = 30_000) -> float:
    with running(Server()) as server, Wire(server) as wire:
        watch_tubes(wire, tubes)
        return putting(wire, server, count, 500).cpu_s / count * 1e6


def watch_tubes(wire: Wire, count: int) -> None:
    for number in range(count):
        wire.ask(b"watch com.example/tube-%d\r\n" % number, 1, b"WATCHING", 1)


def restart(count: int = 200_000) -> tuple[float, float]:
    """Return how long a server with a number of jobs takes until it answers, and the bytes on disk of each."""
    with tempfile.TemporaryDirectory() as folder, running(Server("-b", folder)) as server:
        with Wire(server) as wire:
            wire.put(count)
        size = sum(file.stat().st_size for file in Path(folder).iterdir())
        server.kill()
        start = time.perf_counter()
        server.start()
        return time.perf_counter() - start, size / count


def measure_memory(rounds: int, progress: Callable[[str], None]) -> list[Figure]:
    server = costs_page.SERVER
    small, large = Figure(costs_page.SMALL, server, "B"), Figure(costs_page.LARGE, server, "B")
    idle = Figure(costs_page.CONNECTION, server, "B")
    waiting = Figure("connection, waiting in a reserve", server, "B")
    tube = Figure(costs_page.TUBE, server, "B")
    one, many = (
        Figure("put, one tube", server, "µs CPU"),
        Figure("put, 1,000 tubes", server, "µs CPU"),
    )
    factor = Figure(costs_page.MANY_TUBES, server, "times")
    replay = Figure("restart with 200,000 jobs of 100 B in the binlog", server, "s")
    disk = Figure("binlog of a waiting job of 100 B", server, "B")
    for number in range(rounds):
        progress(f"memory, round {number + 1}")
        small.values.append(bytes_per_job(100))
        large.values.append(bytes_per_job(1000))
        idle.values.append(bytes_per_connection(b""))
        waiting.values.append(bytes_per_connection(b"reserve\r\n"))
        tube.values.append(bytes_per_tube())
        one.values.append(put_cpu_us(1))
        many.values.append(put_cpu_us(1_000))
        replay_s, disk_bytes = restart()
        replay.values.append(replay_s)
        disk.values.append(disk_bytes)
    factor.values.extend(many.ratios_to(one))
    return [small, large, idle, waiting, tube, one, many, factor, replay, disk]


# -- workers -------------------------------------------------------------------------------------------------


def create_app() -> Flask:
    """Return the app of the measured workers: a bare Flask app with a no-op task."""
    from flask import Flask

    from flask_backend import Backend

    app = Flask(__name__)

    @Backend(app).task(QUEUE)
    def nothing(number: int) -> None:
        pass

    return app


@contextmanager
def workers(server: Server, count: int, *options: str) -> Iterator[Supervised]:
    with tempfile.TemporaryDirectory() as folder:
        supervised = Supervised(server, Path(folder), *options, workers=count, app=__file__)
        try:
            supervised.wait_ready()
            yield supervised
        finally:
            supervised.end()


def put_nothing(server: Server, count: int) -> None:
    with Wire(server) as wire:
        wire.ask(b"use %b\r\n" % QUEUE.encode(), 1, b"USING", 1)
        wire.put(count, json.dumps({"endpoint": "nothing", "args": [1]}).encode())


def worker_us(*options: str, count: int = 20_000) -> tuple[float, float, float]:
    """Return the CPU time of a no-op job in a worker, and in the server excluding the put; and the wall time."""
    with running(Server()) as server, workers(server, 1, *options) as supervised:
        pid = supervised.workers()[0]
        put_nothing(server, 500)
        wait_until(lambda: server.is_empty(QUEUE), "it is warm")
        with server.client(QUEUE) as client:
            client.pause_tube(QUEUE, 60)
            put_nothing(server, count)
            before, server_before, start = cpu_s(pid), server.cpu_s, time.perf_counter()
            client.pause_tube(QUEUE, 0)
            wait_until(lambda: server.is_empty(QUEUE), "all are done", 60)
        wall_s = time.perf_counter() - start
        used, used_by_server = cpu_s(pid) - before, server.cpu_s - server_before
        return used / count * 1e6, used_by_server / count * 1e6, wall_s / count * 1e6


def bare_us(count: int = 20_000) -> float:
    """Return the CPU time of the same job in a bare loop over greenstalk."""
    with running(Server()) as server:
        put_nothing(server, count)
        with greenstalk.Client(("127.0.0.1", server.port), encoding=None, watch=QUEUE) as client:
            start = time.process_time()
            for _ in range(count):
                job = client.reserve()
                json.loads(job.body)
                client.delete(job)
            return (time.process_time() - start) / count * 1e6


def memory_of(count: int) -> tuple[float, float]:
    """Return the proportional memory of a supervisor and its workers, and a worker's own, once all have run tasks."""
    with running(Server()) as server, workers(server, count) as supervised:
        put_nothing(server, 500 * count)
        wait_until(lambda: server.is_empty(QUEUE), "all are done", 60)
        pids = supervised.workers()
        infos = [psutil.Process(pid).memory_full_info() for pid in (*pids, supervised.pid)]
        return sum(info.pss for info in infos), statistics.median(info.uss for info in infos[:-1])


def measure_workers(rounds: int, progress: Callable[[str], None]) -> list[Figure]:
    ours, bare = (
        Figure("no-op job", "worker", "µs CPU"),
        Figure("no-op job, bare greenstalk loop", "bare", "µs CPU"),
    )
    server = Figure("no-op job of one worker, beanstalkd's part without the put", "beanstalkd", "µs CPU")
    rate = Figure("no-op jobs, one worker", "worker", "1/s")
    ours_8 = Figure(f"no-op job, {PREFETCH}", "prefetching worker", "µs CPU")
    server_8 = Figure(f"beanstalkd's part, {PREFETCH}", "beanstalkd", "µs CPU")
    rate_8 = Figure(f"no-op jobs, one worker, {PREFETCH}", "prefetching worker", "1/s")
    gain = Figure(f"rate, {PREFETCH} against none", "prefetching worker", "times")
    factor = Figure("no-op job, worker against bare loop", "worker", "times")
    own = Figure("memory of a worker that no other process shares (USS)", "worker", "MB")
    further = Figure("memory that a further worker adds in all (PSS)", "worker", "MB")
    first = Figure("supervisor with one worker (PSS)", "worker", "MB")
    for number in range(rounds):
        progress(f"workers, round {number + 1}")
        cpu_us, server_us, wall_us = worker_us()
        ours.values.append(cpu_us)
        server.values.append(server_us)
        rate.values.append(1e6 / wall_us)
        cpu_us, server_us, wall_us = worker_us(*PREFETCH.split())
        ours_8.values.append(cpu_us)
        server_8.values.append(server_us)
        rate_8.values.append(1e6 / wall_us)
        bare.values.append(bare_us())
        alone, _ = memory_of(1)
        together, uss = memory_of(9)
        first.values.append(alone / 1e6)
        own.values.append(uss / 1e6)
        further.values.append((together - alone) / 8 / 1e6)
    factor.values.extend(ours.ratios_to(bare))
    gain.values.extend(rate_8.ratios_to(rate))
    return [ours, bare, factor, rate, server, ours_8, rate_8, gain, server_8, first, further, own]


# -- output --------------------------------------------------------------------------------------------------


def measure(section: str, rounds: int, progress: Callable[[str], None]) -> list[Figure]:
    if section == "server":
        costs, rates = measure_server(rounds, progress)
        return [*costs, *rates]
    return {"memory": measure_memory, "workers": measure_workers}[section](rounds, progress)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", choices=["server", "memory", "workers"])
    parser.add_argument("--write", action="store_true", help="into docs/explain/scaling.* too")
    options = parser.parse_args()
    for section in [options.only] if options.only else ["server", "memory", "workers"]:
        figures = measure(section, options.rounds, lambda line: print(line, file=sys.stderr))
        print(costs_page.tables(section, figures), end="\n\n", flush=True)
        if options.write:
            measured = costs_page.section_of(machine.describe(), options.rounds, figures)
            costs_page.write(costs_page.read() | {section: measured})


if __name__ == "__main__":
    main()
