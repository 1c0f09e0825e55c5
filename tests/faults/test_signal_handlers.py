"""Hooks and tasks that set or block signal handlers, or let a library do so: the worker's own come back."""

from __future__ import annotations

import os
import signal
import time

import pytest
from support.supervised import title
from support.waiting import wait_until
from support.workload import QUEUE

pytestmark = pytest.mark.any_broker

# Its import changes signals too, and registers faulthandler as many apps do.
APP = """
import asyncio
import faulthandler
import json
import os
import signal
import time
from pathlib import Path

from support.workload import QUEUE, app, backend, write_down

RELIED_ON = [getattr(signal, f"SIG{name}") for name in ("TERM", "INT", "QUIT", "HUP", "USR1", "USR2", "PIPE")]


def eat(number, _frame=None):
    write_down(f"eaten {signal.Signals(number).name}")


if os.environ["MEDDLER"] == "import":
    faulthandler.register(signal.SIGUSR1)
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGUSR2):
        signal.signal(number, eat)


def set_all(handler):
    for number in RELIED_ON:
        signal.signal(number, handler)


def use_asyncio():
    async def main():
        for number in RELIED_ON:
            asyncio.get_running_loop().add_signal_handler(number, eat, number)
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.sleep(0.1)

    asyncio.run(main())


def close_wakeup():
    os.close(signal.set_wakeup_fd(-1))


MEDDLING = {
    "handler": lambda: set_all(eat),
    "default": lambda: set_all(signal.SIG_DFL),
    "ignored": lambda: set_all(signal.SIG_IGN),
    "blocked": lambda: signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals()),
    "asyncio": use_asyncio,
    "wakeup": lambda: signal.set_wakeup_fd(-1),
    "wakeup-closed": close_wakeup,
    "faulthandler": lambda: faulthandler.unregister(signal.SIGUSR1),
}


@backend.task(QUEUE)
def meddle(how):
    MEDDLING[how]()
    write_down(f"meddled {how}")


@backend.before_first_task(QUEUE)
def hook():
    if os.environ["MEDDLER"] == "hook":
        MEDDLING["handler"]()
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM, signal.SIGRTMIN])
    while os.environ.get("HOOK_EATS") and not Path(os.environ["HOOK_EATS"]).exists():
        signal.signal(signal.SIGTERM, eat)
        time.sleep(0.01)


@backend.task(QUEUE)
def show_signals():
    handlers = [getattr(signal.getsignal(number), "__name__", signal.getsignal(number)) for number in RELIED_ON]
    mask = sorted(signal.pthread_sigmask(signal.SIG_BLOCK, []))
    write_down(f"signals {[str(each) for each in handlers]} {mask == [signal.SIGRTMIN] or mask}")


@backend.task(QUEUE)
def compute_until(path):
    write_down("computes")
    while not Path(path).exists():
        json.loads(json.dumps({"rows": [str(row) for row in range(10)]}))
    write_down("computed")


@backend.task(QUEUE)
def hold(text, path, handler="eat"):
    signal.signal(signal.SIGTERM, {"eat": eat, "default": signal.SIG_DFL}[handler])
    write_down(f"begin {text} {os.getpid()}")
    while not Path(path).exists():
        time.sleep(0.005)
    write_down(text)
"""
OWN = "signals ['_drain', '_drain', '_quit', '_hang_up', '_dump', '_on_interrupt', '1']"


@pytest.fixture
def start(supervise, tmp_path):
    (tmp_path / "meddling.py").write_text(APP)

    def start(*args, meddler="task", **options):
        return supervise(*args, app="meddling", MEDDLER=meddler, PYTHONWARNINGS="", **options)

    return start


@pytest.fixture
def call(tasks):
    def call(endpoint, *args):
        return tasks.backend.send(QUEUE, {"endpoint": endpoint, "args": args})

    return call


def check_signals(supervised, call, broker, *, mask="[]"):
    """Check that the one worker has its handlers: time limits, stacks and a drain by its own signals work."""
    (worker,) = supervised.workers()
    shown, limits = (supervised.ledger.count(line) for line in (f"{OWN} {mask}", "TaskTimeout"))
    stacks = supervised.log.count("most recent call first")
    call("show_signals")
    call("limited", "sleep")
    supervised.wait_for_line(f"{OWN} {mask}", shown + 1)
    supervised.wait_for_line("TaskTimeout", limits + 1)  # of this call, or of an earlier one that is retried
    os.kill(worker, signal.SIGHUP)
    os.kill(worker, signal.SIGUSR1)
    wait_until(lambda: supervised.log.count("most recent call first") > stacks, "its stacks")
    os.kill(worker, signal.SIGTERM)
    wait_until(lambda: worker not in supervised.workers(), "the worker has ended")
    supervised.wait_reserving(1)


def test_changes_by_a_task_to_signals_end_with_it(start, call, broker):
    supervised = start(workers=1)
    supervised.wait_ready()
    for how in ("handler", "default", "ignored", "blocked", "asyncio", "wakeup", "wakeup-closed", "faulthandler"):
        call("meddle", how)
        call("meddle", how)
        supervised.wait_for_line(f"meddled {how}", 2)
        check_signals(supervised, call, broker)
    for told in (
        "meddle has changed the signals of this worker: SIGTERM is handled by meddling.eat, SIGINT is",
        "meddle has changed the signals of this worker: SIGTERM has its default action, SIGINT has",
        "meddle has changed the signals of this worker: SIGTERM is ignored, SIGINT is ignored",
        "SIGTERM is blocked",
    ):
        assert told in supervised.log
    # Logged once by each worker: "asyncio" and "default" leave the same behind.
    assert supervised.log.count("meddle has changed the signals of this worker") == 5
    assert "was killed" not in supervised.log
    assert "; replaced" not in supervised.log  # a stack may name a function like this
    supervised.send(signal.SIGTERM)
    supervised.assert_clean_exit(0)


@pytest.mark.parametrize("meddler", ["import", "hook"])
def test_changes_by_import_and_hooks_to_signals_end_before_the_first_task(start, call, broker, meddler):
    supervised = start(workers=1, meddler=meddler)
    supervised.wait_ready()
    check_signals(supervised, call, broker, mask="True" if meddler == "hook" else "[]")
    told = "a before_first_task hook has changed" if meddler == "hook" else "importing the app has set signal handlers"
    assert f"{told}" in supervised.log
    assert "SIGTERM is handled by meddling.eat" in supervised.log
    supervised.send(signal.SIGTERM)
    supervised.assert_clean_exit(0)
    assert "eaten" not in "".join(supervised.ledger)


def test_a_drain_whose_signal_a_task_swallows_begins_when_that_task_ends(start, call, broker, tmp_path):
    supervised = start(workers=1)
    supervised.wait_ready()
    call("hold", "first", str(tmp_path / "go"))
    (worker,) = supervised.workers()
    supervised.wait_for_line(f"begin first {worker}")
    call("hold", "second", str(tmp_path / "go"))
    supervised.send(signal.SIGTERM)
    supervised.wait_for_line("eaten SIGTERM")
    (tmp_path / "go").touch()
    supervised.assert_clean_exit(0)
    assert supervised.wrote("first")
    assert not supervised.wrote("second")
    assert broker.count(QUEUE, "ready") == 1


def test_a_reload_replaces_a_worker_whose_tasks_swallow_the_signal(start, call, broker, tmp_path):
    supervised = start(workers=1)
    supervised.wait_ready()
    (worker,) = supervised.workers()
    for text in ("first", "second", "third"):
        call("hold", text, str(tmp_path / text))
    supervised.wait_for_line(f"begin first {worker}")
    supervised.send(signal.SIGHUP)
    supervised.wait_for_line("eaten SIGTERM")
    (tmp_path / "first").touch()
    supervised.wait_for_line("first")
    # In either order: the old worker may still hold the second job when the new one asks.
    for text in ("second", "third"):
        (tmp_path / text).touch()
    for text in ("second", "third"):
        supervised.wait_for_line(text)
    assert [line for line in supervised.ledger if str(worker) in line and line.startswith("begin")] == [
        f"begin first {worker}"
    ]
    wait_until(lambda: worker not in supervised.workers(), "the old worker is gone")
    supervised.send(signal.SIGTERM)
    supervised.assert_clean_exit(0)


def test_a_drain_signal_is_repeated_while_a_hook_swallows_it(start, tmp_path):
    supervised = start(workers=1, HOOK_EATS=str(tmp_path / "go"))
    wait_until(lambda: any(line.startswith("hook") for line in supervised.ledger), "the hook runs")
    (worker,) = supervised.workers()
    supervised.send(signal.SIGTERM)
    supervised.wait_for_line("eaten SIGTERM", 2)
    supervised.wait_for_log(f"worker {worker} of {QUEUE} does not drain")
    (tmp_path / "go").touch()
    supervised.assert_clean_exit(0)


def test_a_draining_worker_killed_by_the_signal_gives_its_job_back_and_does_not_count_as_crashed(
    start, call, broker, tmp_path
):
    supervised = start(workers=1)
    supervised.wait_ready()
    job = call("hold", "first", str(tmp_path / "never"), "default")
    (worker,) = supervised.workers()
    supervised.wait_for_line(f"begin first {worker}")
    supervised.send(signal.SIGTERM)
    supervised.assert_clean_exit(4)
    stats = broker.job(job.id)
    assert (stats["state"], stats["releases"]) == ("ready", 0)
    assert f"worker {worker} of {QUEUE} was killed by signal 15 (Terminated) at job {job.id} (hold)" in supervised.log
    assert "it was draining, and its job goes back" in supervised.log
    assert "ERROR" not in supervised.log


def test_a_draining_worker_that_hangs_in_its_hook_is_killed_after_the_drain_timeout(start, tmp_path):
    supervised = start("--drain-timeout", "1", workers=2, HOOK_EATS=str(tmp_path / "never"))
    wait_until(lambda: sum(line.startswith("hook") for line in supervised.ledger) == 2, "both hooks run")
    first, second = sorted(supervised.workers(), key=title)
    supervised.send(signal.SIGTTOU)
    supervised.wait_for_log("and has no job, but does not exit: its stacks follow, then it is killed")
    wait_until(lambda: len(supervised.workers()) == 1, "one is left")
    assert supervised.workers()[0] in (first, second)
    assert "it was one too many" not in supervised.log
    assert "in hook\n" in supervised.log
    supervised.send(signal.SIGTERM)
    supervised.assert_clean_exit(0)


def test_a_busy_worker_survives_repeated_requests_for_its_stacks(start, call, tmp_path):
    supervised = start(workers=1)
    supervised.wait_ready()
    (worker,) = supervised.workers()
    call("compute_until", str(tmp_path / "end"))
    supervised.wait_for_line("computes")
    asked = supervised.log.count("most recent call first")
    for _ in range(3000):  # dumped while the interpreter runs on, a few hundred were enough to crash it
        os.kill(worker, signal.SIGUSR1)
        time.sleep(0.0005)
    wait_until(lambda: supervised.log.count("most recent call first") > asked, "its stacks")
    (tmp_path / "end").touch()
    supervised.wait_for_line("computed")
    assert supervised.workers() == [worker]
    supervised.send(signal.SIGTERM)
    supervised.assert_clean_exit(0)
