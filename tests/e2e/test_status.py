"""`flask-backend status`, beside real supervisors: those of other tests may run here, too."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner
from support.supervised import title
from support.waiting import wait_until
from support.workload import INBOX, QUEUE

from flask_backend.cli import main
from flask_backend.cli.commands import status
from flask_backend.operations import supervisors
from flask_backend.operations.supervisors import Process, Queue, Supervisor, Worker
from flask_backend.supervisor.history import ReloadRecord
from flask_backend.system import page
from flask_backend.system.procfs import PROC_IS_THERE, read_memory

pytestmark = [pytest.mark.any_broker, pytest.mark.skipif(not PROC_IS_THERE, reason="needs Linux")]


@pytest.fixture
def listed(monkeypatch):
    """Let only these processes run, each with its title; none has a page."""

    def let_run(pairs):
        monkeypatch.setattr(supervisors, "titles", lambda: iter(pairs))
        monkeypatch.setattr(page, "find", lambda _pid=None: {})

    return let_run


def run(*args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "flask_backend", "status", *args]
    return subprocess.run(command, capture_output=True, text=True)


def find(pid: int) -> dict | None:
    """Return the supervisor with this number from the command's output."""
    result = run("--json")
    assert not result.stderr
    return next((found for found in json.loads(result.stdout) if found["pid"] == pid), None)


def test_status_shows_a_supervisor_and_the_work_and_memory_of_its_workers(supervise, tasks, tmp_path):
    supervised = supervise("--queue", f"{QUEUE}=2", "--queue", f"{INBOX}=1", BALLAST_MB="50")
    supervised.wait_for_log("ready: ")
    wait_until(lambda: len(supervised.workers()) == 3, "all workers are there")
    tasks.wait_for(str(tmp_path / "go"))
    wait_until(lambda: any("wait_for" in title(pid) for pid in supervised.workers()), "a title shows the task")
    told = find(supervised.pid)
    assert [(queue["name"], queue["wanted"], queue["ready"], queue["busy"]) for queue in told["queues"]] == [
        (QUEUE, 2, 2, 1),
        (INBOX, 1, 1, 0),
    ]
    assert (told["state"], told["generation"], told["reload"], told["frozen_s"]) == ("running", 0, None, None)
    assert (told["app"], told["broker"]) == (tasks.app.name, supervised.broker.uri)
    [busy] = [worker for worker in told["workers"] if worker["job_id"]]
    assert (busy["task"], busy["state"], busy["is_old"], busy["done"]) == ("wait_for", "ready", False, 0)
    assert 0 <= busy["job_for_s"] < 60
    assert {worker["pid"] for worker in told["workers"]} == set(supervised.workers())
    assert [worker["queue"] for worker in told["workers"]] == [QUEUE, QUEUE, INBOX]
    assert sorted(re.sub(r"\d+s", "Ns", worker["activity"]) for worker in told["workers"]) == [
        "idle",
        "idle",
        "wait_for Ns",
    ]
    for worker in told["workers"]:
        assert worker["private_bytes"] < 25 << 20
        assert worker["shared_bytes"] > 50 << 20
        assert worker["rss_bytes"] == worker["private_bytes"] + worker["shared_bytes"]
        assert worker["private_bytes"] < worker["pss_bytes"] < worker["rss_bytes"]
        assert 0 <= worker["up_s"] <= told["up_s"] < 60
    everybody = [told, *told["workers"]]
    assert told["total_private_bytes"] == sum(process["private_bytes"] for process in everybody)
    assert told["total_pss_bytes"] == sum(process["pss_bytes"] for process in everybody)
    (tmp_path / "go").touch()
    supervised.send(signal.SIGTERM)
    supervised.assert_clean_exit(0)
    assert f'"pid": {supervised.pid},' not in run("--json").stdout  # others may run


def test_status_is_a_table_for_people(supervise):
    supervised = supervise(workers=2)
    supervised.wait_ready()
    result = run()
    assert result.returncode == 0
    of_ours = next(part for part in result.stdout.split("\n\n") if f"supervisor {supervised.pid}," in part)
    first, _, queue, head, master, *workers, total = of_ours.splitlines()
    assert re.fullmatch(rf"supervisor {supervised.pid}, up \d+s: running for \d+s, 2 workers, 2 of 2 ready", first)
    assert queue.split() == [QUEUE, "2", "2", "0", "0", "none"]
    assert head.split() == ["pid", "queue", "does", "up", "done", "failed", "private", "shared", "PSS"]
    assert re.fullmatch(rf" *{supervised.pid} +supervises +\d+s( +[\d.]+M){{3}}", master)
    assert [line.split()[:3] for line in workers] == [[str(pid), QUEUE, "idle"] for pid in sorted(supervised.workers())]
    assert re.fullmatch(r" +all( +[\d.]+M){2}", total)


def test_counts_exits_and_deaths_are_shown_and_cross_a_reload(supervise, tasks, broker, tmp_path):
    supervised = supervise(workers=2)
    supervised.wait_ready()
    for n in range(3):
        tasks.note(str(n))
    tasks.decide("bury")
    tasks.die_once("kill", str(tmp_path / "marker"))
    wait_until(lambda: (told := find(supervised.pid)) and told["deaths"], "the death is on the page")
    supervised.wait_for_line("survived")

    def counts():
        [queue] = find(supervised.pid)["queues"]
        found = {task["name"]: task for task in queue["tasks"]}
        names = ("done", "failed", "retried", "buried", "crashed", "discarded", "expired")
        return {name: tuple(task[key] for key in names) for name, task in found.items()}

    tasks.decide("discard")
    for _ in range(2):
        broker.put(QUEUE, b'{"endpoint":"note","headers":{"expires":1}}')
    expected = {"note": (3, 0, 0, 0, 0, 0, 2), "decide": (1, 1, 0, 1, 0, 1, 0), "die_once": (1, 0, 0, 0, 1, 0, 0)}
    wait_until(lambda: counts() == expected, "all are counted")
    pasts = [(worker["crashed"], worker["restarts"]) for worker in find(supervised.pid)["workers"]]
    assert sorted(pasts) == [(0, {}), (1, {"crash": 1})]
    supervised.send(signal.SIGHUP)
    wait_until(lambda: (find(supervised.pid)["reload"] or {}).get("outcome") == "generation 1 serves", "it is reloaded")
    told = find(supervised.pid)
    assert (told["generation"], told["checks"], told["reload"]["has_failed"]) == (1, 1, False)
    [death] = told["deaths"]
    assert (death["reason"], death["task"], death["exit_signal"]) == ("crash", "die_once", 9)
    wait_until(lambda: find(supervised.pid)["queues"][0]["exits"] == {"crash": 1, "reload": 2}, "the old ones are gone")
    assert counts() == expected
    told = find(supervised.pid)
    assert told["reloads"] == {"done": 1, "refused": 0}
    assert sum(worker["crashed"] for worker in told["workers"]) == 1  # the place is the same
    text = next(part for part in run().stdout.split("\n\n") if f"supervisor {supervised.pid}," in part)
    assert re.search(r"last reload, \d+s ago: generation 1 serves", text)
    assert re.search(rf"^{QUEUE} +decide +1 +1 +0 +1 +0 +0 +[\d.]+ms +[\d.]+m?s$", text, re.MULTILINE)
    assert re.search(r"^\d+s ago \(crash\): worker \d+ of .* was killed by signal 9", text, re.MULTILINE)
    assert 0 < told["queues"][0]["tasks"][0]["busy_s"] < 5
    assert sum(sum(task["durations"]) for task in told["queues"][0]["tasks"]) == 6


def test_the_wait_of_a_job_is_that_of_its_first_attempt_without_its_delay(supervise, tasks, broker):
    """By the message's own time if that is near, otherwise as the broker knows it."""
    waiting = tasks.note("waits for the supervisor")
    delayed = tasks.note.options(delay=2)("due soon")
    tasks.fail()  # and is retried seconds later: that attempt has no wait
    wait_until(lambda: broker.job(waiting.id)["age"] >= 3, "they wait")
    assert broker.job(delayed.id)["state"] == "ready"
    supervised = supervise(workers=1)
    supervised.wait_for_line("note due soon")
    wait_until(lambda: broker.count(QUEUE, "delayed") == 1, "the failed one is to be retried")
    with broker.client(QUEUE) as client:
        client.kick(1)
    supervised.wait_for_line("fail", times=2)
    tasks.note("waits for no one")

    def told():
        [queue] = find(supervised.pid)["queues"]
        return {task["name"]: task for task in queue["tasks"]}

    wait_until(lambda: sum(told()["note"]["waits"]) == 3, "all waits are counted")
    counts = told()
    assert sum(counts["fail"]["waits"]) == 1
    assert sum(counts["fail"]["durations"]) == 2
    # The delayed one was due 2 s later: 3.5 s and more than 1 s, the third none.
    assert 4 < counts["note"]["waited_s"] < 2 * counts["fail"]["waited_s"] - 1


def test_the_reference_has_each_key_of_the_json(supervise, tasks):
    supervised = supervise(workers=1)
    supervised.wait_ready()
    tasks.note("x")
    wait_until(lambda: find(supervised.pid)["queues"][0]["tasks"], "a task is counted")
    told = find(supervised.pid)
    text = (Path(__file__).parents[2] / "docs" / "reference" / "status.md").read_text()
    rows = re.findall(r"^\| (`.*`) \| ", text.partition("## `status --json`")[2], re.MULTILINE)
    documented = [name for row in rows for name in re.findall(r"`(\w+)`", row)]
    [queue], [worker] = told["queues"], told["workers"]
    of_reload = [field.name for field in dataclasses.fields(ReloadRecord)]
    shown = [
        *told,
        *of_reload,
        *queue,
        *queue["tasks"][0],
        *(key for key in worker if key not in told or key == "state"),
    ]
    assert sorted(documented) == sorted(shown)


def test_a_frozen_supervisor_is_shown_with_the_seconds(supervise):
    supervised = supervise(workers=1)
    supervised.wait_ready()
    supervised.send(signal.SIGSTOP)
    try:
        wait_until(lambda: (find(supervised.pid)["frozen_s"] or 0) > 1, "it is frozen for more than a second")
        assert re.search(r"^frozen for \d+ s: a signal has stopped it$", run().stdout, re.MULTILINE)
    finally:
        supervised.send(signal.SIGCONT)
    wait_until(lambda: find(supervised.pid)["frozen_s"] is None, "it goes on")


def test_a_supervisor_without_a_broker_and_one_that_drains_are_shown(supervise, tasks, tmp_path, broker):
    supervised = supervise(workers=2)
    supervised.wait_ready()
    tasks.wait_for(str(tmp_path / "go"))
    wait_until(lambda: find(supervised.pid)["queues"][0]["busy"] == 1, "a worker is busy")
    broker.stop()
    wait_until(lambda: find(supervised.pid)["queues"][0]["serving"] == 1, "the idle worker misses its broker")
    told = find(supervised.pid)
    [away] = [worker for worker in told["workers"] if worker["broker_away_s"] is not None]
    assert (away["activity"], away["state"], told["queues"][0]["ready"]) == ("waits for the broker", "ready", 2)
    supervised.send(signal.SIGTERM)
    wait_until(lambda: find(supervised.pid)["state"] == "draining", "it drains")
    assert run().stdout.count(" draining for ") >= 1
    (tmp_path / "go").touch()
    supervised.wait()


def test_watch_shows_it_again_and_again(supervise):
    supervised = supervise(workers=1)
    supervised.wait_ready()
    command = [sys.executable, "-m", "flask_backend", "status", "--watch"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as watching:
        lines = iter(watching.stdout.readline, "")
        for _ in range(2):
            next(line for line in lines if line.startswith(f"supervisor {supervised.pid},"))
        watching.send_signal(signal.SIGINT)
        watching.stdout.read()
        assert watching.stderr.read() == ""
    assert watching.returncode == 0


def test_a_terminal_of_80_columns_is_not_left_behind(supervise, monkeypatch):
    supervised = supervise(workers=1)
    supervised.wait_ready()
    monkeypatch.setattr("flask_backend.cli.output.terminal_width", lambda: 80)
    shown = CliRunner().invoke(main, ["status"]).stdout
    (ours,) = [part for part in shown.split("\n\n") if f"supervisor {supervised.pid}," in part]  # of several, perhaps
    assert [line for line in ours.splitlines() if len(line) > 80] == []


def test_long_names_keep_what_tells_them_apart_and_a_death_is_shown_whole(monkeypatch):
    process = Process(os.getpid(), 1, "", 5.0, 30 << 20, None)
    names = ["com.example/payments.reconciliation", "com.example/payments.reconciliation.nightly"]
    queues = [Queue(name, wanted=2, ready=2, serving=2, exits={"crash": 1, "memory": 12}) for name in names]
    workers = [Worker(process, name, "reconcile_the_ledgers_of_all_customers 75s", "ready", 7) for name in names]
    death = "worker 4923 of q was killed by signal 9 (Killed, perhaps out of memory) at job 7 (reconcile) after 3 s"
    facts = {"deaths": [{"at": time.time() - 90, "reason": "crash", "description": death}]}
    found = SimpleNamespace(
        frozen_s=None, page=SimpleNamespace(state="running", generation=0, now_ns=0, header=[0] * 9)
    )
    monkeypatch.setattr(status, "find", lambda: [Supervisor(process, workers, queues, found, facts)])
    monkeypatch.setattr("flask_backend.cli.output.terminal_width", lambda: 80)
    monkeypatch.setattr(status, "terminal_width", lambda: 80)
    lines = CliRunner().invoke(main, ["status"]).stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert [line.split()[0][-8:] for line in lines[2:4]] == ["iliation", ".nightly"]
    assert all(line.endswith("1 crash, 12 memory") for line in lines[2:4])
    assert all(" 75s " in line for line in lines[6:8])
    assert " ".join(line.strip() for line in lines[-2:]) == f"1m30s ago (crash): {death}"


def test_an_unreadable_process_leaves_blanks_and_the_others_are_shown(supervise, monkeypatch):
    """As for a unit of another user, or in a container without the capability to read others' memory."""
    supervised = supervise(workers=2)
    supervised.wait_ready()
    hidden, open_ = sorted(supervised.workers())
    monkeypatch.setattr(supervisors, "read_memory", lambda pid: None if pid == hidden else read_memory(pid))
    told = json.loads(CliRunner().invoke(main, ["status", "--json"]).stdout)
    told = next(found for found in told if found["pid"] == supervised.pid)
    workers = {worker["pid"]: worker for worker in told["workers"]}
    assert [workers[hidden][f"{size}_bytes"] for size in ("private", "shared", "pss")] == [None, None, None]
    assert workers[hidden]["rss_bytes"] > 10 << 20
    assert workers[open_]["private_bytes"] > 0
    assert (told["total_private_bytes"], told["total_pss_bytes"]) == (None, None)
    lines = CliRunner().invoke(main, ["status"]).stdout.splitlines()
    assert any(re.fullmatch(rf" *{hidden} +{QUEUE} +idle +\d+s +0 +0 *", line) for line in lines)
    assert any(re.fullmatch(rf" *{open_} +{QUEUE} +idle +\d+s +0 +0( +[\d.]+M){{3}}", line) for line in lines)


def test_supervisors_of_other_users_are_shown(supervise, monkeypatch):
    supervised = supervise(workers=1)
    supervised.wait_ready()
    monkeypatch.setattr(os, "getuid", lambda: 4711)
    monkeypatch.setattr(page, "nameless_pages", lambda _pid: {})  # which another user may not read
    shown = CliRunner().invoke(main, ["status"]).stdout
    assert re.search(rf"^supervisor {supervised.pid}, up \d+s: state unknown, 1 worker$", shown, re.MULTILINE)
    assert re.search(rf"^ *{supervised.workers()[0]} +{QUEUE} +idle +\d+s +", shown, re.MULTILINE)
    told = json.loads(CliRunner().invoke(main, ["status", "--json"]).stdout)
    told = next(found for found in told if found["pid"] == supervised.pid)
    assert (told["state"], told["generation"], told["workers"][0]["done"]) == (None, None, None)


def test_a_page_with_nonsense_costs_only_the_figures_of_its_supervisor(supervise, monkeypatch):
    """Root reads the pages of all users."""
    supervised = supervise(workers=1)
    supervised.wait_ready()
    monkeypatch.setattr(page.Page, "labels", lambda _page: {QUEUE: ["too", "many", "names"] * 100})
    shown = CliRunner().invoke(main, ["status"]).stdout
    assert re.search(rf"^supervisor {supervised.pid}, up \d+s: state unknown, 1 worker$", shown, re.MULTILINE)


def test_a_supervisor_is_shown_while_a_reload_imports_the_app(supervise, tmp_path):
    """It executes its command again, and has no title of its own until the app is loaded."""
    slow = tmp_path / "slow"
    supervised = supervise(workers=2, SLOW_VERSION=str(slow))
    supervised.wait_ready()
    workers = set(supervised.workers())
    slow.touch()
    supervised.send(signal.SIGHUP)
    wait_until((tmp_path / "slow.2").exists, "the new image imports the app")
    told = find(supervised.pid)
    assert {worker["pid"] for worker in told["workers"]} == workers
    assert re.search(rf" *{supervised.pid} +reloads +", run().stdout)
    slow.unlink()
    wait_until(lambda: re.search(rf" *{supervised.pid} +supervises +", run().stdout), "the reload is done")


@pytest.mark.parametrize("parent", ["bash", "/bin/sh -c flask-backend worker q", "supervise q", "python app.py"])
def test_the_parent_of_a_lone_worker_is_not_a_supervisor(listed, parent):
    pairs = [(os.getppid(), parent), (os.getpid(), "flask-backend: worker q [idle]")]
    listed(pairs)
    assert CliRunner().invoke(main, ["status"]).exit_code == 1


def test_a_title_of_another_user_cannot_write_to_the_terminal(listed):
    pairs = [
        (os.getppid(), "flask-backend: master [1 queue, 1 worker]"),
        (os.getpid(), "flask-backend: worker q [\x1b[2J]"),
    ]
    listed(pairs)
    assert "q" in (shown := CliRunner().invoke(main, ["status"]).stdout)
    assert "\x1b" not in shown


def test_a_child_that_still_has_its_parents_title_is_not_a_supervisor(listed):
    """The state just after a fork."""
    master = "flask-backend: master [1 queue, 1 worker]"
    listed([(os.getppid(), master), (os.getpid(), master)])
    result = CliRunner().invoke(main, ["status", "--json"])
    assert [found["pid"] for found in json.loads(result.stdout)] == [os.getppid()]


def test_status_says_so_if_no_supervisor_runs(listed):
    listed([(os.getpid(), "python app.py")])
    result = CliRunner().invoke(main, ["status"])
    assert result.exit_code == 1
    assert result.stderr == ("Error: no supervisor runs here: start one with `flask-backend supervise`\n")
    assert not result.stdout


def test_one_of_several_supervisors_is_shown(listed):
    with subprocess.Popen(["sleep", "60"]) as one, subprocess.Popen(["sleep", "60"]) as other:
        try:
            check_one_of_several(listed, one.pid, other.pid)
        finally:
            one.kill()
            other.kill()


def check_one_of_several(listed, here, there):
    listed([(pid, "flask-backend: master [1 queue, 2 workers]") for pid in (here, there)])

    def shown(*args):
        result = CliRunner().invoke(main, ["status", *args])
        return re.findall(r"^supervisor (\d+),", result.stdout, re.MULTILINE)

    assert sorted(shown()) == sorted([str(here), str(there)])
    assert shown("--pid", str(here)) == [str(here)]
    told = json.loads(CliRunner().invoke(main, ["status", "--json", "--pid", str(there)]).stdout)
    assert [each["pid"] for each in told] == [there]
    listed([(there, "flask-backend: master [1 queue, 2 workers]")])
    result = CliRunner().invoke(main, ["status", "--pid", str(here)])
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == f"Error: no supervisor with the pid {here} runs here\n"


def test_a_supervisor_that_ends_during_the_reading_is_not_shown(listed):
    gone = subprocess.Popen(["true"])
    gone.wait()
    listed([(gone.pid, "flask-backend: master [1 queue, 1 worker]")])
    assert CliRunner().invoke(main, ["status"]).exit_code == 1


def test_status_reports_unsupported_systems(monkeypatch):
    monkeypatch.setattr(status, "PROC_IS_THERE", False)
    result = CliRunner().invoke(main, ["status"])
    assert result.exit_code == 1
    assert result.stderr == "Error: status reads /proc, which only Linux has\n"


def test_status_needs_neither_the_app_nor_flask_nor_psutil():
    code = (
        "import sys\nfrom flask_backend.cli import main\n"
        "try:\n    main(['--app', 'no.such:app', 'status'])\nexcept SystemExit:\n    pass\n"
        "assert not {'flask', 'psutil', 'greenstalk'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
