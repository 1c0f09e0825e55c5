"""A real supervisor, or a lone worker, under test."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from support.beanstalkd import Beanstalkd
from support.waiting import wait_until
from support.workload import INBOX, QUEUE

COMMAND = [sys.executable, "-m", "flask_backend"]
APP = Path(__file__).with_name("workload.py")


class Command:
    """One of our commands in a separate process, its output in a file, its tasks' output in a ledger.

    ``redirection`` is a shell's, for instance ``2>&-``; ``output`` is a descriptor in place of the file. ``under`` is
    a command that takes our command as its arguments.
    """

    def __init__(
        self,
        broker: Beanstalkd,
        tmp_path: Path,
        *args: str,
        app: str = str(APP),
        redirection: str = "",
        output: int | None = None,
        under: Sequence[str] = (),
        **env: str,
    ) -> None:
        self.broker = broker
        self._ledger = tmp_path / "ledger"
        self.log_path = tmp_path / "log"
        self.environment = {
            **os.environ,
            "BACKEND_CONNECTION_URI": broker.uri,
            "LEDGER": str(self._ledger),
            "PYTHONPATH": str(APP.parent.parent),
            "PYTHONWARNINGS": "error",
            **env,
        }
        with self.log_path.open("ab") as log:
            there = log if output is None else output
            shell = ["sh", "-c", f'exec "$@" {redirection}', "sh"] if redirection else []
            self.process = subprocess.Popen(
                [*under, *shell, *COMMAND, "--app", app, *args],
                stdout=there,
                stderr=there,
                env=self.environment,
                cwd=tmp_path,
            )
        self.pid = self.process.pid

    @property
    def log(self) -> str:
        return self.log_path.read_text()

    @property
    def ledger(self) -> list[str]:
        return self._ledger.read_text().splitlines() if self._ledger.exists() else []

    def wrote(self, line: str, times: int = 1) -> bool:
        return self.ledger.count(line) >= times

    def wait_for_line(self, line: str, times: int = 1) -> None:
        wait_until(
            lambda: self.wrote(line, times), f"{line!r} in the ledger {self.ledger[-8:]}; log:\n{self.log[-3000:]}"
        )

    def wait_for_log(self, text: str) -> None:
        wait_until(lambda: text in self.log, f"{text!r} in the log:\n{self.log[-3000:]}")

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def wait(self, timeout_s: float = 20) -> int:
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running; log:\n{self.log[-3000:]}") from None

    def end(self) -> None:
        """Clean up after a passed or failed test."""
        family = [*_descendants(self.pid), self.pid] if self.process.poll() is None else []
        for pid in family:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()


class Supervised(Command):
    """`flask-backend supervise`."""

    def __init__(self, broker: Beanstalkd, tmp_path: Path, *args: str, workers: int = 4, **env: str) -> None:
        queues = () if any(arg in ("--queue", "-q") for arg in args) else ("--queue", QUEUE)
        super().__init__(broker, tmp_path, "supervise", *queues, "--workers", str(workers), *args, **env)
        self.size = workers
        self.seen: set[int] = set()

    def wait_ready(self) -> None:
        """Wait until all workers are in their reserve."""
        self.wait_for_log("ready: ")
        self.wait_reserving(self.size)

    def wait_reserving(self, count: int, queue: str = QUEUE) -> None:
        wait_until(lambda: self.broker.waiting(queue) == count, f"{count} workers wait; log:\n{self.log[-3000:]}")

    def children(self) -> list[int]:
        """The pids of all living children: workers, and processes that settle a job or check new code."""
        try:
            children = psutil.Process(self.pid).children()
        except psutil.NoSuchProcess:
            return []
        pids = [child.pid for child in children if child.is_running() and _is_alive(child)]
        self.seen.update(pids)
        return pids

    def workers(self) -> list[int]:
        """The pids of the living workers."""
        return [pid for pid in self.children() if re.match(r"flask-backend: worker \S+ \[(?!settles)", title(pid))]

    def loans(self) -> list[int]:
        """The supervisor's connections to the broker, which belong to its workers."""
        return [c.fd for c in psutil.Process(self.pid).net_connections("tcp") if c.raddr.port == self.broker.port]

    def end(self) -> None:
        """Also kill workers that a failed test has stopped, and whose supervisor is gone."""
        super().end()
        for pid in self.seen:
            with suppress(psutil.Error):
                process = psutil.Process(pid)
                if process.environ().get("LEDGER") == self.environment["LEDGER"]:
                    process.kill()

    def assert_clean_exit(self, code: int) -> None:
        """Check the end that every fault test has: the right exit code, no process, no reserved job."""
        self.workers()
        actual = self.wait()
        assert actual == code, f"exit {actual}, not {code}; log:\n{self.log[-3000:]}"
        for pid in self.seen:
            wait_until(
                lambda pid=pid: not psutil.pid_exists(pid) or not _is_alive(psutil.Process(pid)), f"{pid} is gone"
            )
        for queue in (QUEUE, INBOX):
            wait_until(lambda queue=queue: self.broker.count(queue, "reserved") == 0, f"no job of {queue} is reserved")


def title(pid: int) -> str:
    """Return a process's title; empty if it is gone."""
    try:
        return " ".join(psutil.Process(pid).cmdline()).strip()
    except psutil.NoSuchProcess:
        return ""


def _descendants(pid: int) -> list[int]:
    try:
        return [child.pid for child in psutil.Process(pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _is_alive(process: psutil.Process) -> bool:
    try:
        return process.status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    except psutil.NoSuchProcess:
        return False
