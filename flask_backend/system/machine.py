"""The CPUs and the memory of the machine that this process may use.

Its control group and each group above may limit both. In a container the process's own group is the root that it sees;
under systemd it is deep below. This module supports only version 2 of control groups.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

_PROC = Path("/proc")
_CGROUPS = Path("/sys/fs/cgroup")


def available_cpus(proc: Path = _PROC, cgroups: Path = _CGROUPS) -> int:
    """Return the number of CPUs in the process's affinity, limited by the quotas of its groups, at least 1."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for line in _read_in_groups("cpu.max", proc, cgroups):
        quota, period = line.split()
        if quota != "max":
            cpus = min(cpus, int(quota) // int(period))
    return max(1, cpus)


def available_memory(proc: Path = _PROC, cgroups: Path = _CGROUPS) -> int:
    """Return the machine's memory in bytes, limited by the process's groups."""
    limits = [line for line in _read_in_groups("memory.max", proc, cgroups) if line != "max"]
    return min([os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), *map(int, limits)])


def _read_in_groups(name: str, proc: Path, cgroups: Path) -> Iterator[str]:
    """Yield the text of a file in the process's group and in each group above that has it."""
    try:
        lines = (proc / "self" / "cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    own = next((Path(line.removeprefix("0::/")) for line in lines if line.startswith("0::/")), Path())
    for group in (own, *own.parents):
        try:
            text = (cgroups / group / name).read_text(encoding="ascii")
        except OSError:
            continue  # the root group of a host lacks it
        yield text.strip()
