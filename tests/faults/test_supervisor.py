"""Faults of the real supervisor: each test ends in the same clean exit."""

from __future__ import annotations

import json
import os
import re
import signal
import statistics
import time
from pathlib import Path

import psutil
import pytest
from support.supervised import title
from support.waiting import wait_until
from support.workload import INBOX, QUEUE

pytestmark = pytest.mark.any_broker


def kill(pid: int, number: signal.Signals = signal.SIGKILL) -> None:
    os.kill(pid, number)


# -- start ---------------------------------------------------------------------------------------------------


def test_each_queue_has_its_workers_and_each_worker_runs_its_own_hooks_once(supervise, broker):
    supervised = supervise("--queue", f"{QUEUE}=3", "--queue", INBOX, workers=2)
    supervised.wait_reserving(3, QUEUE)
    supervised.wait_reserving(2, INBOX)
    workers = supervised.workers()
    assert len(workers) == 5
    hooks = [line.split() for line in supervised.ledger]
    assert sorted(int(pid) for _, pid in hooks) == sorted(workers)
    assert sorted(name for name, _ in hooks) == ["hook"] * 3 + ["inbox_hook"] * 2
    assert title(supervised.pid) == "flask-backend: master [2 queues, 5 workers]"
    assert (
        sorted(title(pid) for pid in workers)
        == [f"flask-backend: worker {QUEUE} [idle]"] * 3 + [f"flask-backend: worker {INBOX} [idle]"] * 2
    )
    supervised.send(signal.SIGTERM)
    supervised.assert_clean_exit(0)


def test_without_a_queue_all_are_served(command, broker):
    running = command("supervise", "--workers", "1")
    wait_until(lambda: broker.waiting(QUEUE) == 1 and broker.waiting(INBOX) == 1, "both queues are served")
    running.send(signal.SIGTERM)
    assert running.wait() == 0


def test_a_hook_that_fails_in_every_worker_is_exit_3_and_not_a_storm(supervise):
    supervised = supervise(HOOK_FAILS="1")
    supervised.assert_clean_exit(3)
    assert "RuntimeError: the hook has no database" in supervised.log
    assert f"no worker of {QUEUE} can start, for the reason above: giving up" in supervised.log
    assert len(supervised.ledger) <= 2 * supervised.size


def test_a_broker_unreachable_at_the_start_costs_no_worker(supervise, broker, tasks):
    broker.kill()
    supervised = supervise()
    supervised.wait_for_log("trying again")
    workers = wait_until(lambda: len(pids := supervised.workers()) == 4 and pids, "four workers live")
    broker.start()
    tasks.note("at last")
    supervised.wait_for_line("note at last")
    assert supervised.workers() == workers
    supervised.send(signal.SIGTERM)
    supervised.assert_clean_exit(0)


# -- deaths --------------------------------------------------------------------------------------------------


def test_a_killed_idle_worker_is_replaced(supervise):
    supervised = supervise()
    supervised.wait_ready()
    victim = supervised.workers()[0]
    kill(victim)
    supervised.wait_for_log(
        f"worker {victim} of {QUEUE} was killed by signal 9 (Killed, perhaps out of memory) while idle"
    )
    wait_until(lambda: len(supervised.workers()) == 4 and victim not in supervised.workers(), "four workers again")
    supervised.wait_reserving(4)
    supervised.send(signal.SIGTERM)
    supervised.assert_clean_exit(0)


def test_twenty_idle_workers_killed_one_after_another_are_each_replaced_at_once(supervise, tasks):
    """The benchmarks measure the speed; this test detects an added delay."""
    supervised = supervise(BALLAST_MB="200")
    supervised.wait_ready()
    times = []
    for _ in range(20):
        before = set(supervised.workers())
        victim = min(before)
        start = time.monotonic()
        kill(victim)
        wait_until(lambda before=before: set(supervised.workers()) - before, "a replacement")
        times.append(time.monotonic() - start)
        tasks.note(victim)  # workers that only die are given up
        supervised.wait_for_line(f"note {victim}")
        supervised.wait_reserving(4)
    assert statistics.median(times) < 1.0
    assert "replaced in" not in supervised.log
    supervised.send(signal.SIGTERM)
    supervised.assert_clean_exit(0)


@pytest.mark.parametrize("how", ["kill", "segv", "0", "7"])
def test_a_task_that_crashes_its_worker_runs_again(supervise, tasks, broker, tmp_path, how):
    supervised = supervise(workers=1)
    supervised.wait_ready()
    job = tasks.die_once(how, str(tmp_path / "marker"))
    supervised.wait_for_line("survived")
    if how != "0":
        supervised.wait_for_log(f"at job {job.id}")
    first, second = (line.split()[1] for line in supervised.ledger if line.startswith("die_once"))
    assert first != second
    wait_until(lambda: broker.is_empty(QUEUE), "the job is deleted")
    supervised.send(signal.SIGTERM)
    supervised.assert_clean_exit(0)


def test_a_busy_worker_that_is_killed_loses_no_job_and_leaves_no_process_behind(supervise, tasks, tmp_path):
    supervised = supervise(workers=1)
    supervised.wait_ready()
    tasks.start_process(str(tmp_path / "go"))
    wait_until(lambda: any(line.startswith("started") for line in supervised.ledger), "the process runs")
    started = int(supervised.ledger[-1].split()[1])
    kill(supervised.workers()[0])
    wait_until(lambda: not psutil.pid_exists(started), "the task's process is gone with its worker")
    wait_until(lambda: sum(line.startswith("started") for line in supervised.ledger) == 2, "the job runs again")
    (tmp_path / "go").touch()
    supervised.send(signal.SIGTERM)
    supervised.assert_clean_exit(0)


# -- recycling -----------------------------------------------------------------------------------------------


def test_a_worker_over_the_memory_ceiling_is_recycled_after_its_task_one_at_a_time(supervise, tasks, broker):
    supervised = supervise("--max-memory", "60M", workers=3)
    supervised.wait_ready()
    for _ in range(12):
        tasks.grow(40)
    supervised.wait_for_log("is recycled: its private memory is")
    wait_until(lambda: broker.is_empty(QUEUE), "all tasks are done", 40)
    assert sum(line.startswith("grow") for line in supervised.ledger) == 12
    supervised.wait_reserving(3)
    assert "was killed" not in supervised.log
    supervised.send(signal.SIGTERM)
    supervised.assert_clean_exit(0)


def test_no_second_worker_of_a_queue_is_recycled_until_the_first_ones_successor_is_ready(supervise, tasks, tmp_path):
    gate = tmp_path / "gate"
    supervised = supervise("--max-memory", "60M", workers=3, HOOK_WAITS_WHILE=str(gate))
    supervised.wait_ready()
    gate.touch()
    before = supervised.workers()
    for _ in before:
        tasks.grow(80, str(tmp_path / "go"))
    for pid in before:
        supervised.wait_for_line(f"grow {pid}")
    (tmp_path / "go").touch()
    supervised.wait_for_log("is recycled")
    tasks.sleep(3)  # time for three more readings of every worker's memory
    supervised.wait_for_line("slept")
    assert supervised.log.count("is recycled") == 1
    gate.unlink()
    wait_until(lambda: supervised.log.count("is recycled") == 3, "the others follow")
    supervised.wait_reserving(3)
    assert not set(before) & set(supervised.workers())
    supervised.send(signal.SIGTERM)
    supervised.assert_clean_exit(0)


def test_pages_shared_with_the_supervisor_do_not_count(supervise, tasks, broker):
    supervised = supervise("--max-memory", "60M", workers=2, BALLAST_MB="150")
    supervised.wait_ready()
    workers = supervised.workers()
    for _ in range(20):
        tasks.touch_ballast()
    supervised.wait_for_line("sum True", 20)
    assert psutil.Process(workers[0]).memory_info().rss > 150 << 20
    tasks.sleep(2.5)  # longer than two checks
    supervised.wait_for_line("slept")
    assert supervised.workers() == workers
    supervised.send(signal.SIGTERM)
    supervised.assert_clean_exit(0)


def test_pages_that_a_task_has_unshared_count_at_the_next_reading(supervise, tasks):
    supervised = supervise("--max-memory", "60M", workers=1, BALLAST_MB="150")
    supervised.wait_ready()
    (worker,) = supervised.workers()
    tasks.sleep(1.5)  # longer than it takes until the first reading
    supervised.wait_for_line("slept")
    tasks.rewrite_ballast()
    supervised.wait_for_line("rewritten")
    rewritten = time.monotonic()
    supervised.wait_for_log(f"worker {worker} of {QUEUE} is recycled: its private memory is")
    assert time.monotonic() - rewritten < 15
    supervised.wait_reserving(1)
    supervised.send(signal.SIGTERM)
    supervised.assert_clean_exit(0)


def test_a_worker_is_recycled_after_its_number_of_tasks(supervise, tasks, broker):
    supervised = supervise("--max-tasks", "5", workers=2)
    supervised.wait_ready()
    tasks.backend.send_many(QUEUE, [{"endpoint": "pid"}] * 50)
    wait_until(lambda: sum(line.startswith("pid") for line in supervised.ledger) == 50, "50 tasks are done")
    by_worker = [supervised.ledger.count(line) for line in {x for x in supervised.ledger if x.startswith("pid")}]
    assert max(by_worker) == 5
    wait_until(lambda: broker.is_empty(QUEUE), "the queue is empty")
    supervised.wait_reserving(2)
    assert "; replaced" not in supervised.log
    supervised.send(signal.SIGTERM)
    supervised.assert_clean_exit(0)


# -- signals -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
def test_idle_workers_stop_at_once(supervise, number):
    supervised = supervise()
    supervised.wait_ready()
    supervised.workers()
    start = time.monotonic()
    supervised.send(number)
    supervised.assert_clean_exit(0)
    assert time.monotonic() - start < 3  # the benchmarks measure the speed


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_drain_finishes_running_tasks_and_takes_no_new_jobs(supervise, tasks, broker, tmp_path, number):
    supervised = supervise(workers=2)
    supervised.wait_ready()
    for n in range(2):
        tasks.wait_for(str(tmp_path / "go"), f"done {n}")
    for n in range(2):
        supervised.wait_for_line(f"begin done {n}")
    tasks.note("later")
    supervised.send(number)
    supervised.wait_for_log("stopping")
    (tmp_path / "go").touch()
    supervised.assert_clean_exit(0)
    assert sorted(supervised.ledger[-2:]) == ["done 0", "done 1"]
    assert broker.count(QUEUE, "ready") == 1


def test_a_drain_that_takes_too_long_gives_the_jobs_back(supervise, tasks, broker):
    supervised = supervise("--drain-timeout", "0.5", workers=2)
    supervised.wait_ready()
    job = tasks.sleep(60)
    supervised.wait_for_line("begin slept")
    supervised.send(signal.SIGTERM)
    supervised.assert_clean_exit(4)
    assert f"gives back job {job.id} (sleep) unfinished" in supervised.log
    wait_until(lambda: broker.count(QUEUE, "ready") == 1, "the job is ready for others")


@pytest.mark.parametrize(
    "numbers", [(signal.SIGTERM, signal.SIGTERM), (signal.SIGINT, signal.SIGTERM), (signal.SIGQUIT,)]
)
def test_a_second_signal_or_quit_gives_the_jobs_back_at_once(supervise, tasks, broker, numbers):
    supervised = supervise(workers=2)
    supervised.wait_ready()
    tasks.sleep(60)
    supervised.wait_for_line("begin slept")
    supervised.send(numbers[0])
    for number in numbers[1:]:
        supervised.wait_for_log("stopping")
        supervised.send(number)
    supervised.assert_clean_exit(4)
    wait_until(lambda: broker.count(QUEUE, "ready") == 1, "the job is ready for others")


def test_a_task_that_holds_the_interpreter_is_ended_by_the_drain_timeout(supervise, tasks, broker):
    supervised = supervise("--drain-timeout", "0.5", workers=1)
    supervised.wait_ready()
    tasks.hog()
    supervised.wait_for_line("begin hog")
    supervised.send(signal.SIGTERM)
    supervised.assert_clean_exit(4)


@pytest.mark.parametrize("env", [{}, {"CAREFREE_IMPORT": "1"}], ids=["raised", "swallowed"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_term_while_the_app_is_imported_is_exit_0(supervise, tmp_path, number, env):
    supervised = supervise(SLOW_IMPORT=str(tmp_path / "importing"), **env)
    wait_until((tmp_path / "importing").exists, "the import has begun")
    supervised.send(number)
    supervised.assert_clean_exit(0)


def test_term_while_hooks_run_is_obeyed_when_they_are_done(supervise, tmp_path):
    supervised = supervise(HOOK_WAITS_FOR=str(tmp_path / "go"))
    wait_until(lambda: len(supervised.ledger) == 4, "four hooks run")
    supervised.workers()
    supervised.send(signal.SIGTERM)
    supervised.wait_for_log("stopping")
    (tmp_path / "go").touch()
    supervised.assert_clean_exit(0)


def test_term_while_a_hook_hangs_ends_at_the_drain_timeout(supervise, tmp_path):
    supervised = supervise("--drain-timeout", "0.5", HOOK_WAITS_FOR=str(tmp_path / "never"))
    wait_until(lambda: len(supervised.ledger) == 4, "four hooks run")
    supervised.workers()
    supervised.send(signal.SIGTERM)
    supervised.assert_clean_exit(0)


@pytest.mark.parametrize("delay_ms", range(0, 400, 20))
def test_term_at_any_moment_of_the_start_leaves_nothing_behind(supervise, delay_ms):
    supervised = supervise()
    time.sleep(delay_ms / 1000)  # each run picks another instant, and all must end properly
    supervised.send(signal.SIGTERM)
    workers = supervised.workers()
    actual = supervised.wait()
    # While the interpreter starts, the signal's default applies.
    assert actual == 0 or (actual == -signal.SIGTERM and not supervised.log), supervised.log
    assert not [pid for pid in workers if psutil.pid_exists(pid)]


def is_pending(pid: int, number: signal.Signals) -> bool:
    [pending] = re.findall(r"^ShdPnd:\t(\w+)", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return bool(int(pending, 16) & 1 << number - 1)


def test_ttin_and_ttou_change_the_number_of_workers(supervise):
    supervised = supervise(workers=1)
    supervised.wait_ready()
    supervised.send(signal.SIGTTIN)
    supervised.wait_reserving(2)
    assert title(supervised.pid) == "flask-backend: master [1 queue, 2 workers]"
    supervised.send(signal.SIGTTOU)
    supervised.wait_reserving(1)
    supervised.send(signal.SIGTTOU)  # never fewer than one
    # Of two pending signals the kernel delivers that with the lower number first.
    wait_until(lambda: not is_pending(supervised.pid, signal.SIGTTOU), "the signal is delivered")
    supervised.send(signal.SIGTTIN)
    supervised.wait_reserving(2)
    supervised.send(signal.SIGTERM)
    supervised.assert_clean_exit(0)


def test_ttou_takes_an_idle_worker(supervise, tasks, tmp_path):
    supervised = supervise(workers=3)
    supervised.wait_ready()
    for number in range(2):
        tasks.wait_for(str(tmp_path / "go"))
        supervised.wait_for_line("begin waited", times=number + 1)

    def busy():
        return [pid for pid in supervised.workers() if "[wait_for" in title(pid)]

    wait_until(lambda: len(busy()) == 2, "two show in their titles that they are busy")
    kept = busy()
    supervised.send(signal.SIGTTOU)
    wait_until(lambda: len(supervised.workers()) == 2, "one is gone")
    assert supervised.workers() == kept
    (tmp_path / "go").touch()
    supervised.wait_for_line("waited", times=2)
    supervised.send(signal.SIGTERM)
    supervised.assert_clean_exit(0)


def test_a_surplus_busy_worker_that_is_killed_is_not_replaced_and_costs_no_further_cpu(
    supervise, tasks, broker, tmp_path
):
    supervised = supervise(workers=1)
    supervised.wait_ready()
    (kept,) = supervised.workers()
    supervised.send(signal.SIGTTIN)
    supervised.wait_reserving(2)
    (surplus,) = set(supervised.workers()) - {kept}
    jobs = [tasks.wait_for(str(tmp_path / "go")) for _ in range(2)]
    supervised.wait_for_line("begin waited", times=2)
    supervised.send(signal.SIGTTOU)
    supervised.wait_for_log(f"now {QUEUE}=1")
    kill(surplus)
    supervised.wait_for_log("; it was one too many")
    (job,) = wait_until(lambda: [job for job in jobs if broker.job(job.id)["state"] == "delayed"], "its job is settled")
    before = psutil.Process(supervised.pid).num_ctx_switches().voluntary
    # The job's delay, a second at least, is the time in which the supervisor has next to nothing to do.
    wait_until(lambda: broker.job(job.id)["state"] == "ready", "the job's delay is over")
    assert psutil.Process(supervised.pid).num_ctx_switches().voluntary - before < 50
    assert "; replaced" not in supervised.log
    assert supervised.workers() == [kept]
    (tmp_path / "go").touch()
    supervised.wait_for_line("waited", times=2)
    supervised.send(signal.SIGTERM)
    supervised.assert_clean_exit(0)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGTTIN, signal.SIGTTOU, signal.SIGUSR1])
def test_signals_until_the_very_end_do_not_change_the_exit(supervise, number):
    supervised = supervise(workers=1)
    supervised.wait_ready()
    supervised.workers()
    supervised.send(signal.SIGTERM)
    while supervised.process.poll() is None:
        supervised.send(number)
        time.sleep(0.001)  # at intervals shorter than the interpreter's own end
    supervised.assert_clean_exit(0)


def test_usr1_makes_every_process_write_its_stacks_in_one_piece(supervise, tasks, tmp_path):
    supervised = supervise(workers=4)
    supervised.wait_ready()
    tasks.wait_in_coroutines(str(tmp_path / "go"))
    wait_until(lambda: supervised.broker.count(QUEUE, "reserved") == 1, "a task runs")
    pids = {supervised.pid, *supervised.workers()}
    for round_ in range(1, 4):
        supervised.send(signal.SIGUSR1)
        wait_until(
            lambda r=round_: len(re.findall("^stacks of process ", supervised.log, re.MULTILINE)) == 5 * r,
            "stacks of all",
        )
    pieces = re.split(r"^stacks of process (\d+) \((flask-backend: .*)\):\n", supervised.log, flags=re.MULTILINE)[1:]
    for pid, shown, text in zip(pieces[::3], pieces[1::3], pieces[2::3], strict=True):
        pids.discard(int(pid))
        stacks, _, after = text.partition("\n\n20")  # log lines may follow
        assert len(re.findall("^Current thread ", stacks, re.MULTILINE)) == 1, text
        assert "most recent call first" not in after
        assert ("heartbeat.py" in stacks) is ("_serve" in stacks) is shown.startswith("flask-backend: worker ")
        if "wait_in_coroutines" in shown:
            assert stacks.startswith("Coroutine ")
    assert pids == set()
    (tmp_path / "go").touch()
    supervised.send(signal.SIGTERM)
    supervised.assert_clean_exit(0)


# -- orphans -------------------------------------------------------------------------------------------------


def test_idle_workers_do_not_outlive_a_killed_supervisor(supervise):
    supervised = supervise()
    supervised.wait_ready()
    supervised.workers()
    supervised.send(signal.SIGKILL)
    supervised.assert_clean_exit(-signal.SIGKILL)


def test_busy_workers_finish_their_task_when_the_supervisor_is_killed(supervise, tasks, broker, tmp_path):
    supervised = supervise(workers=2)
    supervised.wait_ready()
    tasks.wait_for(str(tmp_path / "go"))
    supervised.wait_for_line("begin waited")
    tasks.note("later")
    supervised.wait_for_line("note later")
    workers = supervised.workers()
    supervised.send(signal.SIGKILL)
    wait_until(lambda: sum(psutil.pid_exists(pid) for pid in workers) == 1, "the idle one is gone")
    (tmp_path / "go").touch()
    supervised.assert_clean_exit(-signal.SIGKILL)
    assert supervised.wrote("waited")
    assert broker.is_empty(QUEUE)


def test_orphans_end_at_the_drain_timeout_with_all_their_processes(supervise, tasks, broker, tmp_path):
    supervised = supervise("--drain-timeout", "1", workers=1)
    supervised.wait_ready()
    tasks.start_process(str(tmp_path / "never"))
    wait_until(lambda: any(line.startswith("started") for line in supervised.ledger), "the process runs")
    supervised.workers()
    supervised.seen.add(int(supervised.ledger[-1].split()[1]))
    supervised.send(signal.SIGKILL)
    supervised.assert_clean_exit(-signal.SIGKILL)
    wait_until(lambda: broker.count(QUEUE, "ready") == 1, "the job is ready for others")


def test_a_draining_worker_whose_supervisor_is_killed_still_finishes(supervise, tasks, broker, tmp_path):
    supervised = supervise(workers=1)
    supervised.wait_ready()
    tasks.wait_for(str(tmp_path / "go"))
    supervised.wait_for_line("begin waited")
    supervised.workers()
    supervised.send(signal.SIGTERM)
    supervised.wait_for_log("stopping")
    supervised.send(signal.SIGKILL)
    supervised.wait_for_log("the supervisor is gone")
    Path(tmp_path / "go").touch()
    supervised.assert_clean_exit(-signal.SIGKILL)
    assert supervised.wrote("waited")
    assert broker.is_empty(QUEUE)


# -- shared state --------------------------------------------------------------------------------------------

# Each child that ends by itself, a worker or one that settles a job, reports its imports since the fork.
IMPORTING_APP = """
import logging
import os
import signal
import sys

from flask import Flask
from flask_backend import Backend, Bury, RetryLater

app = Flask(__name__)
app.config.from_prefixed_env()
backend = Backend(app)
parent = os.getpid()
known = set()
os.register_at_fork(before=lambda: known.update(sys.modules))


class Teller(logging.Handler):
    def flush(self):
        if os.getpid() != parent:
            with open(os.environ["LEDGER"], "a") as ledger:
                ledger.write(f"imported {sorted(set(sys.modules) - known)}\\n")


teller = Teller(logging.CRITICAL)


@backend.task("com.example/default")
def act(how):
    app.logger.info("about to %s", how)
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if how != "return":
        raise {"fail": ValueError("no luck"), "later": RetryLater(600), "bury": Bury("no such page")}[how]


@backend.task("com.example/default")
async def wait():
    pass
"""


@pytest.mark.parametrize("how", ["return", "fail", "later", "bury", "kill"])
def test_nothing_is_imported_after_the_fork(supervise, broker, tmp_path, how):
    (tmp_path / "importing.py").write_text(IMPORTING_APP)
    supervised = supervise(app=str(tmp_path / "importing.py"), workers=1)
    supervised.wait_ready()
    broker.put(QUEUE, json.dumps({"endpoint": "act", "args": [how]}).encode())
    wait_until(lambda: not broker.count(QUEUE, "ready") and not broker.count(QUEUE, "reserved"), "it has been tried")
    supervised.wait_reserving(1)
    supervised.send(signal.SIGTERM)
    supervised.assert_clean_exit(0)
    assert set(supervised.ledger) == {"imported []"}
    assert len(supervised.ledger) == (2 if how == "kill" else 1)


def test_everything_that_asynchronous_tasks_need_is_imported_before_the_fork(supervise, broker, tmp_path):
    (tmp_path / "importing.py").write_text(IMPORTING_APP)
    supervised = supervise(app=str(tmp_path / "importing.py"), workers=1)
    supervised.wait_ready()
    broker.put(QUEUE, b'{"endpoint": "wait"}')
    wait_until(lambda: broker.is_empty(QUEUE), "it is done")
    supervised.send(signal.SIGTERM)
    supervised.assert_clean_exit(0)
    assert supervised.ledger
    assert not any("asgiref" in line for line in supervised.ledger)
