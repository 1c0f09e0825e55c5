"""How fast a supervisor replaces a killed worker and drains, beside what the machine itself needs for it.

Usage: python benchmarks/supervision.py [--rounds N] [--ballast-mb N]. Starts its own beanstalkd and supervisor;
prints medians and ranges, as text. Times depend on the machine: compare numbers of one run only.
"""

from __future__ import annotations

import argparse
import os
import signal
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


def bare_fork_ms(ballast: bytearray) -> float:
    """Time a fork of a process with that much memory, to the child's first word."""
    read_end, write_end = os.pipe()
    start = time.perf_counter()
    pid = os.fork()
    if pid == 0:
        os.write(write_end, ballast[:1])
        os._exit(0)
    os.read(read_end, 1)
    elapsed = time.perf_counter() - start
    os.waitpid(pid, 0)
    os.close(read_end)
    os.close(write_end)
    return elapsed * 1000


def replacement_ms(supervised: Supervised, broker: Beanstalkd) -> float:
    """Time from the kill of an idle worker to the moment when its replacement waits for jobs."""
    with broker.client() as client:
        before = client.stats()["total-connections"]
        victim = min(supervised.workers())
        start = time.perf_counter()
        os.kill(victim, signal.SIGKILL)
        while (stats := client.stats())["total-connections"] == before or stats["current-waiting"] < supervised.size:
            pass
        return (time.perf_counter() - start) * 1000


def drain_ms(broker: Beanstalkd, ballast_mb: int, workers: int = 4) -> float:
    """Time from TERM to the end of a supervisor with idle workers."""
    with tempfile.TemporaryDirectory() as folder:
        supervised = Supervised(broker, Path(folder), workers=workers, BALLAST_MB=str(ballast_mb))
        try:
            supervised.wait_ready()
            start = time.perf_counter()
            supervised.send(signal.SIGTERM)
            supervised.process.wait(20)
            return (time.perf_counter() - start) * 1000
        finally:
            supervised.end()


def show(name: str, values: list[float]) -> None:
    ordered = sorted(values)
    print(
        f"{name:<52} median {statistics.median(ordered):7.1f} ms   p90 {ordered[int(len(ordered) * 0.9)]:7.1f} ms   "
        f"{ordered[0]:.1f} to {ordered[-1]:.1f} (n={len(ordered)})"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--ballast-mb", type=int, default=200)
    options = parser.parse_args()
    broker = Beanstalkd()
    try:
        ballast = bytearray(os.urandom(options.ballast_mb << 20))
        show(f"bare fork of {options.ballast_mb} MB", [bare_fork_ms(ballast) for _ in range(options.rounds)])
        with tempfile.TemporaryDirectory() as folder:
            supervised = Supervised(broker, Path(folder), workers=4, BALLAST_MB=str(options.ballast_mb))
            try:
                supervised.wait_ready()
                times: list[float] = []
                for _ in range(options.rounds):
                    times.append(replacement_ms(supervised, broker))
                    # Workers that only die are given up: let them do something.
                    broker.put(QUEUE, b'{"endpoint": "pid"}')
                    wait_until(lambda: broker.is_empty(QUEUE), "the task is done")
                    supervised.wait_reserving(4)
                show(f"kill -9 to a replacement that reserves, {options.ballast_mb} MB app", times)
            finally:
                supervised.end()
        rounds = max(5, options.rounds // 4)
        show("TERM to exit, 4 idle workers", [drain_ms(broker, 0) for _ in range(rounds)])
        show(
            f"TERM to exit, 4 idle workers, {options.ballast_mb} MB app",
            [drain_ms(broker, options.ballast_mb) for _ in range(rounds)],
        )
    finally:
        broker.stop()


if __name__ == "__main__":
    main()
