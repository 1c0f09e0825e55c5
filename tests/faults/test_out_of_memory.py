"""Memory: which process is killed first, and when."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from support.waiting import wait_until

pytestmark = pytest.mark.any_broker


def oom_score_adj(pid: int) -> int:
    return int(Path(f"/proc/{pid}/oom_score_adj").read_text())


def test_the_kernel_kills_a_worker_before_the_supervisor(supervise):
    supervised = supervise(workers=2)
    supervised.wait_ready()
    for worker in supervised.workers():
        assert oom_score_adj(worker) >= oom_score_adj(supervised.pid) + 200
    supervised.send(signal.SIGTERM)
    supervised.assert_clean_exit(0)


def test_a_worker_over_the_hard_ceiling_is_killed_in_the_middle_of_its_task(supervise, tasks, tmp_path):
    supervised = supervise("--max-memory", "60M", "--max-memory-hard", "120M", workers=2)
    supervised.wait_ready()
    job = tasks.grow(150, str(tmp_path / "never"))
    supervised.wait_for_log("is killed: its private memory is")
    supervised.wait_for_log(f"at job {job.id} (grow)")
    supervised.wait_for_log("MiB private)")
    supervised.send(signal.SIGQUIT)
    assert supervised.wait() in (0, 4)


def test_auto_gives_each_worker_a_share(supervise):
    supervised = supervise("--max-memory", "auto", workers=2)
    supervised.wait_ready()
    supervised.send(signal.SIGTERM)
    supervised.assert_clean_exit(0)


def test_a_worker_without_a_helper_thread_gets_its_supervisors_death_from_the_kernel(supervise, tasks, tmp_path):
    """The worker is stopped, so that only the kernel's signal can reach it when it continues."""
    supervised = supervise(workers=1)
    supervised.wait_ready()
    (worker,) = supervised.workers()
    os.kill(worker, signal.SIGSTOP)
    wait_until(lambda: psutil.Process(worker).status() == psutil.STATUS_STOPPED, "the worker has stopped")
    supervised.send(signal.SIGKILL)
    supervised.process.wait()
    # If its new parent is in another session the kernel continues it too: its process group is an orphan.
    wait_until(lambda: _has_pending(worker, signal.SIGTERM) or _has_ended(worker), "the kernel has sent TERM")
    with suppress(ProcessLookupError):
        os.kill(worker, signal.SIGCONT)
    supervised.assert_clean_exit(-signal.SIGKILL)


def _has_ended(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def _has_pending(pid: int, number: signal.Signals) -> bool:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    pending = next(int(line.split()[1], 16) for line in status.splitlines() if line.startswith("ShdPnd:"))
    return bool(pending >> (number - 1) & 1)
