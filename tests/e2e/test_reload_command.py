"""`flask-backend reload`: HUP, and the outcome."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time

import pytest
from click.testing import CliRunner
from support.waiting import wait_until

from flask_backend.cli import main
from flask_backend.cli.commands import reload as module
from flask_backend.cli.summary import choose
from flask_backend.system import page
from flask_backend.system.procfs import PROC_IS_THERE

pytestmark = [pytest.mark.any_broker, pytest.mark.skipif(not PROC_IS_THERE, reason="needs Linux")]


@pytest.fixture
def version(tmp_path):
    """Write the version of the app that the next import finds."""

    def write(code):
        part = tmp_path / "version.part"
        part.write_text(code)
        part.replace(tmp_path / "version.py")

    write("VERSION = 1")
    return write


@pytest.fixture
def supervised(supervise, version, tmp_path):
    supervised = supervise(workers=2, VERSION_IN=str(tmp_path), PYTHONDONTWRITEBYTECODE="1")
    supervised.wait_ready()
    return supervised


def begin(pid, *args):
    command = [sys.executable, "-m", "flask_backend", "reload", "--pid", str(pid), *args]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def reload(pid, *args):
    """Return the exit code, stdout and stderr of the command."""
    with begin(pid, *args) as process:
        out, err = process.communicate()
    return process.returncode, out, err


def test_it_returns_when_the_new_code_serves(supervised, version, tasks):
    version("VERSION = 2")
    assert reload(supervised.pid) == (0, "generation 1 serves\n", "")
    tasks.version()
    supervised.wait_for_line("version 2")
    assert reload(supervised.pid) == (0, "generation 2 serves\n", "")


def test_it_shows_the_traceback_of_broken_code_and_fails(supervised, version):
    version("raise RuntimeError('no such column')")
    code, out, err = reload(supervised.pid)
    assert (code, out) == (1, "")
    assert "RuntimeError: no such column" in err
    assert 'version.py", line 1, in <module>' in err
    last = "Error: reload failed: the check of the new app exited with status 3; the old app goes on"
    assert err.splitlines()[-1] == last
    assert "RuntimeError: no such column" in supervised.log  # it is repeated there
    version("VERSION = 3")
    assert reload(supervised.pid) == (0, "generation 1 serves\n", "")


def test_the_end_of_a_long_output_is_kept(supervised, version):
    version("import sys\nsys.stderr.write('x' * 300_000 + '\\nthe end')\nraise SystemExit(7)")
    code, _, err = reload(supervised.pid)
    assert code == 1
    assert 10_000 < len(err) < 20_000
    assert "the end" in err


def test_two_at_the_same_time_both_wait_for_a_check_that_began_after_their_signal(supervised, version, tmp_path):
    gate = tmp_path / "gate"
    wait = f"while not os.path.exists({str(gate)!r}): time.sleep(0.01)"
    version(f"import os, time\nopen({str(gate)!r} + '.seen', 'w')\n{wait}")
    first = begin(supervised.pid)
    wait_until((tmp_path / "gate.seen").exists, "the first check runs the old version")
    version("raise RuntimeError('too early')")
    second = begin(supervised.pid)
    supervised.wait_for_log("it will be repeated")
    gate.touch()
    for process in (first, second):
        _, err = process.communicate()
        assert process.returncode == 1
        assert "RuntimeError: too early" in err


def test_readers_see_the_page_at_every_moment_of_a_reload(supervised, tasks, monkeypatch):
    """And no count goes back, while old workers finish their jobs and hand over their counts."""
    monkeypatch.setattr(page, "_PATIENCE_S", 5.0)  # on a busy machine a change may take long
    done, missed, stop = [], [], threading.Event()

    def watch():
        while not stop.wait(0.001):
            found = page.find(supervised.pid).get(supervised.pid)
            if found is None:
                missed.append(time.monotonic())
                continue
            newest, *older = found.pages
            rows = [row for queue in newest.queues for row in (queue.past, *queue.rows)]
            rows += [row for each in older for queue in each.queues for row in queue.workers]
            done.append(sum(row.total(page.DONE) for row in rows))

    watcher = threading.Thread(target=watch)
    watcher.start()
    for _ in range(3):
        for n in range(20):
            tasks.note(str(n))
        assert reload(supervised.pid)[0] == 0
    wait_until(lambda: done[-1] == 60, "all jobs are counted")
    wait_until(lambda: len(page.find(supervised.pid)[supervised.pid].pages) == 1, "the old pages are gone")
    stop.set()
    watcher.join()
    assert missed == []
    assert done == sorted(done)
    assert done[-1] == 60


def test_it_gives_up_after_its_timeout(supervised, version):
    version("import time\ntime.sleep(60)")
    code, out, err = reload(supervised.pid, "--timeout", "0.3")
    assert (code, out) == (1, "")
    expected = "Error: no outcome within 0.3 s: the reload may still go on, see `flask-backend status`\n"
    assert err == expected


def test_a_stop_during_the_reload_ends_the_wait(supervised, version, tmp_path):
    version(f"import time\nopen({str(tmp_path / 'seen')!r}, 'w')\ntime.sleep(60)")
    waiting = begin(supervised.pid)
    wait_until((tmp_path / "seen").exists, "the check runs")
    supervised.send(signal.SIGTERM)
    _, err = waiting.communicate()
    assert waiting.returncode == 1
    assert err in {
        f"Error: supervisor {supervised.pid} is stopping: see its log\n",
        f"Error: supervisor {supervised.pid} has ended during the reload: see its log\n",
    }


def test_a_supervisor_that_would_not_act_on_the_signal_gets_none(supervised, tasks, tmp_path):
    supervised.send(signal.SIGSTOP)
    wait_until(lambda: page.find(supervised.pid)[supervised.pid].is_stopped, "it is stopped")
    code, _, err = reload(supervised.pid)
    supervised.send(signal.SIGCONT)
    assert (code, "has been frozen for " in err) == (1, True)
    tasks.wait_for(str(tmp_path / "go"))
    supervised.wait_for_line("begin waited")
    supervised.send(signal.SIGTERM)
    wait_until(lambda: page.find(supervised.pid)[supervised.pid].page.state == "draining", "it drains")
    assert reload(supervised.pid) == (1, "", f"Error: supervisor {supervised.pid} is stopping: it does not reload\n")
    (tmp_path / "go").touch()
    supervised.wait()
    assert "HUP: checking" not in supervised.log


def test_a_supervisor_that_ignores_the_signal_is_not_waited_for(supervise):
    supervised = supervise(workers=1, under=["nohup"])
    supervised.wait_ready()
    code, _, err = reload(supervised.pid)
    assert (code, "ignores HUP, as it was started with nohup: restart it instead" in err) == (1, True)


def test_it_finds_the_only_supervisor_and_asks_which_of_several(supervised, monkeypatch):
    found = page.find(supervised.pid)
    monkeypatch.setattr(page, "find", lambda _pid=None: found)
    chosen = choose(None)
    assert chosen.pid == supervised.pid
    monkeypatch.setattr(page, "find", lambda _pid=None: {1: chosen, 2: chosen})
    result = CliRunner().invoke(main, ["reload"])
    assert result.exit_code == 2
    name = f"{chosen.pid} of support.workload"
    assert result.stderr.endswith(f"Error: several supervisors run here ({name}, {name}); choose one with --pid\n")


def test_without_a_supervisor_it_says_so(monkeypatch):
    gone = subprocess.Popen(["true"])  # not this process: other tests may have left a page in its memory
    gone.wait()
    pid = gone.pid
    expected = f"Error: no supervisor with the pid {pid} has a page here that this user and this version can read\n"
    assert reload(pid) == (1, "", expected)
    monkeypatch.setattr(page, "find", lambda _pid=None: {})
    result = CliRunner().invoke(main, ["reload"])
    expected = "Error: no supervisor of this user runs here: start one with `flask-backend supervise`\n"
    assert (result.exit_code, result.stderr) == (1, expected)
    monkeypatch.setattr(module, "PROC_IS_THERE", False)
    result = CliRunner().invoke(main, ["reload"])
    assert (result.exit_code, result.stderr) == (1, "Error: reload reads /proc, which only Linux has\n")
