"""Streams that are closed, broken, full or unread never stop the process that writes to them."""

from __future__ import annotations

import fcntl
import os
import re
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from support.supervised import COMMAND
from support.waiting import wait_until
from support.workload import QUEUE

pytestmark = pytest.mark.any_broker


class Pipe:
    """A small pipe for a command's output."""

    def __init__(self) -> None:
        self._reader, self.writer = os.pipe()
        fcntl.fcntl(self.writer, fcntl.F_SETPIPE_SZ, 4096)
        os.set_blocking(self._reader, False)

    def read(self) -> str:
        """Return the output since the last call."""
        found = b""
        while True:
            try:
                data = os.read(self._reader, 65536)
            except BlockingIOError:
                return found.decode()
            if not data:
                return found.decode()
            found += data

    def fill(self) -> None:
        """Fill the pipe completely, without changing the description that others share."""
        fd = os.open(f"/proc/self/fd/{self.writer}", os.O_WRONLY | os.O_NONBLOCK)
        for size in (4096, 1):
            with suppress(BlockingIOError):
                while True:
                    os.write(fd, b"x" * size)
        os.close(fd)

    def break_(self) -> None:
        if self._reader >= 0:
            os.close(self._reader)
            self._reader = -1

    def close(self) -> None:
        self.break_()
        os.close(self.writer)


REPORT = re.compile(r"WARNING \[\d+\] flask_backend.streams: \d+ lines? could not be written to stderr and are lost\n")


@pytest.fixture
def pipe():
    pipe = Pipe()
    yield pipe
    pipe.close()


@pytest.fixture(params=["", "1"], ids=["buffered", "unbuffered"])
def buffering(request):
    return {"PYTHONUNBUFFERED": request.param}


def works(supervised, tasks) -> None:
    """Check that dead workers are replaced, and tasks run."""
    before = set(supervised.workers())
    os.kill(victim := min(before), signal.SIGKILL)
    wait_until(lambda: len(now := set(supervised.workers())) == len(before) and victim not in now, "it is replaced")
    tasks.note("done")
    supervised.wait_for_line("note done")


def test_a_supervisor_whose_reader_is_gone_goes_on(supervise, tasks, pipe, buffering):
    supervised = supervise(workers=2, output=pipe.writer, **buffering)
    supervised.wait_reserving(2)
    pipe.break_()
    works(supervised, tasks)
    works(supervised, tasks)
    supervised.send(signal.SIGTERM)
    supervised.assert_clean_exit(0)


def test_a_supervisor_whose_output_is_not_read_goes_on_and_reports_its_losses(supervise, tasks, pipe, buffering):
    supervised = supervise(workers=2, output=pipe.writer, **buffering)
    supervised.wait_reserving(2)
    pipe.fill()
    works(supervised, tasks)
    said = []
    wait_until(lambda: said.append(pipe.read()) or REPORT.search("".join(said)), "a report")
    supervised.send(signal.SIGTERM)
    supervised.assert_clean_exit(0)
    assert "stopping" in pipe.read()


def test_a_supervisor_whose_output_is_never_read_stops_when_asked(supervise, pipe):
    supervised = supervise(workers=2, output=pipe.writer)
    supervised.wait_reserving(2)
    pipe.fill()
    supervised.send(signal.SIGTERM)
    supervised.assert_clean_exit(0)


def test_a_task_that_prints_to_an_unread_pipe_goes_on(supervise, tasks, pipe, buffering):
    supervised = supervise(workers=1, output=pipe.writer, **buffering)
    supervised.wait_reserving(1)
    pipe.fill()
    tasks.print_and_fail("x" * 10_000)
    tasks.print_and_fail("x" * 10_000)
    tasks.note("done")
    supervised.wait_for_line("note done")


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_line_is_one_write_so_that_the_lines_of_workers_do_not_mix(buffering, stream):
    program = (
        "import sys; from flask_backend.system.streams import streams\n"
        f"streams.install(); print('one', 2, 'three', file=sys.{stream}, flush=True)"
    )
    ours, theirs = socket.socketpair(type=socket.SOCK_SEQPACKET)  # keeps each write apart
    with ours, theirs:
        subprocess.run(
            [sys.executable, "-c", program], env=os.environ | buffering, timeout=20, check=True, **{stream: theirs}
        )
        assert ours.recv(100) == b"one 2 three\n"


def test_requested_stacks_do_not_stop_a_process_that_cannot_write_them(supervise, tasks, pipe):
    supervised = supervise(workers=2, output=pipe.writer)
    supervised.wait_reserving(2)
    pipe.fill()
    supervised.send(signal.SIGUSR1)
    for pid in supervised.workers():
        os.kill(pid, signal.SIGUSR1)
    works(supervised, tasks)


def test_the_stacks_of_all_processes_come_whole_through_one_pipe(supervise):
    reader, writer = os.pipe()
    supervised = supervise(workers=6, output=writer)
    os.close(writer)
    supervised.wait_reserving(6)
    supervised.send(signal.SIGUSR1)
    found = b""
    while found.count(b"stacks of process ") < 7 or not found.endswith(b"\n\n"):
        found += os.read(reader, 65536)
    os.close(reader)
    for stacks in found.split(b"stacks of process ")[1:]:
        assert stacks.count(b"Current thread ") == 1
        assert stacks.count(b"Thread 0x") == (b"flask-backend: worker " in stacks)  # its heartbeat
    supervised.send(signal.SIGTERM)
    supervised.assert_clean_exit(0)


def test_a_full_disk_stops_nothing(supervise, tasks, buffering):
    supervised = supervise(workers=2, redirection=">/dev/full 2>&1", **buffering)
    supervised.wait_reserving(2)
    works(supervised, tasks)
    tasks.fail()
    wait_until(lambda: supervised.broker.count(QUEUE, "delayed") == 1, "the failure is settled")
    supervised.send(signal.SIGTERM)
    supervised.assert_clean_exit(0)


@pytest.mark.parametrize("redirection", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_the_numbers_of_closed_streams_are_never_reused(supervise, tasks, redirection):
    supervised = supervise(workers=1, redirection=redirection)
    supervised.wait_reserving(1)
    old = set(supervised.workers())
    supervised.send(signal.SIGHUP)
    wait_until(lambda: (now := set(supervised.workers())) and not now & old, "the new code serves")
    supervised.wait_reserving(1)
    for pid in (supervised.pid, *supervised.workers()):
        for number in range(3):
            assert Path(f"/proc/{pid}/fd/{number}").readlink() in (Path(os.devnull), supervised.log_path)
    works(supervised, tasks)
    supervised.send(signal.SIGTERM)
    supervised.assert_clean_exit(0)


@pytest.mark.parametrize("redirection", [">&-", "2>&-", "<&- >&- 2>&-", ">/dev/full 2>&1"])
def test_a_lone_worker_needs_no_streams(command, tasks, redirection):
    worker = command("worker", QUEUE, redirection=redirection)
    tasks.print_and_fail("x" * 10_000)
    tasks.note("done")
    worker.wait_for_line("note done")
    worker.send(signal.SIGUSR1)
    worker.send(signal.SIGTERM)
    assert worker.wait() == 0


REPLACED = """
import sys
class Words:
    def write(self, text): ...
class Broken:
    def __getattr__(self, name): raise RuntimeError(name)
sys.stdout = {stdout}
sys.stderr = {stderr}
from support.workload import app, backend
"""


@pytest.mark.parametrize("stderr", ["None", "Words()", "Broken()", "object()", "open('/dev/full', 'w')"])
def test_an_app_may_replace_the_streams(supervise, tasks, tmp_path, stderr):
    (tmp_path / "replaced.py").write_text(REPLACED.format(stdout=stderr, stderr=stderr))
    supervised = supervise(workers=2, app="replaced")
    supervised.wait_reserving(2)
    works(supervised, tasks)
    if stderr in ("None", "object()"):
        supervised.wait_for_log("supervisor: ready: ")
    supervised.send(signal.SIGUSR1)
    supervised.send(signal.SIGTERM)
    supervised.assert_clean_exit(0)


def test_an_app_may_close_the_streams(supervise, tasks, tmp_path):
    (tmp_path / "closing.py").write_text(
        "import os\nos.close(1)\nos.close(2)\nfrom support.workload import app, backend"
    )
    supervised = supervise(workers=1, app="closing")
    supervised.wait_reserving(1)
    works(supervised, tasks)
    for number in range(3):
        assert Path(f"/proc/{supervised.workers()[0]}/fd/{number}").exists()
        assert "socket" not in str(Path(f"/proc/{supervised.workers()[0]}/fd/{number}").readlink())


def test_a_broker_without_a_reader_serves(tmp_path, pipe):
    pipe.break_()
    process = subprocess.Popen([*COMMAND, "broker", "--port", "0"], stdout=pipe.writer, stderr=pipe.writer)
    try:
        wait_until(lambda: psutil.Process(process.pid).net_connections("tcp"), "it listens")
        process.terminate()
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait()


def hooks_of(running) -> list[str]:
    return [line for line in running.ledger if line.startswith("hook")]


@pytest.mark.parametrize("output", ["unread", "full disk"])
def test_dev_goes_on_with_closed_output(command, broker, tasks, pipe, tmp_path, output):
    (tmp_path / "edited.py").write_text("from support.workload import app\n")
    to = {"output": pipe.writer} if output == "unread" else {"redirection": ">/dev/full 2>&1"}
    running = command("dev", "--no-web", app="edited", **to)
    wait_until(lambda: broker.waiting(QUEUE), "its workers wait")
    if output == "unread":
        pipe.fill()
    for n in range(3):
        tasks.print_and_fail("x" * 10_000)
        tasks.note(n)
        running.wait_for_line(f"note {n}")
    hooks = len(hooks_of(running))
    (tmp_path / "edited.py").write_text("from support.workload import app  # edited\n")
    wait_until(lambda: len(hooks_of(running)) > hooks, "workers with the new code")
    running.send(signal.SIGTERM)
    assert running.wait() == 0


# -- commands that print results ---------------------------------------------------------------------------------


def run(broker, *args: str, redirection: str = "", **options):
    shell = ["bash", "-c", f'exec "$@" {redirection}', "bash"]
    env = os.environ | {"BACKEND_CONNECTION_URI": broker.uri}
    return subprocess.run([*shell, *COMMAND, *args], stderr=subprocess.PIPE, text=True, env=env, timeout=20, **options)


def test_results_without_a_reader_end_the_command_without_a_message(broker, pipe, buffering, monkeypatch):
    monkeypatch.setenv("PYTHONUNBUFFERED", buffering["PYTHONUNBUFFERED"])
    pipe.break_()
    for args in (["queues", "--interval", "0"], ["queues", "--json"], ["check", "--help"], ["--version"]):
        broker.put(QUEUE, b"1")
        result = run(broker, *args, stdout=pipe.writer)
        assert (result.returncode, result.stderr) == (1, "")


def test_results_that_cannot_be_written_are_an_error(broker, buffering, monkeypatch):
    monkeypatch.setenv("PYTHONUNBUFFERED", buffering["PYTHONUNBUFFERED"])
    broker.put(QUEUE, b"1")
    result = run(broker, "queues", "--interval", "0", redirection=">/dev/full")
    assert (result.returncode, result.stderr) == (1, "Error: cannot write to stdout: No space left on device\n")


@pytest.mark.parametrize("redirection", [">&-", "2>&-", "<&- >&- 2>&-", "2>/dev/full"])
def test_a_command_needs_no_streams(broker, redirection):
    broker.put(QUEUE, b"1")
    assert run(broker, "queues", "--interval", "0", redirection=redirection).returncode == 0
    assert run(broker, "peek", "999", redirection=redirection).returncode == 1
    assert run(broker, "delete", QUEUE, redirection=f"{redirection} </dev/null").returncode in (1, 2)
