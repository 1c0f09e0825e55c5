"""Real brokers and workers, in processes that end with the test that starts them."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from flask_backend.broker.connection import Connection
from flask_backend.config import URI_KEY, Address, Settings
from flask_backend.errors import BrokerConnectionError
from flask_backend.job import Job, JobState
from flask_backend.names import check_worked_queue_name

# In seconds; long enough for a busy machine, since only failures wait for all of it.
_PATIENCE_S = 20.0
_END_S = 10.0  # for a worker that runs a task; shorter than its own drain timeout
_POLL_S = 0.01

_PORTS = 5  # attempts: another process may take a port before the broker binds it

_REASON_S = 2.0
_COMMAND = (sys.executable, "-m", "flask_backend")


@dataclass(frozen=True, slots=True)
class RunningProgram:
    """A program that runs in its own process, and the file with its output."""

    process: subprocess.Popen[bytes]
    log: Path

    @property
    def output(self) -> str:
        return self.log.read_text(errors="replace")

    @property
    def has_ended(self) -> bool:
        return self.process.poll() is not None

    def wait_until(self, condition: Callable[[], bool], what: str, timeout_s: float = _PATIENCE_S) -> None:
        """Wait for a condition; raise :exc:`AssertionError`, with the program's output, on timeout or early end."""
        __tracebackhide__ = True
        deadline = time.monotonic() + timeout_s
        while not condition():
            if self.has_ended:
                raise AssertionError(
                    f"expected that {what}, but the program ended with {self.process.poll()}:\n{self.output}"
                )
            if time.monotonic() > deadline:
                raise AssertionError(f"waited {timeout_s:g} s in vain until {what}:\n{self.output}")
            time.sleep(_POLL_S)


@dataclass(frozen=True, slots=True)
class RunningWorker(RunningProgram):
    """A worker that the fixture ``backend_worker`` has started."""

    def wait_for(self, job: Job, timeout_s: float = _PATIENCE_S) -> None:
        """Wait until a job is done; raise :exc:`AssertionError`, with the worker's output, if it is buried or late."""
        __tracebackhide__ = True

        def is_done() -> bool:
            state = job.state()
            if state is JobState.BURIED:
                self._wait_for_reason(job)
                raise AssertionError(f"expected {job!r} to be done, but it is buried:\n{self.output}")
            return state is JobState.DONE

        self.wait_until(is_done, f"{job!r} is done", timeout_s)

    def _wait_for_reason(self, job: Job) -> None:
        """Wait for the worker to log why the job is buried, which it does after burying it."""
        deadline = time.monotonic() + _REASON_S
        while f"job {job.id}" not in self.output and not self.has_ended and time.monotonic() < deadline:
            time.sleep(_POLL_S)


@contextmanager
def running_broker(folder: Path) -> Generator[str]:
    """Run a broker on a free port, with its output in ``folder``; yield its URI."""
    beanstalkd = shutil.which("beanstalkd", path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin"]))
    log = folder / "broker.log"
    for _ in range(_PORTS):
        address = Address("127.0.0.1", _free_port())
        if beanstalkd:
            command = [beanstalkd, "-l", address.host, "-p", str(address.port)]
        else:
            command = [*_COMMAND, "broker", "--listen", address.host, "--port", str(address.port)]
        with _running(command, log, {}) as process:
            if _comes_up(RunningProgram(process, log), address):
                yield str(address)
                return
    raise AssertionError(f"the broker did not start:\n{log.read_text(errors='replace')}")


@contextmanager
def running_worker(
    uri: str, queue: str, app: str | None, env: Mapping[str, str], folder: Path
) -> Generator[RunningWorker]:
    """Run a worker of ``queue``, with its output in ``folder``; yield it when it waits for jobs."""
    settings = Settings(Address.parse(uri))
    check_worked_queue_name(queue)
    before = _watching(settings, queue)
    log = folder / f"worker-{len(list(folder.glob('worker-*.log')))}.log"
    command = [*_COMMAND, *(["--app", app] if app else []), "worker", queue]
    # The worker finds the app where the test does, even if an option of pytest has put that on the path.
    path = os.pathsep.join(filter(None, sys.path))
    with _running(command, log, {"PYTHONPATH": path, URI_KEY: uri, **env}) as process:
        worker = RunningWorker(process, log)
        worker.wait_until(
            lambda: _watching(settings, queue) > before,
            f"the worker waits for jobs of {queue} at {uri}, set as {URI_KEY} in its environment; "
            "an app that sets another URI itself does not use this broker",
        )
        yield worker


@contextmanager
def _running(command: Sequence[str], log: Path, env: Mapping[str, str]) -> Generator[subprocess.Popen[bytes]]:
    with log.open("ab") as output:
        process = subprocess.Popen(  # noqa: S603  # our own commands
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env={**os.environ, **env}
        )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(_END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def _comes_up(program: RunningProgram, address: Address) -> bool:
    """Wait until the broker answers or ends, for example because the port is taken; return whether it answers."""
    program.wait_until(lambda: program.has_ended or _serves(program, address), "the broker answers")
    return not program.has_ended


def _serves(program: RunningProgram, address: Address) -> bool:
    """Whether this very program answers at the address: the port may belong to another test's broker."""
    try:
        with closing(Connection(address, Settings(address).timeout_s)) as connection:
            return connection.stats().get("pid") == program.process.pid
    except BrokerConnectionError:
        return False


def _watching(settings: Settings, queue: str) -> int:
    """Return how many workers a queue has."""
    with closing(Connection(settings.address, settings.timeout_s)) as connection:
        return sum(found.watching for found in connection.stats_tube([queue]))
