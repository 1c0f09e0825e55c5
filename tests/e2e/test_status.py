"""`flask-backend status`, beside real supervisors: those of other tests may run here, too."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys

import pytest
from click.testing import CliRunner
from support.supervised import title
from support.waiting import wait_until
from support.workload import INBOX, QUEUE

from flask_backend.cli import main
from flask_backend.cli.commands import status
from flask_backend.system.procfs import PROC_IS_THERE, read_memory

pytestmark = pytest.mark.skipif(not PROC_IS_THERE, reason="needs Linux")


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
    assert told["queues"] == [QUEUE, INBOX]
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
    first, head, master, *workers, total = of_ours.splitlines()
    assert re.fullmatch(rf"supervisor {supervised.pid}, up \d+s: 2 workers, queues {QUEUE}", first)
    assert head.split() == ["pid", "queue", "does", "up", "RSS", "private", "shared", "PSS"]
    assert re.fullmatch(rf" *{supervised.pid} +supervises +\d+s( +[\d.]+M){{4}}", master)
    assert [line.split()[:3] for line in workers] == [[str(pid), QUEUE, "idle"] for pid in sorted(supervised.workers())]
    assert re.fullmatch(r" +all( +[\d.]+M){2}", total)


def test_an_unreadable_process_leaves_blanks_and_the_others_are_shown(supervise, monkeypatch):
    """As for a unit of another user, or in a container without the capability to read others' memory."""
    supervised = supervise(workers=2)
    supervised.wait_ready()
    hidden, open_ = sorted(supervised.workers())
    monkeypatch.setattr(status, "read_memory", lambda pid: None if pid == hidden else read_memory(pid))
    told = json.loads(CliRunner().invoke(main, ["status", "--json"]).stdout)
    told = next(found for found in told if found["pid"] == supervised.pid)
    workers = {worker["pid"]: worker for worker in told["workers"]}
    assert [workers[hidden][f"{size}_bytes"] for size in ("private", "shared", "pss")] == [None, None, None]
    assert workers[hidden]["rss_bytes"] > 10 << 20
    assert workers[open_]["private_bytes"] > 0
    assert (told["total_private_bytes"], told["total_pss_bytes"]) == (None, None)
    lines = CliRunner().invoke(main, ["status"]).stdout.splitlines()
    assert any(re.fullmatch(rf" *{hidden} +{QUEUE} +idle +\d+s +[\d.]+M *", line) for line in lines)
    assert any(re.fullmatch(rf" *{open_} +{QUEUE} +idle +\d+s( +[\d.]+M){{4}}", line) for line in lines)


def test_supervisors_of_other_users_are_shown(supervise, monkeypatch):
    supervised = supervise(workers=1)
    supervised.wait_ready()
    monkeypatch.setattr(os, "getuid", lambda: 4711)
    assert str(supervised.pid) in CliRunner().invoke(main, ["status"]).stdout


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
def test_the_parent_of_a_lone_worker_is_not_a_supervisor(monkeypatch, parent):
    pairs = [(os.getppid(), parent), (os.getpid(), "flask-backend: worker q [idle]")]
    monkeypatch.setattr(status, "titles", lambda: iter(pairs))
    assert CliRunner().invoke(main, ["status"]).exit_code == 1


def test_a_title_of_another_user_cannot_write_to_the_terminal(monkeypatch):
    pairs = [
        (os.getppid(), "flask-backend: master [1 queue, 1 worker]"),
        (os.getpid(), "flask-backend: worker q [\x1b[2J]"),
    ]
    monkeypatch.setattr(status, "titles", lambda: iter(pairs))
    assert "q" in (shown := CliRunner().invoke(main, ["status"]).stdout)
    assert "\x1b" not in shown


def test_a_child_that_still_has_its_parents_title_is_not_a_supervisor(monkeypatch):
    """The state just after a fork."""
    master = "flask-backend: master [1 queue, 1 worker]"
    monkeypatch.setattr(status, "titles", lambda: iter([(os.getppid(), master), (os.getpid(), master)]))
    result = CliRunner().invoke(main, ["status", "--json"])
    assert [found["pid"] for found in json.loads(result.stdout)] == [os.getppid()]


def test_status_says_so_if_no_supervisor_runs(monkeypatch):
    monkeypatch.setattr(status, "titles", lambda: iter([(os.getpid(), "python app.py")]))
    result = CliRunner().invoke(main, ["status"])
    assert result.exit_code == 1
    assert result.stderr == ("Error: no supervisor runs here: start one with `flask-backend supervise`\n")
    assert not result.stdout


def test_a_supervisor_that_ends_during_the_reading_is_not_shown(monkeypatch):
    gone = subprocess.Popen(["true"])
    gone.wait()
    monkeypatch.setattr(status, "titles", lambda: iter([(gone.pid, "flask-backend: master [1 queue, 1 worker]")]))
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
