"""A real broker for each test: beanstalkd, or the embedded one."""

from __future__ import annotations

import functools
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path

import greenstalk
import pytest

from support.waiting import wait_until

STATES = ("ready", "reserved", "delayed", "buried")


# The server that the tests run on: beanstalkd where it is installed, or the one named in the environment.
PROGRAM = shutil.which("beanstalkd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/bin")
IS_EMBEDDED = os.environ.get("TEST_BROKER", "beanstalkd" if PROGRAM else "embedded") == "embedded"


class Beanstalkd:
    """A server on a free port of the loopback interface; with ``binlog`` its jobs survive a restart."""

    is_embedded = IS_EMBEDDED
    host = "127.0.0.1"
    under: Sequence[str] = ()  # a command that takes the server's as its arguments

    def __init__(self, binlog: Path | None = None, max_job_size: int = 65535) -> None:
        self.port = free_port()
        self.binlog = binlog
        if self.is_embedded:
            self._command = [*self.under, sys.executable, "-m", "flask_backend", "broker", "--listen", self.host]
            self._command += ["--port", str(self.port), "--max-job-size", str(max_job_size)]
            self._command += ["--file", str(binlog / "jobs.sqlite")] if binlog is not None else []
        else:
            program = PROGRAM or pytest.skip("no beanstalkd here")
            self._command = [*self.under, program, "-l", self.host, "-p", str(self.port), "-z", str(max_job_size)]
            self._command += ["-b", str(binlog), "-f0"] if binlog is not None else []
        self.start()

    @property
    def uri(self) -> str:
        return f"btq://{self.host}:{self.port}"

    @property
    def env(self) -> dict[str, str]:
        """The environment in which an app uses this server."""
        return {"BACKEND_CONNECTION_URI": self.uri}

    def start(self) -> None:
        # Not a pipe: beanstalkd writes a line about each broken connection, and blocks when a pipe is full.
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  # closed with the process
        self.process = subprocess.Popen(self._command, stderr=self._errors)
        wait_until(self._answers, "beanstalkd answers")

    @property
    def may_lose_a_job(self) -> bool:
        """Whether the release 1.12 may lose a job if it is killed now: it moves jobs between three files or more.

        It deletes the oldest file with the last job in it before it writes that job to the newest one.
        """
        return not self.is_embedded and self.binlog is not None and len(list(self.binlog.glob("binlog.*"))) > 2

    def kill(self) -> None:
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        self._end(signal.SIGTERM)

    def freeze(self) -> None:
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def address(self) -> tuple[str, int] | socket.socket:
        """Return the address of the server, or a connection to it, for a client."""
        return self.host, self.port

    @contextmanager
    def client(self, queue: str = "default"):
        with greenstalk.Client(self.address(), encoding=None, use=queue, watch=queue) as client:
            yield client

    def put(self, queue: str, body: bytes, **options: int) -> int:
        with self.client(queue) as client:
            return client.put(body, **options)

    def take(self, queue: str) -> bytes:
        """Reserve the next job, delete it and return its body."""
        with self.client(queue) as client:
            job = client.reserve(timeout=10)
            client.delete(job)
            return job.body

    def jobs(self) -> int:
        """Count the jobs of all queues."""
        with self.client() as client:
            stats = client.stats()
        return sum(stats[f"current-jobs-{state}"] for state in STATES)

    def tube(self, queue: str) -> dict:
        with self.client() as client:
            try:
                return dict(client.stats_tube(queue))
            except greenstalk.NotFoundError:  # a tube exists only while it is used or has jobs
                return {f"current-jobs-{state}": 0 for state in STATES} | {"current-waiting": 0}

    def count(self, queue: str, state: str) -> int:
        return self.tube(queue)[f"current-jobs-{state}"]

    def waiting(self, queue: str) -> int:
        """Count the workers that wait in a reserve."""
        return self.tube(queue)["current-waiting"]

    def is_empty(self, queue: str) -> bool:
        stats = self.tube(queue)
        return not any(stats[f"current-jobs-{state}"] for state in STATES)

    def job(self, job_id: int) -> dict | None:
        with self.client() as client:
            try:
                return dict(client.stats_job(job_id))
            except greenstalk.NotFoundError:
                return None

    def peek(self, job_id: int) -> bytes:
        with self.client() as client:
            return client.peek(job_id).body

    def _answers(self) -> bool:
        if self.process.poll() is not None:
            self._errors.seek(0)
            raise AssertionError(f"beanstalkd ended: {self._errors.read()!r}")
        try:
            with self.client() as client:
                client.stats()
        except OSError:
            return False
        return True

    def _end(self, number: int) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.send_signal(number)
        self.process.wait()
        self._errors.close()


class RealBeanstalkd(Beanstalkd):
    """The real beanstalkd, also if the other tests run on the embedded broker."""

    is_embedded = False

    @property
    def release(self) -> tuple[int, int]:
        return installed_release()


class EmbeddedBroker(Beanstalkd):
    """The embedded broker, also if the other tests run on beanstalkd."""

    is_embedded = True


@functools.cache
def installed_release() -> tuple[int, int]:
    """Return the release of the installed beanstalkd, (1, 13) for example; (0, 0) without one."""
    if PROGRAM is None:
        return 0, 0
    shown = subprocess.run([PROGRAM, "-v"], capture_output=True, text=True, check=True).stdout
    major, minor = re.search(r"(\d+)\.(\d+)", shown).groups()
    return int(major), int(minor)


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]
