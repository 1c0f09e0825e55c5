"""Measure what a supervisor under full load pays for being watched.

Usage: python benchmarks/watched.py [--seconds N]. Workers run no-op jobs without a pause. Prints the supervisor's CPU
time as a share of one core: alone, and while `status --watch` shows it each second and a probe checks it twice as
often.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import psutil
from support.beanstalkd import RealBeanstalkd
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


def share(supervisor: psutil.Process, seconds: float, *, is_watched: bool) -> float:
    """Return the share of a core that the supervisor takes, in percent."""
    watching = None
    if is_watched:
        watching = subprocess.Popen([*COMMAND, "status", "--watch"], stdout=subprocess.DEVNULL)
    before, began = supervisor.cpu_times(), time.monotonic()
    while time.monotonic() < began + seconds:
        if is_watched:
            subprocess.run([*COMMAND, "health"], stdout=subprocess.DEVNULL, check=True)
        time.sleep(0.5)  # the interval of the probe, which is a part of what is measured
    after = supervisor.cpu_times()
    if watching:
        watching.terminate()
        watching.wait()
    return 100 * (after.user + after.system - before.user - before.system) / (time.monotonic() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=20)
    options = parser.parse_args()
    broker = RealBeanstalkd()
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "app.py").write_text(APP)
        environment = {**os.environ, "BACKEND_CONNECTION_URI": f"btq://127.0.0.1:{broker.port}"}
        supervise = [*COMMAND, "supervise", "--workers", str(WORKERS)]
        process = subprocess.Popen(supervise, cwd=folder, env=environment, stderr=subprocess.DEVNULL)
        try:
            for _ in range(2 * WORKERS):
                call = [*COMMAND, "call", "--yes", "again"]
                subprocess.run(call, cwd=folder, env=environment, stdout=subprocess.DEVNULL, check=True)
            supervisor = psutil.Process(process.pid)
            check = partial(subprocess.run, [*COMMAND, "health"], capture_output=True, check=False)
            wait_until(lambda: check().returncode == 0, "a healthy supervisor")
            for is_watched in (False, True, False, True):
                percent = share(supervisor, options.seconds, is_watched=is_watched)
                print(f"{'watched' if is_watched else 'alone':<8}{percent:6.2f} %", flush=True)
        finally:
            process.kill()
            process.wait()
            broker.stop()


if __name__ == "__main__":
    main()
