from __future__ import annotations

import os
from pathlib import Path

import psutil
import pytest

from flask_backend.system.machine import available_cpus, available_memory

HERE = len(os.sched_getaffinity(0))


@pytest.fixture
def system(tmp_path):
    """A /proc and a /sys/fs/cgroup for the test; the process is in the group `own`."""

    def make(own: str, name: str, limits: dict[str, str]) -> tuple[Path, Path]:
        (tmp_path / "self").mkdir()
        (tmp_path / "self" / "cgroup").write_text(f"1:name=old:/x\n0::{own}\n")
        for group, limit in limits.items():
            folder = tmp_path / "cgroup" / group
            folder.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(limit + "\n")
        return tmp_path, tmp_path / "cgroup"

    return make


@pytest.mark.parametrize(
    ("own", "quotas", "cpus"),
    [
        ("/a/b", {"a/b": "max 100000"}, HERE),
        ("/", {"": "100000 100000"}, 1),  # of a container
        ("/a/b", {"a": "150000 100000", "a/b": "max 100000"}, 1),  # the smallest on the way up, rounded down
        ("/a", {"a": "20000 100000"}, 1),  # but at least one
    ],
)
def test_cpus_are_those_of_the_affinity_within_the_quotas(system, own, quotas, cpus):
    assert available_cpus(*system(own, "cpu.max", quotas)) == cpus


@pytest.mark.parametrize(
    ("own", "limits", "memory"),
    [
        ("/a/b", {"a": str(3 << 20), "a/b": "max"}, 3 << 20),
        ("/", {"": str(5 << 20)}, 5 << 20),
        ("/a", {"a": "max"}, psutil.virtual_memory().total),
    ],
)
def test_memory_is_the_machines_within_the_limits(system, own, limits, memory):
    assert available_memory(*system(own, "memory.max", limits)) == memory


def test_a_system_without_control_groups_has_all_of_the_machine(tmp_path):
    assert available_cpus(tmp_path, tmp_path) == HERE
    assert available_memory(tmp_path, tmp_path) == psutil.virtual_memory().total
