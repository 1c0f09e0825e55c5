"""Measure what an idle supervisor costs, with a fixed number of workers and with a range.

Usage: python benchmarks/idle.py [--seconds N]. Prints the CPU time a minute and the wake-ups a second of the supervisor
and of the helper that looks at the queues, and the memory of the helper.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
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
def hello():
    pass
"""


def measure(processes: dict[str, psutil.Process], seconds: float) -> dict[str, tuple[float, float]]:
    """Return the CPU seconds a minute and the wake-ups a second of each process."""

    def look() -> dict[str, tuple[float, int]]:
        times = {name: (process.cpu_times(), process.num_ctx_switches()) for name, process in processes.items()}
        return {name: (cpu.user + cpu.system, switches.voluntary) for name, (cpu, switches) in times.items()}

    before = look()
    time.sleep(seconds)  # the time that is measured
    after = look()
    return {
        name: ((cpu - before[name][0]) * 60 / seconds, (switches - before[name][1]) / seconds)
        for name, (cpu, switches) in after.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60)
    options = parser.parse_args()
    broker = RealBeanstalkd()
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "app.py").write_text(APP)
        environment = {**os.environ, **broker.env}
        for workers in ("2", "2..8"):
            command = [sys.executable, "-m", "flask_backend", "supervise", "--workers", workers]
            running = subprocess.Popen(command, cwd=folder, env=environment, stderr=subprocess.DEVNULL)
            try:
                wait_until(lambda: broker.waiting("q") == 2, "two workers")
                supervisor = psutil.Process(running.pid)
                processes = {"supervisor": supervisor}
                if ".." in workers:
                    [processes["helper"]] = wait_until(lambda s=supervisor: find_helper(s), "the helper")
                for name, (cpu_s, wakeups) in measure(processes, options.seconds).items():
                    memory = processes[name].memory_full_info()
                    print(
                        f"--workers {workers:<5} {name:<11}{cpu_s:6.3f} s CPU a minute {wakeups:5.1f} wake-ups a second"
                        f"{memory.uss / (1 << 20):6.1f} MB private{memory.pss / (1 << 20):6.1f} MB PSS",
                        flush=True,
                    )
            finally:
                running.terminate()
                running.wait()
    broker.stop()


def find_helper(supervisor: psutil.Process) -> list[psutil.Process]:
    return [child for child in supervisor.children() if "looks at the queues" in " ".join(child.cmdline())]


if __name__ == "__main__":
    main()
