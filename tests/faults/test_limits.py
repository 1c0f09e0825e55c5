"""Time limits, deadlines and pools that are given up."""

from __future__ import annotations

import os
import re
import signal
import time

import pytest
from support.waiting import wait_until
from support.workload import INBOX, QUEUE

pytestmark = pytest.mark.any_broker

INTERRUPTIBLE = ["sleep", "compute", "select"]
STUCK = ["stubborn", "blocked", "hog"]


@pytest.mark.parametrize("how", INTERRUPTIBLE)
def test_a_task_at_its_limit_gets_a_timeout_and_fails_like_any_other(supervise, tasks, broker, how):
    supervised = supervise(workers=1)
    supervised.wait_ready()
    workers = supervised.workers()
    job = tasks.limited(how)
    supervised.wait_for_line("TaskTimeout")
    wait_until(lambda: broker.count(QUEUE, "delayed") == 1, "the job is released")
    supervised.wait_for_log(f"task limited of {QUEUE} failed (job {job.id}, attempt 1 of 10), next try in")
    supervised.wait_for_log("TaskTimeout: the task has reached its time limit")
    tasks.note("still here")
    supervised.wait_for_line("note still here")
    assert supervised.workers() == workers
    supervised.send(signal.SIGTERM)
    supervised.assert_clean_exit(0)


def test_a_limit_that_is_reached_while_a_line_is_logged_is_not_swallowed_there(supervise, tasks, broker):
    supervised = supervise(workers=1)
    supervised.wait_ready()
    workers = supervised.workers()
    for _ in range(4):
        tasks.log_for_ever()
    supervised.wait_for_line("TaskTimeout", 4)
    wait_until(lambda: broker.is_empty(QUEUE), "all are done")
    assert supervised.workers() == workers
    assert "Logging error" not in supervised.log
    supervised.send(signal.SIGTERM)
    supervised.assert_clean_exit(0)


def test_the_command_lines_limit_is_for_tasks_without_their_own(supervise, tasks, broker):
    supervised = supervise("--time-limit", "0.5", workers=2)
    supervised.wait_ready()
    tasks.sleep(600)
    supervised.wait_for_log("TaskTimeout: the task has reached its time limit")
    tasks.sleep(0.1, "quick")
    supervised.wait_for_line("quick")
    supervised.send(signal.SIGTERM)
    supervised.assert_clean_exit(0)


def test_a_quick_task_is_never_hit_by_anothers_limit(supervise, tasks, broker):
    supervised = supervise("--time-limit", "0.05", workers=2)
    supervised.wait_ready()
    tasks.sleep.map([0.049] * 40)
    tasks.note.map(range(500))
    wait_until(lambda: broker.count(QUEUE, "ready") + broker.count(QUEUE, "reserved") == 0, "all have run")
    assert sum(line.startswith("note") for line in supervised.ledger) == 500
    failed = supervised.log.count("task sleep of")
    assert supervised.log.count("Traceback") == failed  # a limit reached at the end applies once or not at all
    assert supervised.log.count("task note of") == 0
    supervised.send(signal.SIGTERM)
    supervised.assert_clean_exit(0)


@pytest.mark.parametrize("how", STUCK)
def test_a_task_that_cannot_be_interrupted_is_killed_after_the_grace_with_its_stacks_written(
    supervise, tasks, broker, how
):
    supervised = supervise("--kill-grace", "0.5", workers=2)
    supervised.wait_ready()
    victims = supervised.workers()
    job = tasks.limited(how)
    supervised.wait_for_log(
        f"did not end job {job.id} (limited) at its time limit: its stacks follow, then it is killed"
    )
    supervised.wait_for_log(f"was killed by signal 9 (Killed, perhaps out of memory) at job {job.id} (limited) after")
    if how != "blocked":  # the stacks are missing where the signal that asks for them is blocked
        assert "most recent call first" in supervised.log
        assert "in limited" in supervised.log
    assert len(set(victims) & set(supervised.workers())) == 1
    tasks.note("others go on")
    supervised.wait_for_line("note others go on")
    supervised.send(signal.SIGQUIT)
    assert supervised.wait() in (0, 4)


@pytest.mark.parametrize("ttr", [2, 3])  # one second too little remains on a busy machine
def test_with_a_short_ttr_the_kill_comes_before_another_worker_may_have_the_job(supervise, broker, ttr):
    supervised = supervise("--kill-grace", "30", workers=2)
    supervised.wait_ready()
    job_id = broker.put(QUEUE, b'{"endpoint": "limited", "args": ["stubborn"]}', ttr=ttr)
    supervised.wait_for_log(f"at job {job_id} (limited)")
    assert broker.job(job_id)["timeouts"] == 0
    supervised.send(signal.SIGQUIT)
    assert supervised.wait() in (0, 4)


@pytest.mark.parametrize("how", ["stubborn"])
def test_a_lone_worker_ends_itself_after_the_grace(command, tasks, broker, how):
    running = command("worker", QUEUE, "--kill-grace", "0.5")
    job = tasks.limited(how)
    assert running.wait() == 4
    assert "in limited" in running.log
    wait_until(lambda: broker.job(job.id)["state"] == "ready", "the job is ready for others")


@pytest.mark.parametrize("limit", [0, -1, float("inf"), "5", True])
def test_an_invalid_limit_raises_where_it_is_written(tasks, limit):
    from flask_backend import Backend, ConfigError

    for register in (Backend().task, Backend().receiver):
        with pytest.raises(ConfigError, match="expected seconds, more than 0"):
            register("q", time_limit=limit)


def test_a_worker_whose_hook_hangs_is_killed_at_the_boot_deadline_with_its_stacks_written(supervise, tmp_path):
    gate = tmp_path / "gate"
    supervised = supervise("--boot-timeout", "0.5", workers=2, HOOK_WAITS_WHILE=str(gate))
    supervised.wait_ready()
    gate.touch()
    victim = supervised.workers()[0]
    os.kill(victim, signal.SIGKILL)
    supervised.wait_for_log("was not ready within 0.5 s: its stacks follow, then it is killed")
    supervised.wait_for_log("in hook")
    supervised.wait_for_log("before it was ready")
    gate.unlink()
    supervised.wait_reserving(2)
    supervised.send(signal.SIGTERM)
    supervised.assert_clean_exit(0)


def test_workers_that_only_die_are_given_up_with_one_clear_line(supervise):
    supervised = supervise(workers=2)
    supervised.wait_ready()
    for _ in range(10):
        pids = wait_until(supervised.workers, "there are workers")
        os.kill(pids[0], signal.SIGKILL)
        supervised.wait_for_log(f"worker {pids[0]} of")
    supervised.assert_clean_exit(5)
    assert (
        f"the workers of {QUEUE} have died 10 times within 60 s and finished no job in between: giving up"
        in supervised.log
    )


def test_an_abnormal_death_is_reported_in_one_line(supervise, tasks, broker, tmp_path):
    supervised = supervise("--max-memory", "500M", workers=1)
    supervised.wait_ready()
    job = tasks.die_once("segv", str(tmp_path / "marker"))
    supervised.wait_for_line("survived")
    pattern = (
        rf"worker \d+ of {QUEUE} was killed by signal 11 \(Segmentation fault\) at job {job.id} \(die_once\) "
        r"after \d+\.\d s \(lived \d+\.\d s, CPU \d+\.\d s \+ \d+\.\d s, peak \d+ MiB"
        r"(, last seen with \d+ MiB private)?\); replaced at once"
    )
    assert re.search(pattern, supervised.log), supervised.log
    supervised.send(signal.SIGTERM)
    supervised.assert_clean_exit(0)


def test_the_private_memory_of_the_dead_is_reported_where_it_was_seen(supervise, tasks, tmp_path):
    supervised = supervise(workers=1)
    supervised.wait_ready()
    tasks.grow(80, str(tmp_path / "go"))
    wait_until(lambda: any(line.startswith("grow") for line in supervised.ledger), "the worker has grown")
    tasks.sleep(7, "time for a look at its memory")
    (tmp_path / "go").touch()
    supervised.wait_for_line("time for a look at its memory")
    os.kill(supervised.workers()[0], signal.SIGKILL)
    supervised.wait_for_log("MiB private); replaced at once")
    assert int(re.search(r"last seen with (\d+) MiB private", supervised.log)[1]) >= 80
    supervised.send(signal.SIGTERM)
    supervised.assert_clean_exit(0)


def test_a_suspended_machine_kills_no_worker(supervise, tasks, broker):
    """Both processes are stopped past the deadlines, as in a suspend: at wake-up the task is timed out first."""
    supervised = supervise("--time-limit", "1", "--kill-grace", "1", workers=1)
    supervised.wait_ready()
    (worker,) = supervised.workers()
    tasks.sleep(600)
    supervised.wait_for_line("begin slept")
    os.kill(worker, signal.SIGSTOP)
    supervised.send(signal.SIGSTOP)
    time.sleep(7)  # the time jump that the supervisor takes for a suspend: only real time can show it
    supervised.send(signal.SIGCONT)
    wait_until(lambda: _cpu_has_run(supervised.pid), "the supervisor has had a turn")
    os.kill(worker, signal.SIGCONT)
    supervised.wait_for_log("TaskTimeout: the task has reached its time limit")
    assert supervised.workers() == [worker]
    supervised.send(signal.SIGTERM)
    supervised.assert_clean_exit(0)


def _cpu_has_run(pid: int) -> bool:
    import psutil

    return psutil.Process(pid).status() == psutil.STATUS_SLEEPING


def test_a_receiver_may_have_a_limit(command, broker):
    running = command("worker", INBOX, "--time-limit", "0.2")
    broker.put(INBOX, b'"sleep"')
    running.wait_for_log("TaskTimeout: the task has reached its time limit")
