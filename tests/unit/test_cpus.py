from __future__ import annotations

import os

import pytest

from flask_backend.cpus import available_cpus

HERE = len(os.sched_getaffinity(0))


@pytest.fixture
def system(tmp_path):
    """A /proc and a /sys/fs/cgroup of our own."""

    def make(own: str, **quotas: str) -> int:
        (tmp_path / "self").mkdir()
        (tmp_path / "self" / "cgroup").write_text(f"1:name=old:/x\n0::{own}\n")
        for group, quota in quotas.items():
            folder = tmp_path / "cgroup" / group.replace("__", "/").replace("root", "")
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "cpu.max").write_text(quota + "\n")
        return available_cpus(tmp_path, tmp_path / "cgroup")

    return make


def test_without_a_quota_it_is_the_affinity(system):
    assert system("/a/b", a__b="max 100000") == HERE


def test_a_containers_quota_is_in_the_root_group(system):
    assert system("/", root="100000 100000") == 1


def test_the_smallest_quota_on_the_way_up_counts_and_is_rounded_down_to_at_least_one(system):
    assert system("/a/b", a="150000 100000", a__b="max 100000") == 1


def test_less_than_one_cpu_is_one(system):
    assert system("/a", a="20000 100000") == 1


def test_a_system_without_control_groups_has_its_affinity(tmp_path):
    assert available_cpus(tmp_path, tmp_path) == HERE
