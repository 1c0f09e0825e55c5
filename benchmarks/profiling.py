"""Profile a worker that does no-op jobs with everything that a supervised worker has.

Usage: python benchmarks/profiling.py [--jobs N] [--prefetch N] [--top N]. The worker and its broker share one core, so
so that neither waits for another core to wake up. Prints the CPU time of a job without the profiler, then the profile.
"""

from __future__ import annotations

import argparse
import cProfile
import os
import pstats
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from flask import Flask
from support.beanstalkd import RealBeanstalkd

from flask_backend import Backend
from flask_backend.supervisor.scoreboard import Scoreboard
from flask_backend.worker.host import Foreground
from flask_backend.worker.limits import Limits
from flask_backend.worker.worker import Worker

QUEUE = "q"


class Host(Foreground):
    """Keep a row of a scoreboard, as a supervisor's child does."""

    def __init__(self, labels: list[str]) -> None:
        super().__init__(QUEUE)
        row = Scoreboard({QUEUE: labels}, 1).take(QUEUE)
        self.live, self.begin, self.run, self.end = row.live, row.begin, row.run, row.end


def work(port: int, jobs: int, prefetch: int, profile: cProfile.Profile | None) -> float:
    """Run a number of jobs in this process; return the µs of CPU of each."""
    app = Flask(__name__)
    app.config["BACKEND_CONNECTION_URI"] = f"btq://127.0.0.1:{port}"
    backend = Backend(app)
    started = 0.0

    @backend.task(QUEUE)
    def hello(_name: str) -> None:
        pass

    @backend.task(QUEUE)
    def begin() -> None:
        nonlocal started
        started = time.process_time()
        if profile:
            profile.enable()

    @backend.task(QUEUE)
    def end() -> None:
        if profile:
            profile.disable()
        nonlocal started
        started = time.process_time() - started
        os.kill(os.getpid(), signal.SIGTERM)

    begin()
    hello.map("x" for _ in range(jobs))
    end()
    limits = Limits(25, time_limit_s=60, prefetch=prefetch)
    handlers = backend.queues[QUEUE]
    Worker(app, backend.settings_of(app), handlers, Host(handlers.names), limits).run()
    return started / jobs * 1e6


def in_a_process(port: int, jobs: int, prefetch: int, top: int | None) -> None:
    """Work in a separate process, since a worker's signal handlers stay."""
    if os.fork() == 0:
        profile = cProfile.Profile() if top else None
        cpu_us = work(port, jobs, prefetch, profile)
        if profile:
            pstats.Stats(profile).sort_stats("tottime").print_stats(top or 0)
        else:
            print(f"{jobs} jobs, --prefetch {prefetch}: {cpu_us:.1f} us of CPU each", flush=True)
        sys.stdout.flush()
        os._exit(0)
    os.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=30_000)
    parser.add_argument("--prefetch", type=int, default=1)
    parser.add_argument("--top", type=int, default=25)
    options = parser.parse_args()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    broker = RealBeanstalkd()
    try:
        for top in (None, None, None, options.top):
            in_a_process(broker.port, options.jobs, options.prefetch, top)
    finally:
        broker.stop()


if __name__ == "__main__":
    main()
