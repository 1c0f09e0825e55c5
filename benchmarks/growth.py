"""Measure what grows with the number of waiting jobs: on Beanstalkd to a million, on the embedded broker to 300,000.

Usage: python benchmarks/growth.py [--rounds N] [--only beanstalkd|embedded]. Worker and broker share one core; the
rates are by their CPU time, which they then have to themselves. Prints medians, ranges and ratios, as text.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[1] / "tests")]

import psutil
from contenders import Server, load
from figures import Figure, Goal, find
from printing import show
from stage import Cores, Stage, set_up

FEW = 20_000
MANY = {Server.BEANSTALKD: 1_000_000, Server.EMBEDDED: 300_000}
JOBS = 10_000  # that a worker does while the others wait; all but the first and the last tenth are measured
MOST_ROUNDS = 3  # filling the queues takes most of the time

UNIT = "jobs/s of CPU"
RATE = "one worker and its broker on one core, while many jobs wait"
QUEUES = "flask-backend queues, while many jobs wait"
EMBEDDED_RATE = "one worker and the embedded broker on one core, while many jobs wait"
EMBEDDED_MEMORY = "memory of the embedded broker for each waiting job"


def waiting(count: int) -> str:
    return f"{count:,} wait"


MILLION, MANY_EMBEDDED = (waiting(count) for count in MANY.values())
GOALS = [
    Goal(RATE, MILLION, 0.75, is_at_least=True, against=waiting(FEW)),
    Goal(QUEUES, MILLION, 1.25, is_at_least=False, against=waiting(FEW)),
    Goal(EMBEDDED_RATE, MANY_EMBEDDED, 0.9, is_at_least=True, against=waiting(FEW)),
    Goal(EMBEDDED_MEMORY, MANY_EMBEDDED, 1, is_at_least=False),
]


def measure(rounds: int, only: str = "") -> list[Figure]:
    figures: list[Figure] = []
    for _ in range(min(rounds, MOST_ROUNDS)):
        for server in (server for server in MANY if only in server):
            for count in (FEW, MANY[server]):
                for name, unit, value in _measure(server, count):
                    figure = find(figures, name, waiting(count))
                    if figure is None:
                        figures.append(figure := Figure(name, waiting(count), unit))
                    figure.values.append(value)
    return sorted(figures, key=lambda figure: figure.name)


def _measure(server: Server, count: int) -> list[tuple[str, str, float]]:
    """Fill a queue, look at it, and have a worker do the first of its jobs; return figures' names, units and values."""
    contender = replace(load("ours").CONTENDERS[0], server=server)
    with set_up(contender, Cores.ONE) as stage:
        broker = psutil.Process(stage.broker.pid)
        before = broker.memory_info().rss
        stage.call("fill", count)
        memory_kb = (broker.memory_info().rss - before) / count / 1000
        queues_s = _queues_s(stage)
        with stage.workers(1) as workers:
            rate = 1e6 / stage.spend_on_jobs(JOBS, workers)
    if server is Server.EMBEDDED:
        return [(EMBEDDED_RATE, UNIT, rate), (EMBEDDED_MEMORY, "kB", memory_kb)]
    return [(RATE, UNIT, rate), (QUEUES, "s", queues_s)]


def _queues_s(stage: Stage) -> float:
    environment = {**os.environ, "BACKEND_CONNECTION_URI": f"btq://127.0.0.1:{stage.broker.port}"}
    start = time.perf_counter()
    command = [sys.executable, "-m", "flask_backend", "queues"]
    subprocess.run(command, env=environment, capture_output=True, check=True)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=MOST_ROUNDS)
    parser.add_argument("--only", default="", choices=["", *MANY])
    options = parser.parse_args()
    show(measure(options.rounds, options.only), GOALS)


if __name__ == "__main__":
    main()
