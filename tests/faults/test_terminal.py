"""The terminal of a supervisor closes: this is not a request to reload."""

from __future__ import annotations

import os
import signal

import psutil
import pytest
from support.waiting import wait_until

pytestmark = pytest.mark.any_broker


def is_ready(supervised, times: int) -> bool:
    return supervised.log.count("supervisor: ready: ") == times


def find_under_shell(supervised) -> None:
    (child,) = wait_until(lambda: psutil.Process(supervised.process.pid).children(), "the shell has started it")
    supervised.pid = child.pid


@pytest.mark.parametrize("streams", ["", "012"], ids=["output-in-a-file", "output-at-the-terminal"])
def test_a_supervisor_whose_terminal_closes_finishes_running_tasks_and_ends(
    supervise, tasks, tmp_path, closing_terminal, streams
):
    supervised = supervise(workers=2, under=closing_terminal.start(streams=streams))
    supervised.wait_reserving(2)
    supervised.workers()
    tasks.wait_for(str(tmp_path / "go"))
    supervised.wait_for_line("begin waited")
    closing_terminal.close()
    wait_until(lambda: len(supervised.workers()) == 1, "the idle worker is gone")
    (tmp_path / "go").touch()
    supervised.assert_clean_exit(0)
    assert supervised.wrote("waited")


def test_hup_at_an_open_terminal_reloads_and_the_new_image_ends_when_it_closes(supervise, closing_terminal):
    supervised = supervise(workers=1, under=closing_terminal.start())
    supervised.wait_ready()
    supervised.send(signal.SIGHUP)
    wait_until(lambda: is_ready(supervised, 2), "the new code is ready")
    supervised.workers()
    closing_terminal.close()
    supervised.assert_clean_exit(0)
    assert "the terminal is gone: stopping" in supervised.log


def test_hup_after_the_terminal_has_closed_drains(supervise, closing_terminal):
    supervised = supervise(workers=1, under=closing_terminal.start(in_shell=True))
    supervised.wait_ready()
    find_under_shell(supervised)
    supervised.workers()
    closing_terminal.close()
    os.kill(supervised.pid, signal.SIGHUP)
    supervised.assert_clean_exit(0)
    assert "checking the app" not in supervised.log


@pytest.mark.parametrize("outcome", ["passes", "fails"])
def test_a_terminal_that_closes_just_after_its_hup_is_noticed_when_the_check_ends(
    supervise, tmp_path, closing_terminal, outcome
):
    version = tmp_path / "version.py"
    version.write_text("")
    supervised = supervise(
        workers=1,
        under=closing_terminal.start(in_shell=True),
        VERSION_IN=str(tmp_path),
        PYTHONDONTWRITEBYTECODE="1",
    )
    supervised.wait_ready()
    find_under_shell(supervised)
    supervised.workers()
    version.write_text(
        "import time\nfrom pathlib import Path\nPath('begun').touch()\n"
        "while not Path('go').exists():\n    time.sleep(0.01)\n" + ("1 / 0\n" if outcome == "fails" else "")
    )
    os.kill(supervised.pid, signal.SIGHUP)
    wait_until((tmp_path / "begun").exists, "the check is under way")
    closing_terminal.close()
    (tmp_path / "go").touch()
    supervised.assert_clean_exit(0)
    assert is_ready(supervised, 1)


def test_a_supervisor_that_never_had_a_terminal_reloads_on_hup(supervise):
    supervised = supervise(workers=1, under=["setsid"])
    supervised.wait_ready()
    supervised.send(signal.SIGHUP)
    wait_until(lambda: is_ready(supervised, 2), "the new code is ready")
    supervised.send(signal.SIGTERM)
    supervised.assert_clean_exit(0)


def test_nohup_keeps_a_supervisor_and_its_workers_from_the_end_of_their_terminal(supervise, tasks, closing_terminal):
    supervised = supervise(workers=1, under=[*closing_terminal.start(), "nohup"])
    supervised.wait_ready()
    (worker,) = supervised.workers()
    closing_terminal.close()
    for pid in (supervised.pid, worker):
        os.kill(pid, signal.SIGHUP)
    os.kill(worker, signal.SIGKILL)
    wait_until(lambda: worker not in supervised.workers(), "the worker is gone")
    tasks.note("still here")
    supervised.wait_for_line("note still here")
    (successor,) = supervised.workers()
    os.kill(successor, signal.SIGHUP)
    tasks.note("still here")
    supervised.wait_for_line("note still here", 2)
    assert supervised.workers() == [successor]
    assert "HUP" not in supervised.log
    supervised.send(signal.SIGTERM)
    supervised.assert_clean_exit(0)
