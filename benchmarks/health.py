"""Compare the CPU time of a health check with that of an interpreter that does nothing.

Usage: python benchmarks/health.py [--rounds N]. It starts a broker and a supervisor. Prints the median of each command
and its ratio to `python -c pass`. A part of the ratio of `-m` is Python's own runpy.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from support.beanstalkd import RealBeanstalkd
from support.waiting import wait_until

APP = """
from flask import Flask
from flask_backend import Backend
app = Flask(__name__)
backend = Backend(app)
backend.task("q")(print)
"""
COMMANDS = {
    "python -c pass": [sys.executable, "-c", "pass"],
    "runpy alone": [sys.executable, "-m", "__future__"],
    "python -m flask_backend health": [sys.executable, "-m", "flask_backend", "health"],
    "flask-backend health": [str(Path(sys.executable).with_name("flask-backend")), "health"],
}


def cpu_ms(command: list[str]) -> float:
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{command} failed")
    return (usage.ru_utime + usage.ru_stime) * 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=41)
    options = parser.parse_args()
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # an installed package is compiled
    broker = RealBeanstalkd()
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "app.py").write_text(APP)
        environment = {**os.environ, "BACKEND_CONNECTION_URI": f"btq://127.0.0.1:{broker.port}"}
        supervise = [sys.executable, "-m", "flask_backend", "supervise", "--workers", "8"]
        supervisor = subprocess.Popen(supervise, cwd=folder, env=environment, stderr=subprocess.DEVNULL)
        try:
            check = partial(subprocess.run, COMMANDS["flask-backend health"], capture_output=True, check=False)
            wait_until(lambda: check().returncode == 0, "a healthy supervisor")
            times: dict[str, list[float]] = {name: [] for name in COMMANDS}
            for _ in range(options.rounds):
                for name, command in COMMANDS.items():
                    times[name].append(cpu_ms(command))
        finally:
            supervisor.terminate()
            supervisor.wait()
            broker.stop()
    base = statistics.median(times["python -c pass"])
    for name, values in times.items():
        print(f"{name:<32}{statistics.median(values):6.1f} ms  {statistics.median(values) / base:.2f}")


if __name__ == "__main__":
    main()
