"""How processes end: with all of Python's cleanup, within the drain timeout."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import psutil
import pytest
from support.supervised import title
from support.waiting import wait_until
from support.workload import QUEUE

pytestmark = pytest.mark.any_broker

APP = str(Path(__file__).parents[1] / "support" / "endings.py")
BUFFERED = {"PYTHONUNBUFFERED": ""}
# Warnings about forking beside threads, and about cleanup at the end.
WARNINGS = {"PYTHONWARNINGS": "error,ignore::DeprecationWarning,ignore::ResourceWarning"}


@pytest.fixture
def start(supervise):
    """Start a supervisor, with one worker, of an app that has cleanup to do at its end."""

    def start(*args, ending="", **options):
        supervised = supervise(*args, app=APP, ENDING=ending, **{"workers": 1, **BUFFERED, **WARNINGS, **options})
        if "fails" not in ending:
            supervised.wait_ready()
        return supervised

    return start


@pytest.fixture
def call(broker):
    def call(endpoint, *args):
        return broker.put(QUEUE, json.dumps({"endpoint": endpoint, "args": args}).encode())

    return call


def lines_that_begin(supervised, text):
    return [line for line in supervised.ledger if line.startswith(text)]


def pid_of(supervised, name):
    """Return the last word of the ledger line that begins with a name."""
    (line,) = wait_until(lambda: lines_that_begin(supervised, f"{name} "), f"{name} in the ledger")
    return int(line.split()[-1])


def is_gone(pid):
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def reload(supervised):
    before = supervised.log.count("supervisor: ready: ")
    supervised.send(signal.SIGHUP)
    wait_until(lambda: supervised.log.count("supervisor: ready: ") > before, "the new code is ready")


# -- workers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["stop", "recycle", "reload", "term"])
def test_a_worker_ends_with_all_of_pythons_cleanup(start, call, how):
    supervised = start(*(["--max-tasks", "1"] if how == "recycle" else []))
    (worker,) = supervised.workers()
    call("leave_work")
    supervised.wait_for_line("task")
    if how == "stop":
        supervised.send(signal.SIGTERM)
    elif how == "reload":
        supervised.send(signal.SIGHUP)
    elif how == "term":
        os.kill(worker, signal.SIGTERM)
    supervised.wait_for_line("handler of the hook")
    supervised.wait_for_line("thread")
    supervised.wait_for_line("future")
    supervised.wait_for_log("printed by the task")
    supervised.send(signal.SIGTERM)
    supervised.assert_clean_exit(0)
    assert "; replaced" not in supervised.log
    assert supervised.log.count("printed by the task") == 1


def test_data_queued_by_trackers_arrives_though_each_worker_does_one_task(start, call):
    supervised = start("--max-tasks", "1", workers=2)
    for number in range(10):
        call("capture", number)
    wait_until(lambda: len(lines_that_begin(supervised, "delivered")) == 10, f"ten events; log:\n{supervised.log}")
    supervised.send(signal.SIGTERM)
    supervised.assert_clean_exit(0)
    assert sorted(supervised.ledger)[:10] == [f"delivered {number}" for number in range(10)]


def test_a_successor_does_not_wait_for_the_threads_of_the_one_before(start, call):
    supervised = start("--max-tasks", "1", "--drain-timeout", "60")
    for number in range(4):
        call("leave_thread", f"lingerer-{number}")
    workers = [pid_of(supervised, f"lingerer-{number}") for number in range(4)]
    assert len(set(workers)) == 4
    supervised.wait_for_log("the process waits for non-daemon threads before it exits: lingerer-0")
    ending = [f"flask-backend: worker {QUEUE} [ending]"] * 4
    wait_until(lambda: [title(pid) for pid in workers] == ending, "all of them linger")
    wait_until(lambda: len(supervised.loans()) == 1, "their loans are closed")
    supervised.send(signal.SIGTERM)
    supervised.wait_for_log("stopping")
    supervised.send(signal.SIGTERM)
    supervised.assert_clean_exit(0)
    assert "; replaced" not in supervised.log


@pytest.mark.parametrize("what", ["leave_thread", "leave_handler"])
@pytest.mark.parametrize("how", ["recycle", "reload"])
def test_a_worker_that_lingers_is_killed_after_the_drain_timeout_as_planned(start, call, how, what):
    supervised = start(*(["--max-tasks", "1"] if how == "recycle" else []), "--drain-timeout", "2")
    began = time.monotonic()  # before its last job, which may end as soon as it has written its line
    call(what, *(["lingerer"] if what == "leave_thread" else []))
    pid = pid_of(supervised, "lingerer" if what == "leave_thread" else "handler")
    if how == "reload":
        reload(supervised)
    wait_until(lambda: title(pid).endswith("[ending]"), "its last job is settled")
    supervised.wait_for_log("the process waits for")
    wait_until(lambda: is_gone(pid), "it is killed")
    assert time.monotonic() - began > 2
    supervised.wait_for_log(f"worker {pid} of {QUEUE} did not exit within 2 s after its last job: it is killed")
    supervised.send(signal.SIGTERM)
    supervised.assert_clean_exit(0)
    assert "ERROR" not in supervised.log


@pytest.mark.parametrize("how", [signal.SIGHUP, signal.SIGTTOU])
def test_a_long_task_is_not_cut_where_only_its_worker_is_to_end(start, call, tmp_path, how):
    supervised = start("--drain-timeout", "0.5", workers=2)
    before = supervised.workers()
    for _ in range(2):
        call("wait_for", str(tmp_path / "go"))
    supervised.wait_for_line("begin", times=2)
    if how is signal.SIGHUP:
        reload(supervised)
    else:
        supervised.send(how)
        supervised.wait_for_log(f"now {QUEUE}=1")
    time.sleep(1.5)  # longer than a drain may take, and than the supervisor's reaction
    assert set(before) <= set(supervised.workers())
    (tmp_path / "go").touch()
    supervised.wait_for_line("waited", times=2)
    supervised.send(signal.SIGTERM)
    supervised.assert_clean_exit(0)


def test_at_a_stop_the_time_of_a_worker_that_lingers_counts_from_the_signal(start, call):
    supervised = start("--drain-timeout", "1.5")
    call("leave_thread", "lingerer")
    pid = pid_of(supervised, "lingerer")
    began = time.monotonic()
    supervised.send(signal.SIGTERM)
    supervised.assert_clean_exit(0)
    assert 1.5 <= time.monotonic() - began < 5
    assert f"drain timeout: killing worker {pid}, which has no job but has not exited" in supervised.log
    assert "lingerer" in supervised.log


def test_a_worker_that_lingers_ends_though_its_supervisor_is_killed(start, call):
    supervised = start("--max-tasks", "1", "--drain-timeout", "1")
    call("leave_thread", "lingerer")
    pid = pid_of(supervised, "lingerer")
    wait_until(lambda: title(pid).endswith("[ending]"), "it lingers")
    supervised.send(signal.SIGKILL)
    supervised.assert_clean_exit(-signal.SIGKILL)
    wait_until(lambda: is_gone(pid), "it is gone")


def test_an_exit_handler_that_crashes_is_reported_and_costs_nothing(start, call):
    supervised = start("--max-tasks", "1", ending="handler_crashes")
    for number in range(12):  # more than the breaker tolerates
        call("capture", number)
    wait_until(lambda: supervised.log.count("was killed by signal 11") == 12, "each worker ends in its exit handler")
    supervised.wait_reserving(1)
    assert "as it ended" in supervised.log
    assert "; replaced" not in supervised.log
    supervised.send(signal.SIGTERM)
    supervised.assert_clean_exit(0)


def test_a_failing_hook_is_exit_3_despite_threads_it_has_started(start):
    supervised = start("--drain-timeout", "1", ending="hook_thread hook_fails")
    supervised.assert_clean_exit(3)
    assert "RuntimeError: no database" in supervised.log
    assert "prices" in supervised.log


def test_a_worker_leaves_cleanup_of_the_supervisors_objects_to_the_supervisor(start, call):
    supervised = start("--max-tasks", "1", ending="import_scratch import_handler")
    (scratch,) = (Path(line.split()[1]) for line in lines_that_begin(supervised, "scratch"))
    helper = pid_of(supervised, "helper")
    for _ in range(3):
        call("use_scratch")
    supervised.wait_for_line("scratch is there: True", times=3)
    wait_until(lambda: len(lines_that_begin(supervised, "handler of the import")) == 3, "three workers have ended")
    assert scratch.is_dir()
    assert not is_gone(helper)
    supervised.send(signal.SIGTERM)
    supervised.assert_clean_exit(0)
    assert not scratch.exists()
    assert is_gone(helper)
    assert supervised.ledger[-1] == f"handler of the import {supervised.pid}"
    assert "Traceback" not in supervised.log


def test_processes_left_by_a_task_end_as_python_ends_them(start, call):
    supervised = start()
    call("start_processes")
    supervised.wait_for_line("started")
    assert supervised.ledger == ["fork: [1]", "spawn: [1]", "forkserver: [1]", "manager: [1]", "started"]
    family = psutil.Process(supervised.pid).children(recursive=True)
    supervised.send(signal.SIGTERM)
    supervised.assert_clean_exit(0)
    assert "process" in supervised.ledger
    assert not psutil.wait_procs(family, timeout=5)[1]


# -- threads of the import -----------------------------------------------------------------------------------


def test_a_supervisor_ends_within_the_drain_timeout_despite_threads_of_the_import(start):
    supervised = start("--drain-timeout", "2", ending="import_thread")
    reload(supervised)
    began = time.monotonic()
    supervised.send(signal.SIGTERM)
    supervised.assert_clean_exit(0)
    assert 1 < time.monotonic() - began < 5
    supervised.wait_for_log("the process waits for non-daemon threads before it exits: prices; in ")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
def test_a_second_signal_ends_a_supervisor_at_once_that_waits_for_its_threads(start, number):
    supervised = start("--drain-timeout", "60", ending="import_thread")
    (worker,) = supervised.workers()
    supervised.send(signal.SIGTERM)
    wait_until(lambda: is_gone(worker), "the worker has ended")
    supervised.wait_for_log("the process waits for")
    supervised.send(signal.SIGHUP)  # now without meaning
    supervised.send(number)
    supervised.assert_clean_exit(0)


def test_a_supervisor_that_gives_jobs_back_reports_it_though_threads_delay_its_end(start, call, tmp_path):
    supervised = start("--drain-timeout", "0.5", ending="import_thread")
    call("wait_for", str(tmp_path / "never"))
    supervised.wait_for_line("begin")
    supervised.send(signal.SIGTERM)
    supervised.assert_clean_exit(4)


@pytest.mark.parametrize("ending", ["import_thread", "hook_thread"])
def test_a_worker_in_the_foreground_ends_within_the_drain_timeout(command, broker, ending):
    running = command("worker", QUEUE, "--drain-timeout", "2", app=APP, ENDING=ending)
    wait_until(lambda: broker.waiting(QUEUE) == 1, "it waits for jobs")
    running.send(signal.SIGTERM)
    assert running.wait() == 0
    assert "prices" in running.log


def test_a_failing_hook_of_a_worker_in_the_foreground_is_exit_3_despite_threads_it_has_started(command):
    running = command("worker", QUEUE, "--drain-timeout", "1", app=APP, ENDING="hook_thread hook_fails")
    assert running.wait() == 3


# -- processes that tasks fork -------------------------------------------------------------------------------


@pytest.mark.parametrize("runner", ["supervise", "worker"])
@pytest.mark.parametrize(
    ("how", "status", "told"),
    [
        ("falls through", 0, ""),
        ("raises", 1, "ValueError: the child has failed"),
        ("exits", 3, ""),
        ("exits with a text", 1, "the child is at a loss"),
        ("is interrupted", -signal.SIGINT, "KeyboardInterrupt"),
        ("exits at once", 4, ""),
        ("starts a thread", 0, ""),
        ("registers a handler", 0, ""),
    ],
)
def test_a_forked_process_that_comes_back_ends_by_itself(start, command, call, broker, runner, how, status, told):
    running = start() if runner == "supervise" else command("worker", QUEUE, app=APP, **BUFFERED, **WARNINGS)
    job_id = call("fork", how)
    running.wait_for_line(f"{how}: {status}")
    wait_until(lambda: broker.is_empty(QUEUE), f"job {job_id} is done")
    wait_until(lambda: broker.waiting(QUEUE) == 1, "one worker waits for jobs")
    assert told in running.log
    assert "job" not in running.log.replace(str(running.broker.uri), "")  # not settled as a failure
    assert running.log.count("printed by the child") == (how != "exits at once")
    if how == "starts a thread":
        assert running.ledger[0] == "thread of the child"
    if how == "registers a handler":
        assert running.ledger[0] == "handler of the child"
    running.send(signal.SIGTERM)
    assert running.wait() == 0
    assert running.log.count("printed by the parent") == 1


def test_a_process_forked_by_a_hook_makes_no_second_worker(start, call, broker):
    supervised = start(ending="hook_forks")
    forked = pid_of(supervised, "forked")
    wait_until(lambda: is_gone(forked), "it has ended")
    assert broker.waiting(QUEUE) == 1
    supervised.send(signal.SIGTERM)
    supervised.assert_clean_exit(0)
