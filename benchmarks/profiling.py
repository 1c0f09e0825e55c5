"""Profile a worker that does short jobs with everything that a supervised worker has.

Usage: python benchmarks/profiling.py [--log] [--prefetch N] [--jobs N] [--rounds N] [--top N]. The worker and its
broker share one core, so that neither waits for another core to wake up. Prints the CPU time of a job, in the worker
and in the broker, the same of a bare loop over greenstalk, and the profile of one more run; --top 0 leaves it out. With
--log the task logs a line, and stderr is /dev/null.

To compare two versions, run them in turn, each with its own PYTHONPATH: the machine changes more than most versions.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import logging
import os
import pstats
import signal
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import greenstalk
from cpu import cpu_s
from flask import Flask
from support.beanstalkd import RealBeanstalkd

from flask_backend import Backend, logs
from flask_backend.supervisor.scoreboard import Scoreboard
from flask_backend.system.loggers import delivery
from flask_backend.system.streams import streams
from flask_backend.worker.host import Foreground
from flask_backend.worker.options import WorkerOptions
from flask_backend.worker.worker import Worker

QUEUE = "q"


class Host(Foreground):
    """Keep a row of a scoreboard, as a supervisor's child does."""

    def __init__(self, labels: list[str]) -> None:
        super().__init__(QUEUE)
        row = Scoreboard({QUEUE: labels}, 1).take(QUEUE)
        self.live, self.begin, self.run, self.end = row.live, row.begin, row.run, row.end
        self.was_told_to_drain, self.count_wait = row.was_told_to_drain, row.count_wait


class Meter:
    """The CPU time of this process and of the broker between two moments, in µs for each job."""

    def __init__(self, broker_pid: int, jobs: int, profile: cProfile.Profile | None) -> None:
        self.took: tuple[float, float] = (0.0, 0.0)
        self._broker_pid = broker_pid
        self._jobs = jobs
        self._profile = profile
        self._started: tuple[float, float] = (0.0, 0.0)

    def begin(self) -> None:
        self._started = self._now()
        if self._profile:
            self._profile.enable()

    def end(self) -> None:
        if self._profile:
            self._profile.disable()
        ours, brokers = self._now()
        self.took = (ours - self._started[0]) / self._jobs * 1e6, (brokers - self._started[1]) / self._jobs * 1e6

    def _now(self) -> tuple[float, float]:
        return time.process_time(), cpu_s(self._broker_pid)


def work(port: int, options: argparse.Namespace, meter: Meter) -> None:
    """Run a number of jobs in this process."""
    app = Flask(__name__)
    app.config["BACKEND_CONNECTION_URI"] = f"btq://127.0.0.1:{port}"
    backend = Backend(app)
    if options.log:
        streams.install()
        delivery.protect()
        logs.configure(app)

    @backend.task(QUEUE)
    def hello(name: str) -> None:
        if options.log:
            app.logger.info("hello %s", name)

    @backend.task(QUEUE)
    def begin() -> None:
        meter.begin()

    @backend.task(QUEUE)
    def end() -> None:
        meter.end()
        os.kill(os.getpid(), signal.SIGTERM)

    hello("warm")
    begin()
    hello.map("x" for _ in range(options.jobs))
    end()
    worker_options = WorkerOptions(25, time_limit_s=60, prefetch=options.prefetch)
    handlers = backend.queues[QUEUE]
    Worker(app, backend.settings_of(app), handlers, Host(handlers.names), worker_options).run()


def loop(port: int, options: argparse.Namespace, meter: Meter) -> None:
    """Reserve, decode, call in an app context and delete, with greenstalk."""
    app = Flask(__name__)
    logging.basicConfig(level=logging.INFO, format=logs.FORMAT)
    body = json.dumps({"endpoint": "hello", "args": ["x"], "kwargs": {}, "headers": {"id": "0" * 32, "at": 1.5}})
    with greenstalk.Client(("127.0.0.1", port), use="bare", watch="bare") as client:
        for _ in range(options.jobs):
            client.put(body)
        meter.begin()
        for _ in range(options.jobs):
            job = client.reserve()
            message = json.loads(job.body)
            with app.app_context():
                if options.log:
                    app.logger.info("hello %s", *message["args"])
            client.delete(job)
        meter.end()


def in_a_process(
    run: Callable[[int, argparse.Namespace, Meter], None],
    broker: RealBeanstalkd,
    options: argparse.Namespace,
    top: int = 0,
) -> tuple[float, float]:
    """Work in a separate process, since a worker's signal handlers stay; return its CPU time and the broker's."""
    read_end, write_end = os.pipe()
    if os.fork() == 0:
        if options.log:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        profile = cProfile.Profile(time.process_time) if top else None
        meter = Meter(broker.process.pid, options.jobs, profile)
        run(broker.port, options, meter)
        if profile:
            pstats.Stats(profile).sort_stats("tottime").print_stats(top)
            sys.stdout.flush()
        os.write(write_end, json.dumps(meter.took).encode())
        os._exit(0)
    os.wait()
    ours, brokers = json.loads(os.read(read_end, 100))
    return ours, brokers


def show(name: str, rounds: list[tuple[float, float]]) -> None:
    ours, brokers = (statistics.median(values) for values in zip(*rounds, strict=True))
    together = [sum(each) for each in rounds]
    print(
        f"{name}: {ours:.1f} us of CPU for a job, and {brokers:.1f} of the broker: "
        f"{statistics.median(together):.1f} together ({min(together):.1f} to {max(together):.1f})",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--log", action="store_true")
    parser.add_argument("--prefetch", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--top", type=int, default=25)
    options = parser.parse_args()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    broker = RealBeanstalkd()
    try:
        rounds = [
            (in_a_process(work, broker, options), in_a_process(loop, broker, options)) for _ in range(options.rounds)
        ]
        if rounds:
            show(f"worker, --prefetch {options.prefetch}", [ours for ours, _ in rounds])
            show("bare loop in an app context", [bare for _, bare in rounds])
        if options.top:
            in_a_process(work, broker, options, options.top)
    finally:
        broker.stop()


if __name__ == "__main__":
    main()
