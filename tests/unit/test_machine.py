from __future__ import annotations

import os
from pathlib import Path

import psutil
import pytest

from flask_backend.system.machine import available_cpus, available_memory

HERE = len(os.sched_getaffinity(0))


@pytest.fixture
def system(tmp_path):
    """A /proc and a /sys/fs/cgroup for the test; ``groups`` are the lines of /proc/self/cgroup."""

    def make(groups: str, files: dict[str, str]) -> tuple[Path, Path]:
        (tmp_path / "self").mkdir()
        (tmp_path / "self" / "cgroup").write_text(groups)
        for name, text in files.items():
            path = tmp_path / "cgroup" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text + "\n")
        return tmp_path, tmp_path / "cgroup"

    return make


@pytest.fixture
def many_cpus(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(8)), raising=False)


def version_1(quota: str, period: str = "100000", group: str = "cpu,cpuacct/a/b") -> dict[str, str]:
    return {f"{group}/cpu.cfs_quota_us": quota, f"{group}/cpu.cfs_period_us": period}


@pytest.mark.usefixtures("many_cpus")
@pytest.mark.parametrize(
    ("groups", "files", "cpus"),
    [
        ("0::/a\\n", {"a/cpu.max": "9" * 4000 + " 1"}, 8),
        ("1:name=old:/x\n0::/a/b\n", {"a/b/cpu.max": "max 100000"}, 8),
        ("0::/\n", {"cpu.max": "100000 100000"}, 1),  # of a container
        ("0::/a/b\n", {"a/cpu.max": "300000 100000", "a/b/cpu.max": "max 100000"}, 3),  # any on the way up
        ("0::/a/b\n", {"a/cpu.max": "200000 100000", "a/b/cpu.max": "400000 100000"}, 2),  # the smallest
        ("0::/a\n", {"a/cpu.max": "150000 100000"}, 2),  # rounded up, ...
        ("0::/a\n", {"a/cpu.max": "20000 100000"}, 1),  # ... so at least one
        ("0::/a\n", {"a/cpu.max": "1600000 100000"}, 8),  # more than there are
        ("4:cpu,cpuacct:/a/b\n", version_1("250000"), 3),
        ("4:cpu,cpuacct:/a/b\n", version_1("-1"), 8),  # without a quota
        ("4:cpu,cpuacct:/docker/1f\n", version_1("200000", group="cpu,cpuacct"), 2),  # a container's view
        ("5:cpuset:/a\n4:cpu:/a\n0::/\n", version_1("50000", "25000", "cpu/a"), 2),  # both versions
        ("3:cpuset:/a\n", {"cpuset/a/cpu.max": "100000 100000"}, 8),  # of another controller
        ("0::/a:b\n", {"a:b/cpu.max": "100000 100000"}, 1),
    ],
)
def test_cpus_are_those_of_the_affinity_within_the_quotas(system, groups, files, cpus):
    assert available_cpus(*system(groups, files)) == cpus


@pytest.mark.usefixtures("many_cpus")
@pytest.mark.parametrize(
    "garbage", ["", "max", "two 100000", "100000", "100000 0", "-5 100000", "0 100000", "1 2 3", "\ufffd 9", "9" * 5000]
)
def test_a_quota_that_cannot_be_understood_counts_as_none(system, garbage):
    files = {"a/b/cpu.max": garbage, "a/cpu.max": "500000 100000"}
    assert available_cpus(*system("0::/a/b\n", files)) == 5


@pytest.mark.parametrize(
    ("groups", "files", "memory"),
    [
        ("0::/a/b\n", {"a/memory.max": str(3 << 20), "a/b/memory.max": "max"}, 3 << 20),
        ("0::/\n", {"memory.max": str(5 << 20)}, 5 << 20),
        ("0::/a\n", {"a/memory.max": "max"}, psutil.virtual_memory().total),
        ("0::/a\n", {"a/memory.max": "lots"}, psutil.virtual_memory().total),
        ("9:memory:/a\n", {"memory/memory.limit_in_bytes": str(7 << 20)}, 7 << 20),
        ("9:memory:/a\n", {"memory/a/memory.limit_in_bytes": str((1 << 63) - 4096)}, psutil.virtual_memory().total),
    ],
)
def test_memory_is_the_machines_within_the_limits(system, groups, files, memory):
    assert available_memory(*system(groups, files)) == memory


def test_a_system_without_control_groups_has_all_of_the_machine(tmp_path):
    assert available_cpus(tmp_path, tmp_path) == HERE
    assert available_memory(tmp_path, tmp_path) == psutil.virtual_memory().total
