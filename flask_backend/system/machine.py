"""The CPUs and the memory of the machine that this process may use.

Its control group and each group above may limit both. In a container the process's own group is the root that it sees;
under systemd it is deep below. A limit that cannot be read or understood counts as none. The files are those of
cgroups(7), in Linux's admin-guide/cgroup-v2.rst (cpu.max, memory.max), and for version 1 scheduler/sched-bwc.rst
(cpu.cfs_quota_us) and admin-guide/cgroup-v1/memory.rst (memory.limit_in_bytes).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

_PROC = Path("/proc")
_CGROUPS = Path("/sys/fs/cgroup")


def available_cpus(proc: Path = _PROC, cgroups: Path = _CGROUPS) -> int:
    """Return the number of CPUs in the process's affinity, limited by the quotas of its groups, at least 1.

    A part of a CPU counts as one: one worker less would leave that part of the quota unused.
    """
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for group in _groups("cpu", proc, cgroups):
        with suppress(OSError, ValueError):
            cpus = min(cpus, _quota(group))
    return cpus


def available_memory(proc: Path = _PROC, cgroups: Path = _CGROUPS) -> int:
    """Return the machine's memory in bytes, limited by the process's groups."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for group in _groups("memory", proc, cgroups):
        for name in ("memory.max", "memory.limit_in_bytes"):
            with suppress(OSError, ValueError):
                memory = min(memory, _positive(_read(group / name)))
    return memory


def _quota(group: Path) -> int:
    """Return the CPUs that a group may use, rounded up; raise :exc:`ValueError` or :exc:`OSError` without a limit."""
    try:
        quota, period = _read(group / "cpu.max").split()
    except FileNotFoundError:
        quota, period = _read(group / "cpu.cfs_quota_us"), _read(group / "cpu.cfs_period_us")
    return -(-_positive(quota) // _positive(period))


def _positive(text: str) -> int:
    """Read a number; "max" and -1 mean that there is no limit."""
    number = int(text)
    if number <= 0:
        raise ValueError(f"{text!r} is no limit")
    return number


def _read(path: Path) -> str:
    return path.read_text(encoding="ascii")


def _groups(controller: str, proc: Path, cgroups: Path) -> Iterator[Path]:
    """Yield the folders of the process's group, and of each group above, in the hierarchies that may limit it."""
    try:
        lines = (proc / "self" / "cgroup").read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, own = line.split(":", 2)  # the second is empty in version 2
        if controllers and controller not in controllers.split(","):
            continue
        root = cgroups / controllers
        # In a container, the path may be one of the host: then only the root exists here.
        for group in (path := Path(own.lstrip("/")), *path.parents):
            yield root / group
