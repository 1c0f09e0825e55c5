"""The CPU time of other processes, in seconds, as the kernel's scheduler counts it. Linux only."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path

import psutil

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def cpu_s(pid: int) -> float:
    """Return the CPU time of a process, in user and in kernel mode, of all threads that it has or had."""
    return time.clock_gettime_ns((~pid << 3) | 2) / 1e9  # the clock that clock_getcpuclockid(3) returns


def family_cpu_s(pid: int) -> float:
    """Return the CPU time of a process, of its living descendants, and of all that these have waited for."""
    total = 0.0
    for each in (pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))):
        with suppress(OSError):  # it has just ended
            total += cpu_s(each) + _cpu_of_ended_s(each)
    return total


def _cpu_of_ended_s(pid: int) -> float:
    """Return the CPU time of the ended children of a process; to a hundredth of a second."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[13]) + int(fields[14])) / _TICKS_PER_S
