"""How many CPUs this process may use."""

from __future__ import annotations

import os
from pathlib import Path


def available_cpus(proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> int:
    """Count the CPUs of the process's affinity, and no more than the quotas of its control groups allow; at least one.

    In a container the process's own group is the root of what it sees; under systemd it is deep below, and each group
    above may have a quota too. Only version 2 of control groups is looked at.
    """
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        lines = (proc / "self" / "cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return cpus
    own = next((Path(line.removeprefix("0::/")) for line in lines if line.startswith("0::/")), Path())
    for group in (own, *own.parents):
        try:
            quota, period = (cgroups / group / "cpu.max").read_text(encoding="ascii").split()
        except (OSError, ValueError):
            continue  # the root group of a host has none
        if quota != "max":
            cpus = min(cpus, int(quota) // int(period))
    return max(1, cpus)
