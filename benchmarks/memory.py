"""Measure how much memory workers need beyond that of the app they share.

Usage: python benchmarks/memory.py [--rounds N] [--only TEXT]. Linux only. Starts its own beanstalkd and supervisors;
prints medians, ranges and ratios, as text. For a comparison of ways to share more, see sharing.py.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from figures import Figure, Goal
from printing import Part, main, measure_parts
from supervision import OURS, supervised
from support.beanstalkd import Beanstalkd
from support.supervised import Supervised
from support.waiting import wait_until
from support.workload import QUEUE

from flask_backend.system.procfs import read_memory

MANY_MB, MANY_TASKS = 200, 10_000
FEW_MB = 100
MOST_ROUNDS = 3  # in a run of all benchmarks: they hardly differ
READS = 16  # by 4 workers
CEILING = "40M"
SETTLED_S = 3.0  # recycling checks memory every second, and takes one worker of a queue at a time
LIMITED = f"ours, --max-memory {CEILING}"
ONE_TASK = "ours, --max-tasks 1"
WAYS: dict[str, tuple[str, ...]] = {OURS: (), LIMITED: ("--max-memory", CEILING), ONE_TASK: ("--max-tasks", "1")}

PRIVATE = f"private memory, largest of 8 workers, {MANY_MB} MB app, {MANY_TASKS:,} tasks"
PSS = f"PSS of all, 4 workers, {FEW_MB} MB of objects, idle"
PSS_READ = f"PSS of all, 4 workers, {FEW_MB} MB of objects, {SETTLED_S:g} s after reads"
PSS_PEAK = f"PSS of all, 4 workers, {FEW_MB} MB of objects, at the end of reads"
RATE = "no-op tasks per second, 4 workers"

GOALS = [
    Goal(PRIVATE, OURS, 10, is_at_least=False),
    Goal(PSS, OURS, 170, is_at_least=False),
    Goal(PSS_READ, LIMITED, 300, is_at_least=False),
]


def measure_private(broker: Beanstalkd, rounds: int) -> list[Figure]:
    figure = Figure(PRIVATE, OURS, "% of app")
    for _ in range(rounds):
        with supervised(broker, workers=8, OBJECTS_MB=str(MANY_MB)) as process:
            run(broker, "nothing", MANY_TASKS)
            largest = max(memory.private_bytes for pid in process.workers() if (memory := read_memory(pid)))
            figure.values.append(largest / (MANY_MB << 20) * 100)
    return [figure]


def measure_pss(broker: Beanstalkd, rounds: int) -> list[Figure]:
    figures: list[Figure] = []
    for contender, arguments in WAYS.items():
        idle, peak, after = (Figure(name, contender, "MB") for name in (PSS, PSS_PEAK, PSS_READ))
        rate = Figure(RATE, contender, "tasks/s")
        for _ in range(rounds):
            with supervised(broker, *arguments, workers=4, OBJECTS_MB=str(FEW_MB)) as process:
                idle.values.append(pss_mb(process))
                run(broker, "read_all", READS)
                peak.values.append(pss_mb(process))
                time.sleep(SETTLED_S)
                process.wait_reserving(4)
                after.values.append(pss_mb(process))
                count = MANY_TASKS if contender != ONE_TASK else MANY_TASKS // 100
                rate.values.append(count / run(broker, "nothing", count))
        figures += [idle, peak, after, rate]
    return figures


def run(broker: Beanstalkd, endpoint: str, count: int) -> float:
    """Run a number of tasks; return the seconds from when all were scheduled."""
    with broker.client(QUEUE) as client:
        client.pause_tube(QUEUE, 600)
        for _ in range(count):
            client.put(json.dumps({"endpoint": endpoint}).encode())
        start = time.perf_counter()
        client.pause_tube(QUEUE, 0)
    wait_until(lambda: broker.is_empty(QUEUE), f"{count} tasks are done", 120)
    return time.perf_counter() - start


def pss_mb(process: Supervised) -> float:
    memories = [read_memory(pid) for pid in (process.pid, *process.workers())]
    return sum(memory.pss_bytes for memory in memories if memory) / (1 << 20)


PARTS: list[Part] = [measure_private, measure_pss]


def measure(rounds: int) -> list[Figure]:
    return measure_parts(PARTS, min(rounds, MOST_ROUNDS))


if __name__ == "__main__":
    main(__doc__, PARTS, GOALS, rounds=3)
