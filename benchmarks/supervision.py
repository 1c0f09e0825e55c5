"""Measure how fast a supervisor starts, replaces and ends its workers, and its load while idle.

Usage: python benchmarks/supervision.py [--rounds N] [--only TEXT]. Starts its own beanstalkd and supervisors; prints
medians, ranges and ratios, as text. Times depend on the machine: compare numbers of one run only.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from cpu import cpu_s
from figures import Figure, Goal
from printing import Part, main, measure_parts
from records import make_records
from support.beanstalkd import Beanstalkd
from support.supervised import Supervised
from support.waiting import wait_until
from support.workload import QUEUE

APP = Path(__file__).with_name("preloaded.py")
OURS = "ours"
FORK = "bare fork"
IMPORT = "import of the app"
BIG_MB = 200
CROWD = 200
CROWDS = (50, 100, CROWD)
IDLE_S = 60.0
MOST_IDLE_ROUNDS = 2  # they take long, and hardly differ
KILLS = 25  # in each round
SLOW_S = 2.0

IDLE_CPU = f"idle for {IDLE_S:g} s, 4 workers and supervisor: CPU"
IDLE_WAKE_UPS = f"idle for {IDLE_S:g} s, 4 workers and supervisor: wake-ups"
START_TINY = "command to 8 workers ready, tiny app"
START_SLOW = f"command to 8 workers ready, app that computes for {SLOW_S:g} s"
REPLACEMENT = f"kill -9 to a replacement that reserves, {BIG_MB} MB app"
REPLACEMENT_P99 = f"{REPLACEMENT}: p99 of all rounds"
END = "TERM to the whole tree gone, 4 idle workers"
END_BIG = f"{END}, {BIG_MB} MB app"
CROWD_CPU = f"idle, {CROWD} workers: the supervisor's CPU"
CROWD_KILLED = "kill -9 to a replacement that reserves, one of many workers"

GOALS = [
    Goal(IDLE_CPU, OURS, 0.2, is_at_least=False),
    Goal(IDLE_WAKE_UPS, OURS, 10, is_at_least=False),
    Goal(START_TINY, OURS, 1.2, is_at_least=False, against=IMPORT),
    Goal(START_SLOW, OURS, 1.2, is_at_least=False, against=IMPORT),
    Goal(REPLACEMENT, OURS, 60, is_at_least=False),
    Goal(REPLACEMENT_P99, OURS, 150, is_at_least=False),
    Goal(END, OURS, 60, is_at_least=False),
    Goal(END_BIG, OURS, 60, is_at_least=False),
    Goal(CROWD_CPU, OURS, 1, is_at_least=False),
    Goal(CROWD_KILLED, f"{CROWD} workers", CROWD / CROWDS[0], is_at_least=False, against=f"{CROWDS[0]} workers"),
]


@contextmanager
def supervised(broker: Beanstalkd, *args: str, workers: int, **env: str) -> Iterator[Supervised]:
    """Run a supervisor of the preloaded app whose workers wait for jobs."""
    with tempfile.TemporaryDirectory() as folder:
        process = Supervised(broker, Path(folder), *args, workers=workers, app=str(APP), **env)
        try:
            process.wait_ready()
            yield process
        finally:
            process.end()


def wake_ups(pid: int) -> int:
    """Count how often a thread of a process has blocked."""
    texts = [task.read_text() for task in Path(f"/proc/{pid}/task").glob("*/status")]
    return sum(int(text.split("\nvoluntary_ctxt_switches:")[1].split()[0]) for text in texts)


def measure_idle(broker: Beanstalkd, rounds: int) -> list[Figure]:
    cpu, wakes = Figure(IDLE_CPU, OURS, "s"), Figure(IDLE_WAKE_UPS, OURS, "per second")
    with supervised(broker, workers=4) as process:
        time.sleep(1)  # work left over from the start
        pids = [process.pid, *process.workers()]
        for _ in range(min(rounds, MOST_IDLE_ROUNDS)):
            before = sum(map(cpu_s, pids)), sum(map(wake_ups, pids))
            time.sleep(IDLE_S)
            cpu.values.append(sum(map(cpu_s, pids)) - before[0])
            wakes.values.append((sum(map(wake_ups, pids)) - before[1]) / IDLE_S)
    return [cpu, wakes]


def measure_start(broker: Beanstalkd, rounds: int) -> list[Figure]:
    figures: list[Figure] = []
    for name, import_s in ((START_TINY, 0.0), (START_SLOW, SLOW_S)):
        ours, bare = Figure(name, OURS, "ms"), Figure(name, IMPORT, "ms")
        for _ in range(rounds):
            bare.values.append(import_ms(import_s))
            ours.values.append(start_ms(broker, import_s))
        figures += [ours, bare]
    return figures


def import_ms(import_s: float) -> float:
    """Time an interpreter that only imports the app."""
    environment = {**os.environ, "IMPORT_S": str(import_s)}
    start = time.perf_counter()
    command = [sys.executable, "-c", "import preloaded, os; os._exit(0)"]
    subprocess.run(command, env=environment, cwd=APP.parent, check=True)
    return (time.perf_counter() - start) * 1000


def start_ms(broker: Beanstalkd, import_s: float) -> float:
    """Time the command, until all 8 workers wait for jobs."""
    with tempfile.TemporaryDirectory() as folder, broker.client() as client:
        start = time.perf_counter()
        process = Supervised(broker, Path(folder), workers=8, app=str(APP), IMPORT_S=str(import_s))
        try:
            while client.stats()["current-waiting"] < 8:
                time.sleep(0.001)
            return (time.perf_counter() - start) * 1000
        finally:
            process.end()


def measure_replacement(broker: Beanstalkd, rounds: int) -> list[Figure]:
    ours, p99 = Figure(REPLACEMENT, OURS, "ms"), Figure(REPLACEMENT_P99, OURS, "ms")
    bare = Figure(REPLACEMENT, FORK, "ms")
    objects = make_records(BIG_MB)
    with supervised(broker, workers=4, OBJECTS_MB=str(BIG_MB)) as process:
        for _ in range(rounds * KILLS):
            bare.values.append(bare_fork_ms())
            ours.values.append(replacement_ms(process, broker))
    objects.clear()
    p99.values.append(sorted(ours.values)[int(len(ours.values) * 0.99)])
    return [ours, bare, p99]


def bare_fork_ms() -> float:
    """Time a fork of this process, to the child's first output."""
    read_end, write_end = os.pipe()
    start = time.perf_counter()
    pid = os.fork()
    if pid == 0:
        os.write(write_end, b"!")
        os._exit(0)
    os.read(read_end, 1)
    elapsed = time.perf_counter() - start
    os.waitpid(pid, 0)
    os.close(read_end)
    os.close(write_end)
    return elapsed * 1000


def replacement_ms(process: Supervised, broker: Beanstalkd) -> float:
    """Time from the kill of an idle worker until its replacement waits for jobs."""
    with broker.client() as client:
        before = client.stats()["total-connections"]
        victim = min(process.workers())
        start = time.perf_counter()
        os.kill(victim, signal.SIGKILL)
        while (stats := client.stats())["total-connections"] == before or stats["current-waiting"] < process.size:
            time.sleep(0.0005)  # not at the expense of the measured workers
        elapsed = time.perf_counter() - start
    # Workers that only die are given up: let them do something.
    broker.put(QUEUE, b'{"endpoint": "nothing"}')
    wait_until(lambda: broker.is_empty(QUEUE), "the task is done")
    process.wait_reserving(process.size)
    return elapsed * 1000


def measure_end(broker: Beanstalkd, rounds: int) -> list[Figure]:
    figures: list[Figure] = []
    for name, objects_mb in ((END, 0), (END_BIG, BIG_MB)):
        figure = Figure(name, OURS, "ms")
        for _ in range(2 * rounds):
            with supervised(broker, workers=4, OBJECTS_MB=str(objects_mb)) as process:
                start = time.perf_counter()
                process.send(signal.SIGTERM)
                process.wait()  # the last process of the tree: it waits for its workers
                figure.values.append((time.perf_counter() - start) * 1000)
        figures.append(figure)
    return figures


def measure_crowd(broker: Beanstalkd, rounds: int) -> list[Figure]:
    cpu = Figure(CROWD_CPU, OURS, "% of a CPU")
    figures = [Figure(CROWD_KILLED, f"{size} workers", "ms") for size in CROWDS]
    for figure, size in zip(figures, CROWDS, strict=True):
        with supervised(broker, "--max-memory", "1G", workers=size) as process:
            time.sleep(1)
            figure.values.extend(replacement_ms(process, broker) for _ in range(rounds * KILLS // 5))
            if size == CROWD:
                for _ in range(min(rounds, MOST_IDLE_ROUNDS)):
                    before = cpu_s(process.pid)
                    time.sleep(IDLE_S / 6)
                    cpu.values.append((cpu_s(process.pid) - before) / (IDLE_S / 6) * 100)
    return [cpu, *figures]


PARTS: list[Part] = [
    measure_idle,
    measure_start,
    measure_replacement,
    measure_end,
    measure_crowd,
]


def measure(rounds: int) -> list[Figure]:
    return measure_parts(PARTS, rounds)


if __name__ == "__main__":
    main(__doc__, PARTS, GOALS, rounds=5)
