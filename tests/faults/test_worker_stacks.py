"""A reader asks a worker for its Python stacks, which must harm neither the worker nor its task."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from support.waiting import wait_until
from support.workload import QUEUE

from flask_backend.operations.stacks import StacksError, read_stacks
from flask_backend.system import page
from flask_backend.system.procfs import PROC_IS_THERE

pytestmark = [pytest.mark.skipif(not PROC_IS_THERE, reason="needs Linux"), pytest.mark.any_broker]


def busy_worker(supervised) -> int:
    """Wait until the page shows that a worker has a job, and return its pid."""

    def find():
        rows = [row for queue in page.find(supervised.pid)[supervised.pid].page.queues for row in queue.workers]
        return next((row.pid for row in rows if row.job), None)

    wait_until(find, "a worker is busy")
    return find()


def state_of(supervised, worker: int) -> str | None:
    pages = page.find(supervised.pid)[supervised.pid].pages
    rows = [row for each in pages for queue in each.queues for row in queue.workers]
    return next((row.state for row in rows if row.pid == worker), None)


@pytest.mark.parametrize(
    ("name", "function"), [("wait_for", "wait_for"), ("compute", "compute"), ("wait_in_coroutines", "wait_inside")]
)
def test_the_stack_of_a_task_is_shown_and_the_task_goes_on(supervise, tasks, tmp_path, name, function):
    supervised = supervise(workers=1)
    supervised.wait_ready()
    getattr(tasks, name)(str(tmp_path / "go"))
    wait_until(lambda: supervised.ledger, "it runs")
    wait_until(lambda: "begin" in supervised.ledger[-1], "it runs")
    worker = busy_worker(supervised)
    wait_until(lambda: f"in {function}\n" in read_stacks(supervised.pid, worker), "it is there")
    for _ in range(3):
        text = read_stacks(supervised.pid, worker)
        first, *_ = text.split("\n\n")
        assert re.match(r"(Current thread|Coroutine) .*\(most recent call first\):\n", text)
        assert f"in {function}\n" in f"{first}\n"
        assert 'workload.py", line ' in first
        assert "in answer" not in text
        assert "heartbeat.py" in text  # the other thread
    (tmp_path / "go").touch()
    wait_until(lambda: broker_is_empty(supervised), "the task has ended")
    assert supervised.workers() == [worker]
    assert "most recent call first" not in supervised.log
    supervised.send(signal.SIGTERM)
    supervised.assert_clean_exit(0)


def broker_is_empty(supervised) -> bool:
    return supervised.broker.count(QUEUE, "ready") + supervised.broker.count(QUEUE, "reserved") == 0


def test_a_worker_in_native_code_that_keeps_the_interpreter_is_shown_too(supervise, tasks):
    supervised = supervise(workers=1)
    supervised.wait_ready()
    tasks.hog()
    supervised.wait_for_line("begin hog")
    worker = busy_worker(supervised)
    text = read_stacks(supervised.pid, worker)
    assert re.match(r"Stack \(most recent call first\):\n  File .*workload\.py\", line \d+ in hog\n", text)
    assert supervised.workers() == [worker]
    supervised.send(signal.SIGQUIT)
    supervised.wait()


def test_an_idle_worker_is_shown(supervise):
    supervised = supervise(workers=1)
    supervised.wait_ready()
    [worker] = supervised.workers()
    assert "stopping.py" in read_stacks(supervised.pid, worker)


def test_a_busy_worker_survives_many_requests(supervise, tasks, tmp_path):
    supervised = supervise(workers=1)
    supervised.wait_ready()
    tasks.compute(str(tmp_path / "go"))
    supervised.wait_for_line("begin to compute")
    worker = busy_worker(supervised)
    for _ in range(300):
        assert "in compute\n" in read_stacks(supervised.pid, worker)
    (tmp_path / "go").touch()
    supervised.wait_for_line("computed")
    assert supervised.workers() == [worker]


def test_two_readers_get_the_stacks_of_their_own_workers(supervise, tasks, tmp_path):
    supervised = supervise(workers=2)
    supervised.wait_ready()
    tasks.wait_for(str(tmp_path / "go"))
    supervised.wait_for_line("begin waited")
    busy = busy_worker(supervised)
    [idle] = [pid for pid in supervised.workers() if pid != busy]
    with ThreadPoolExecutor(4) as pool:
        texts = pool.map(lambda pid: (pid, read_stacks(supervised.pid, pid)), [busy, idle] * 10)
        for pid, text in texts:
            assert ("in wait_for\n" in text) == (pid == busy)


def test_the_old_worker_after_a_reload_is_shown(supervise, tasks, tmp_path):
    supervised = supervise(workers=1)
    supervised.wait_ready()
    tasks.wait_for(str(tmp_path / "go"))
    supervised.wait_for_line("begin waited")
    old = busy_worker(supervised)
    supervised.send(signal.SIGHUP)
    wait_until(lambda: state_of(supervised, old) == "draining", "the new code serves")
    assert "in wait_for\n" in read_stacks(supervised.pid, old)
    files = [Path(path + page.STACKS) for path in page.find(supervised.pid)[supervised.pid].paths.values()]
    assert [file.exists() for file in files] == [True, True]
    (tmp_path / "go").touch()
    supervised.send(signal.SIGTERM)
    supervised.assert_clean_exit(0)
    assert [file.exists() for file in files] == [False, False]


def test_a_page_in_memory_has_its_file_in_memory(supervise, tasks, tmp_path):
    supervised = supervise(workers=1, RUNTIME_DIRECTORY=str(tmp_path / "missing"))
    supervised.wait_ready()
    [worker] = supervised.workers()
    assert page.find(supervised.pid)[supervised.pid].paths[0].startswith("/proc/")
    assert "stopping.py" in read_stacks(supervised.pid, worker)


def test_workers_that_cannot_answer_are_named_with_the_reason_and_left_alone(supervise, tasks, tmp_path):
    supervised = supervise(workers=2)
    supervised.wait_ready()
    first, second = supervised.workers()
    with pytest.raises(StacksError, match=r"^supervisor 1 has ended, or its status page cannot be read$"):
        read_stacks(1, first)
    stranger = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    try:
        with pytest.raises(StacksError, match=rf"^worker {stranger.pid} has ended$"):
            read_stacks(supervised.pid, stranger.pid)
    finally:
        stranger.kill()
        stranger.wait()
    os.kill(first, signal.SIGSTOP)
    try:
        with pytest.raises(StacksError, match=rf"^worker {first} is stopped, by a signal or a debugger$"):
            read_stacks(supervised.pid, first)
    finally:
        os.kill(first, signal.SIGCONT)
    assert "stopping.py" in read_stacks(supervised.pid, second)
    supervised.send(signal.SIGSTOP)  # a frozen supervisor is not needed for this
    try:
        assert "stopping.py" in read_stacks(supervised.pid, first)
    finally:
        supervised.send(signal.SIGCONT)
    assert supervised.workers() == [first, second]


def test_a_worker_that_is_not_ready_gets_no_signal(supervise, tmp_path):
    gate = tmp_path / "gate"
    gate.touch()
    supervised = supervise(workers=1, HOOK_WAITS_WHILE=str(gate))
    wait_until(supervised.workers, "a worker starts")
    wait_until(lambda: page.find(supervised.pid), "its page is there")
    [worker] = supervised.workers()
    with pytest.raises(StacksError, match=rf"^worker {worker} is starting: only a ready worker can be asked$"):
        read_stacks(supervised.pid, worker)
    gate.unlink()
    supervised.wait_ready()
    assert supervised.workers() == [worker]
