"""Our broker, started as users start it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import psutil
from support.beanstalkd import RealBeanstalkd

COMMAND = [sys.executable, "-m", "flask_backend", "broker"]
QUIET = {**os.environ, "PYTHONWARNINGS": "error"}


class Embedded:
    """The embedded broker on a free port; with ``file`` its jobs survive a restart."""

    release = (1, 13)  # same replies as this server

    def __init__(self, file: Path | None = None, max_job_size: int = 65535, port: int = 0) -> None:
        self._args = ["--port", str(port), "--max-job-size", str(max_job_size)]
        if file is not None:
            self._args += ["--file", str(file)]
        self.start()

    def start(self) -> None:
        """Start it, or start it again after it has ended."""
        self.process = subprocess.Popen([*COMMAND, *self._args], stderr=subprocess.PIPE, env=QUIET)
        self.announcement = self.process.stderr.readline().decode()
        found = re.search(r"broker at 127\.0\.0\.1:(\d+), ", self.announcement)
        assert found, self.announcement + self.process.stderr.read().decode()
        self.port = int(found[1])

    def kill(self) -> None:
        self._send(signal.SIGKILL)
        self.wait()

    def stop(self) -> None:
        """Stop it, which produces no output."""
        self._send(signal.SIGTERM)
        assert self.wait() == (0, "")

    def wait(self) -> tuple[int, str]:
        """Wait until it has ended; return its exit code and the end of its output."""
        code, stderr = self.process.wait(10), self.process.stderr
        if stderr.closed:
            return code, ""
        with stderr:
            return code, stderr.read().decode()

    def memory_bytes(self) -> int:
        return psutil.Process(self.process.pid).memory_info().rss

    def _send(self, number: signal.Signals) -> None:
        if self.process.poll() is None:
            self.process.send_signal(number)


def run(*args: str, **env: str) -> tuple[int, str]:
    """Run a broker that is expected to end by itself; return its exit code and its output."""
    command = [*COMMAND, "--port", "0", *args]
    done = subprocess.run(command, env={**QUIET, **env}, capture_output=True, text=True, timeout=20)
    assert done.stdout == ""
    return done.returncode, done.stderr


START = {"real": RealBeanstalkd, "embedded": Embedded}
