"""`flask-backend health`, for probes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from support.waiting import wait_until
from support.workload import QUEUE

from flask_backend.cli import main
from flask_backend.system import health as module
from flask_backend.system.procfs import PROC_IS_THERE

pytestmark = [pytest.mark.any_broker, pytest.mark.skipif(not PROC_IS_THERE, reason="needs Linux")]
SCRIPT = Path(sys.executable).with_name("flask-backend")


def health(*args):
    """Return the exit code and the line of the command."""
    command = [sys.executable, "-m", "flask_backend", "health", *args]
    result = subprocess.run(command, capture_output=True, text=True)
    assert (result.stdout == "") is (result.returncode != 0)
    assert (result.stderr == "") is (result.returncode == 0)
    return result.returncode, (result.stdout or result.stderr).removesuffix("\n")


@pytest.fixture
def supervised(supervise):
    supervised = supervise(workers=2)
    supervised.wait_ready()
    # The workers are ready a moment before their supervisor has read so.
    wait_until(lambda: ": running, " in health("--pid", str(supervised.pid))[1], "the supervisor runs")
    return supervised


def test_a_supervisor_is_alive_and_ready(supervised):
    pid = ("--pid", str(supervised.pid))
    line = f"supervisor {supervised.pid} is {{}}: running, 2 workers, 0 busy"
    for args, state in (((), "alive and ready"), (("--live", "--ready"), "alive and ready"), (("--live",), "alive")):
        assert health(*args, *pid) == (0, line.format(state))
    result = subprocess.run([SCRIPT, "health", "--ready", *pid], capture_output=True, text=True, check=True)
    assert result.stdout == line.format("ready") + "\n"
    assert (
        line.format("alive and ready") + "\n"
        in subprocess.run([SCRIPT, "health"], capture_output=True, text=True).stdout
    )  # those of other tests may not be ready


def test_without_a_broker_it_is_alive_but_not_ready(supervised, broker):
    pid = ("--pid", str(supervised.pid))
    broker.stop()
    expected = f"supervisor {supervised.pid} is not ready: the broker of {QUEUE} has been away for "
    wait_until(lambda: health("--ready", *pid)[1].startswith(expected), "it is not ready")
    code, line = health(*pid)
    assert (code, line.startswith(expected)) == (1, True)
    assert health("--live", *pid)[0] == 0


def test_a_worker_in_its_hook_is_not_ready_yet(supervise, tmp_path):
    supervised = supervise(workers=1, HOOK_WAITS_FOR=str(tmp_path / "gate"))
    pid = ("--pid", str(supervised.pid))
    assert health(*pid)[0] == 1  # it imports the app
    wait_until(lambda: health("--live", *pid)[0] == 0, "it has started its worker")
    assert health(*pid) == (1, f"supervisor {supervised.pid} is not ready: no worker of {QUEUE} is ready")
    (tmp_path / "gate").touch()
    wait_until(lambda: health(*pid)[0] == 0, "it is ready")


def test_a_frozen_supervisor_is_neither_alive_nor_ready(supervised):
    pid = ("--pid", str(supervised.pid))
    supervised.send(signal.SIGSTOP)
    try:
        for args in (("--live",), ("--ready",), ()):
            wait_until(lambda args=args: health(*args, *pid)[0] == 1, "it is stopped")
            assert health(*args, *pid)[1].startswith(f"supervisor {supervised.pid} has been frozen for ")
    finally:
        supervised.send(signal.SIGCONT)
    wait_until(lambda: health(*pid)[0] == 0, "it goes on")


def test_a_stuck_job_is_named(supervised, tasks, tmp_path):
    pid = ("--pid", str(supervised.pid))
    job = tasks.wait_for(str(tmp_path / "go"))
    wait_until(lambda: health("--live", "--stuck-after", "1", *pid)[0] == 1, "the job is stuck")
    assert f" has been stuck on job {job.id} (wait_for) for " in health("--stuck-after", "1", *pid)[1]
    assert health("--live", *pid)[0] == 0
    assert health("--live", "--stuck-after", "1000", *pid)[0] == 0
    (tmp_path / "go").touch()


def test_a_supervisor_that_drains_is_alive_but_not_ready(supervised, tasks, tmp_path):
    pid = ("--pid", str(supervised.pid))
    tasks.wait_for(str(tmp_path / "go"))
    wait_until(lambda: ", 1 busy" in health("--live", *pid)[1], "it is busy")
    supervised.send(signal.SIGTERM)
    expected = (1, f"supervisor {supervised.pid} is not ready: it is draining")
    wait_until(lambda: health(*pid) == expected, "it drains")
    assert health("--live", *pid)[0] == 0
    (tmp_path / "go").touch()
    supervised.wait()


def test_without_a_supervisor_it_says_so():
    gone = subprocess.Popen(["true"])  # not this process: other tests may have left a page in its memory
    gone.wait()
    assert health("--pid", str(gone.pid)) == (1, f"no supervisor has the pid {gone.pid}")
    command = [sys.executable, "-c", "from flask_backend.system import health, page\npage.find = lambda _=None: {}\n"]
    command[-1] += "health.page.nameless_pages = lambda _: {}\nprint(health.run([]))"
    result = subprocess.run(command, capture_output=True, text=True)
    assert (result.stdout, result.stderr) == ("1\n", "no supervisor runs here\n")


@pytest.mark.parametrize("start", [[sys.executable, "-m", "flask_backend"], [SCRIPT]], ids=["module", "script"])
def test_it_imports_neither_click_nor_flask_nor_anything_slow(supervised, start):
    command = [*start, "health", "--pid", str(supervised.pid)]
    environment = {**os.environ, "PYTHONPROFILEIMPORTTIME": "1"}
    result = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    modules = {line.rpartition("|")[2].strip() for line in result.stderr.splitlines()}
    assert "flask_backend.system.health" in modules
    assert {"click", "flask", "json", "typing", "dataclasses", "pathlib", "logging", "socket"} & modules == set()
    assert start != [SCRIPT] or "re" not in modules  # the script that pip 23 writes for an entry point would import it
    ours = {name.removeprefix("flask_backend.") for name in modules if name.startswith("flask_backend.")}
    assert ours <= {"__main__", "system", "system.page", "system.health"}


def test_wrong_usage_and_help_are_those_of_click(monkeypatch):
    for args in (["--pid", "no"], ["--stuck-after"], ["--stuck-after", "0"], ["now"]):
        assert health(*args)[0] == 2
    assert CliRunner().invoke(main, ["health", "--help"]).stdout.startswith("Usage: main health [OPTIONS]\n")
    monkeypatch.setattr("flask_backend.cli.commands.health.PROC_IS_THERE", False)
    result = CliRunner().invoke(main, ["health"])
    assert (result.exit_code, result.stderr) == (1, "Error: health reads /proc, which only Linux has\n")


def test_the_click_command_answers_the_same(supervised):
    pid = ["--pid", str(supervised.pid)]
    result = CliRunner().invoke(main, ["health", *pid])
    assert (result.exit_code, result.stdout.rstrip("\n")) == health(*pid)
    assert module.run(["--live", *pid]) == 0
