"""Measure what a supervisor under full load pays for being watched.

Usage: python benchmarks/watched.py [--seconds N] [--workers N]. Workers run no-op jobs without a pause. Prints the
supervisor's CPU time as a share of one core: alone; while `status --watch` shows it each second and a probe checks it
twice as often; while its metrics are scraped each second, with the CPU time of the helper that serves them, and its
memory; and while `top` shows it, with the CPU time of `top` itself.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import psutil
from support.beanstalkd import RealBeanstalkd
from support.terminal import Terminal
from support.waiting import wait_until

APP = """
from flask import Flask
from flask_backend import Backend
app = Flask(__name__)
backend = Backend(app)

@backend.task("q")
def again():
    again()
"""
COMMAND = [sys.executable, "-m", "flask_backend"]
WORKERS = 4
JOBS = 8  # that run at the same time, at most
ROUNDS = 2


def measure(processes: list[psutil.Process], seconds: float, tick: Callable[[], object], every_s: float) -> list[float]:
    """Return the share of a core that each process takes, in percent, while ``tick`` is called so often."""
    before, began = [_cpu_s(process) for process in processes], time.monotonic()
    while time.monotonic() < began + seconds:
        tick()
        time.sleep(every_s)  # the interval of the watcher, which is a part of what is measured
    took = time.monotonic() - began
    return [100 * (_cpu_s(process) - start) / took for process, start in zip(processes, before, strict=True)]


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


@contextmanager
def showing_status() -> Generator[None]:
    with subprocess.Popen([*COMMAND, "status", "--watch"], stdout=subprocess.DEVNULL) as watching:
        try:
            yield
        finally:
            watching.terminate()


@contextmanager
def showing_top(pid: int) -> Generator[tuple[psutil.Process, Terminal]]:
    """Yield `top`, once it has drawn its first screen, and its terminal."""
    terminal = Terminal()
    terminal.resize(140, 40)
    command = [*terminal.start(streams="012"), *COMMAND, "top", "--pid", str(pid)]
    with subprocess.Popen(command, env={**os.environ, "TERM": "xterm"}) as showing:
        try:
            terminal.wait_for(r"workers 1-\d+ of")
            yield psutil.Process(showing.pid), terminal
        finally:
            showing.terminate()
    terminal.close()


def is_healthy(pid: int) -> bool:
    return subprocess.run([*COMMAND, "health", "--pid", str(pid)], capture_output=True, check=False).returncode == 0


def scrape(url: str) -> None:
    with urllib.request.urlopen(url, timeout=20) as answer:  # noqa: S310  # that of our own supervisor
        answer.read()


def watch(supervisor: psutil.Process, url: str, seconds: float) -> None:
    """Measure in turn, and print each figure."""
    [helper] = [child for child in supervisor.children() if "[serves metrics]" in " ".join(child.cmdline())]
    for _ in range(ROUNDS):
        [alone] = measure([supervisor], seconds, lambda: None, 0.5)
        print(f"alone    {alone:6.2f} %", flush=True)
        with showing_status():
            [shown] = measure([supervisor], seconds, partial(is_healthy, supervisor.pid), 0.5)
        print(f"status   {shown:6.2f} %", flush=True)
        scraped, served = measure([supervisor, helper], seconds, partial(scrape, url), 1.0)
        memory = helper.memory_full_info().uss / (1 << 20)
        print(f"metrics  {scraped:6.2f} %, and the helper {served:.2f} % and {memory:.1f} MiB of its own", flush=True)
        with showing_top(supervisor.pid) as (top, terminal):
            shown, of_top = measure([supervisor, top], seconds, terminal.read, 0.5)
        print(f"top      {shown:6.2f} %, and top itself {of_top:.2f} %", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--workers", type=int, default=WORKERS)
    options = parser.parse_args()
    broker = RealBeanstalkd()
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "app.py").write_text(APP)
        log = Path(folder, "log")
        environment = {**os.environ, "BACKEND_CONNECTION_URI": f"btq://127.0.0.1:{broker.port}"}
        supervise = [*COMMAND, "supervise", "--workers", str(options.workers), "--metrics", "127.0.0.1:0"]
        with log.open("wb") as stderr:
            process = subprocess.Popen(supervise, cwd=folder, env=environment, stderr=stderr)
        try:
            for _ in range(min(JOBS, 2 * options.workers)):
                call = [*COMMAND, "call", "--yes", "again"]
                subprocess.run(call, cwd=folder, env=environment, stdout=subprocess.DEVNULL, check=True)
            supervisor = psutil.Process(process.pid)
            wait_until(lambda: is_healthy(process.pid), "a healthy supervisor")
            url = wait_until(lambda: re.search(r"metrics at (\S+)", log.read_text()), "the address of its metrics")[1]
            scrape(url)
            watch(supervisor, url, options.seconds)
        finally:
            process.kill()
            process.wait()
            broker.stop()


if __name__ == "__main__":
    main()
