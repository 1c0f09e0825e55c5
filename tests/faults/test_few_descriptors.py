"""Few file descriptors: a supervisor states how many it needs, and goes on when they run out."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
from contextlib import contextmanager

import pytest
from support.supervised import APP, COMMAND
from support.waiting import wait_until
from support.workload import QUEUE

pytestmark = pytest.mark.any_broker

NOFILE = resource.RLIMIT_NOFILE


def soft_limit(pid: int) -> int:
    return resource.prlimit(pid, NOFILE)[0]


def set_soft_limit(pid: int, soft: int) -> None:
    resource.prlimit(pid, NOFILE, (soft, resource.prlimit(pid, NOFILE)[1]))


@contextmanager
def no_descriptors(pid: int, limit: int = 3):
    """Prevent a process from opening files: those below are taken. Not lower: poll(2) accepts at most that many."""
    before = soft_limit(pid)
    set_soft_limit(pid, limit)
    try:
        yield
    finally:
        set_soft_limit(pid, before)


def test_the_limit_is_raised_for_the_supervisor_and_put_back_in_its_workers_and_in_a_check(supervise, tasks):
    # Not by a limit of this process, which may itself have more files open.
    supervised = supervise(workers=25, under=["sh", "-c", 'ulimit -Sn 40 && exec "$@"', "sh"])
    supervised.wait_ready()
    wait_until(lambda: len(supervised.loans()) == 25, "each worker has lent its socket")
    assert soft_limit(supervised.pid) > 100
    assert {soft_limit(pid) for pid in supervised.workers()} == {40}
    assert "25 workers and their supervisor need at most" in supervised.log
    supervised.send(signal.SIGHUP)
    (checker,) = wait_until(lambda: set(supervised.children()) - set(supervised.workers()), "the check runs")
    assert soft_limit(checker) == 40
    wait_until(lambda: supervised.log.count("supervisor: ready: ") == 2, "the new code is ready")
    supervised.wait_reserving(25)
    wait_until(lambda: len(supervised.loans()) == 25, "each new worker has lent its socket")
    assert soft_limit(supervised.pid) > 100
    assert {soft_limit(pid) for pid in supervised.workers()} == {40}
    supervised.send(signal.SIGTERM)
    supervised.assert_clean_exit(0)


@pytest.mark.parametrize("command", ["supervise", "check"])
def test_too_few_descriptors_are_refused(command):
    limited = ["sh", "-c", 'ulimit -n 64 && exec "$@"', "sh", *COMMAND, "--app", str(APP), command]
    environment = os.environ | {"BACKEND_QUEUES": f"{QUEUE}=60"}
    result = subprocess.run(limited, env=environment, capture_output=True, text=True)
    assert result.returncode == 3
    assert "Error: 60 workers and their supervisor need " in result.stderr
    assert "but the hard limit is 64: raise it" in result.stderr


def test_check_reports_how_many_are_needed():
    environment = os.environ | {"BACKEND_QUEUES": f"{QUEUE}=60"}
    result = subprocess.run([*COMMAND, "--app", str(APP), "check"], env=environment, capture_output=True, text=True)
    assert "60 workers and their supervisor need at most " in result.stdout.splitlines()[-1]


def test_a_reload_that_would_have_too_few_is_refused(supervise):
    supervised = supervise(workers=4)
    supervised.wait_ready()
    resource.prlimit(supervised.pid, NOFILE, (45, 45))
    supervised.send(signal.SIGHUP)
    supervised.wait_for_log("; the old app goes on")
    assert "4 workers and their supervisor need" in supervised.log
    supervised.send(signal.SIGTERM)
    supervised.assert_clean_exit(0)


def test_a_supervisor_without_a_descriptor_left_goes_on(supervise, tasks, broker, tmp_path):
    supervised = supervise(workers=2)
    supervised.wait_ready()
    wait_until(lambda: len(supervised.loans()) == 2, "each worker has lent its socket")
    with no_descriptors(supervised.pid):
        job = tasks.die_once("kill", str(tmp_path / "died"))
        wait_until(lambda: broker.job(job.id)["releases"] == 1, "the job is released with a delay")
        idle = supervised.workers()[0]
        os.kill(idle, signal.SIGKILL)
        supervised.wait_for_log(f"worker {idle} of {QUEUE} was killed by signal 9")
        supervised.wait_reserving(2)
        supervised.wait_for_log("no file descriptor is left for the connection of worker")
        supervised.send(signal.SIGTTIN)
        supervised.wait_reserving(3)
        supervised.send(signal.SIGUSR1)
        wait_until(lambda: supervised.log.count("most recent call first") >= 4, "stacks of all processes")
        supervised.send(signal.SIGHUP)
        supervised.wait_for_log("reload failed: [Errno 24] Too many open files; the old app goes on")
    supervised.wait_for_line("survived")
    supervised.send(signal.SIGHUP)
    wait_until(lambda: supervised.log.count("supervisor: ready: ") == 2, "the new code is ready")
    supervised.wait_reserving(3)  # one more since the TTIN
    supervised.send(signal.SIGTERM)
    supervised.assert_clean_exit(0)


def test_a_reload_that_runs_out_of_descriptors_during_the_check_leaves_the_old_code_serving(supervise, tasks, tmp_path):
    (tmp_path / "version.py").write_text(
        "import pathlib, time\nhere = pathlib.Path(__file__).parent\n"
        "if (here / 'check').exists():\n"
        "    (here / 'begun').touch()\n"
        "    while not (here / 'go').exists(): time.sleep(0.005)\n"
        "VERSION = 1\n"
    )
    supervised = supervise(workers=2, VERSION_IN=str(tmp_path), PYTHONDONTWRITEBYTECODE="1")
    supervised.wait_ready()
    (tmp_path / "check").touch()
    supervised.send(signal.SIGHUP)
    wait_until((tmp_path / "begun").exists, "the check is under way")
    with no_descriptors(supervised.pid, 4):  # it polls one more for the output of the check
        (tmp_path / "go").touch()
        supervised.wait_for_log("; the old app goes on")
    assert "reload failed: it needs " in supervised.log
    tasks.note("still here")
    supervised.wait_for_line("note still here")
    supervised.send(signal.SIGTERM)
    supervised.assert_clean_exit(0)


def test_a_worker_without_descriptors_fails_its_tasks_and_reconnects_when_it_has_some_again(supervise, tasks, broker):
    supervised = supervise(workers=1)
    supervised.wait_ready()
    (worker,) = supervised.workers()
    with no_descriptors(worker):
        job = tasks.note("late")
        supervised.wait_for_log("OSError: [Errno 24] Too many open files")
        wait_until(lambda: broker.job(job.id)["releases"] == 1, "it is tried again")
        broker.kill()
        supervised.wait_for_log("Too many open files")
        broker.start()
    tasks.note("now")
    supervised.wait_for_line("note now")
    assert supervised.workers() == [worker]
    supervised.send(signal.SIGTERM)
    supervised.assert_clean_exit(0)
