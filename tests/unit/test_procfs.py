from __future__ import annotations

import os
import signal

import pytest

from flask_backend.system.procfs import PAGE_BYTES, PROC_IS_THERE, read_memory, read_stat, titles, uptime_s

TICKS_PER_S = os.sysconf("SC_CLK_TCK")
ROLLUP = """\
55d0-7ffd ---p 00000000 00:00 0                          [rollup]
Rss:              130000 kB
Pss:               50000 kB
Pss_Dirty:         45000 kB
Shared_Clean:      20000 kB
Shared_Dirty:      80000 kB
Private_Clean:      1000 kB
Private_Dirty:     29000 kB
"""


@pytest.fixture
def proc(tmp_path):
    """A folder like /proc, with the process 7."""
    fields = ["S", "3", *["0"] * 5, "4711", *["0"] * 11, str(12 * TICKS_PER_S), "0", "25", "0"]
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "stat").write_text(f"7 (a) b (c) {' '.join(fields)}\n")
    (tmp_path / "7" / "smaps_rollup").write_text(ROLLUP)
    (tmp_path / "7" / "cmdline").write_bytes(b"flask-backend: worker q [idle]\0\0\0")
    (tmp_path / "uptime").write_text("72.50 100.00\n")
    return tmp_path


def test_stat_is_read_with_any_process_name(proc):
    stat = read_stat(7, proc)
    assert (stat.parent, stat.started, stat.rss_bytes, stat.faults) == (3, 12, 25 * PAGE_BYTES, 4711)


def test_private_memory_is_clean_and_dirty_and_the_rest_is_shared(proc):
    memory = read_memory(7, proc)
    assert memory.private_bytes == 30000 << 10
    assert memory.shared_bytes == 100000 << 10
    assert memory.pss_bytes == 50000 << 10


def test_a_process_that_is_gone_has_no_data(proc):
    assert read_stat(8, proc) is None
    assert read_memory(8, proc) is None


def test_processes_without_a_title_are_left_out(proc):
    (proc / "8").mkdir()
    (proc / "8" / "cmdline").write_bytes(b"")  # a kernel thread
    (proc / "9").mkdir()  # ended in between
    (proc / "10").mkdir()
    (proc / "10" / "cmdline").write_bytes(b"python\0-m\0flask_backend\0")
    assert dict(titles(proc)) == {7: "flask-backend: worker q [idle]", 10: "python -m flask_backend"}


def test_uptime_is_in_seconds(proc):
    assert uptime_s(proc) == 72.5


@pytest.mark.skipif(not PROC_IS_THERE, reason="needs Linux")
def test_the_real_readings_agree_with_each_other():
    stat, memory = read_stat(os.getpid()), read_memory(os.getpid())
    assert stat.parent == os.getppid()
    assert 0 < memory.private_bytes < memory.rss_bytes
    assert memory.private_bytes <= memory.pss_bytes <= memory.rss_bytes
    assert 0 < stat.started < uptime_s()
    assert os.getpid() in dict(titles())


@pytest.mark.skipif(not PROC_IS_THERE, reason="needs Linux")
def test_a_dead_but_unreaped_process_has_no_memory():
    read_end, write_end = os.pipe()
    pid = os.posix_spawn("/bin/true", ["true"], {}, file_actions=[(os.POSIX_SPAWN_CLOSE, read_end)])
    os.close(write_end)
    os.read(read_end, 1)
    os.close(read_end)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert read_memory(pid) is None
    os.waitpid(pid, 0)


def test_a_page_that_is_written_after_a_fork_is_a_fault_of_the_child():
    if not PROC_IS_THERE:
        pytest.skip("needs Linux")
    pages = 1000
    shared = bytearray(os.urandom(1)) * (pages * PAGE_BYTES)
    to_parent, to_child = os.pipe(), os.pipe()
    pid = _fork_writer(shared, to_child[0], to_parent[1])
    os.read(to_parent[0], 1)
    before = read_stat(pid), read_memory(pid)
    os.write(to_child[1], b"!")
    os.read(to_parent[0], 1)
    after = read_stat(pid), read_memory(pid)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    for fd in (*to_parent, *to_child):
        os.close(fd)
    assert after[0].faults - before[0].faults >= pages
    assert after[1].private_bytes - before[1].private_bytes >= pages * PAGE_BYTES
    assert after[0].rss_bytes - before[0].rss_bytes < pages * PAGE_BYTES / 2


def _fork_writer(shared: bytearray, go: int, done: int) -> int:
    pid = os.fork()
    if pid:
        return pid
    os.write(done, b"!")
    os.read(go, 1)
    shared[::PAGE_BYTES] = bytes(len(shared) // PAGE_BYTES)
    os.write(done, b"!")
    signal.pause()
    os._exit(0)
