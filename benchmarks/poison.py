"""Measure what jobs that kill their worker cost the good ones beside them.

Usage: python benchmarks/poison.py [--rounds N] [--job-ms N]. In each round 2,000 good jobs run in 4 workers, alone and
then with 10 poison jobs among them, of five kinds. Prints the times, their ratio, the crashes, and the jobs buried.
The ratio depends on the length of the good jobs: a hang or a memory hog costs a worker the same time for all.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from support.beanstalkd import Beanstalkd
from support.supervised import Supervised
from support.waiting import wait_until
from support.workload import QUEUE

GOOD = 2_000
POISON = [
    ("leave", ["kill"]),
    ("leave", ["segv"]),
    ("leave", ["exit 7"]),
    ("devour", []),
    ("limited", ["stubborn"]),
] * 2


def run(job_s: float, *, poisoned: bool) -> tuple[float, int, int]:
    """Return the seconds until all good jobs were done, the crashes, and the number of jobs finally buried."""
    jobs = [("sleep", [job_s, f"good {n}"]) for n in range(GOOD)]
    if poisoned:
        for index, job in enumerate(POISON):
            jobs.insert(index * GOOD // len(POISON), job)
    broker = Beanstalkd()
    with tempfile.TemporaryDirectory() as folder:
        options = ("--max-memory-hard", "150M", "--kill-grace", "0.5")
        supervised = Supervised(broker, Path(folder), *options, workers=4)
        try:
            supervised.wait_ready()
            with broker.client(QUEUE) as client:
                for endpoint, args in jobs:
                    client.put(json.dumps({"endpoint": endpoint, "args": args}).encode())
            start = time.perf_counter()
            wait_until(lambda: sum(x.startswith("good") for x in supervised.ledger) >= GOOD, "all are done", 120)
            took = time.perf_counter() - start
            wait_until(lambda: broker.jobs() == broker.count(QUEUE, "buried"), "only buried jobs are left", 120)
            return took, supervised.log.count("; replaced"), broker.count(QUEUE, "buried")
        finally:
            supervised.end()
            broker.stop()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--job-ms", type=float, default=10)
    options = parser.parse_args()
    ratios: list[float] = []
    for _ in range(options.rounds):
        alone, _, _ = run(options.job_ms / 1000, poisoned=False)
        beside, crashes, buried = run(options.job_ms / 1000, poisoned=True)
        ratios.append(beside / alone)
        ratio = f"{ratios[-1]:.2f} times"
        print(
            f"alone {alone:.2f} s, with poison {beside:.2f} s: {ratio}; {crashes} crashes, {buried} buried", flush=True
        )
    print(f"median {statistics.median(ratios):.2f} times, {min(ratios):.2f} to {max(ratios):.2f}")


if __name__ == "__main__":
    main()
