from __future__ import annotations

import subprocess
import sys

import pytest

from flask_backend.supervisor import Descriptors, TooFewDescriptorsError, descriptors
from flask_backend.supervisor.plan import MAX_CHILDREN


@pytest.fixture
def limits(monkeypatch):
    """The system's soft and hard limit, as set by a test."""
    limits = [1024, 1 << 20]
    monkeypatch.setattr(descriptors, "_get", lambda: tuple(limits))
    monkeypatch.setattr(descriptors, "_set_limit", lambda soft: limits.__setitem__(0, soft))
    return limits


def test_the_limit_is_raised_to_what_the_largest_plan_needs_and_no_further(limits):
    own = Descriptors(soft=1024, base=3)
    own.raise_limit()
    assert limits[0] == own.needed(MAX_CHILDREN)
    assert own.most_children == MAX_CHILDREN
    own.put_back()
    assert limits[0] == 1024


def test_it_is_raised_to_the_hard_limit_at_most_and_never_lowered(limits):
    limits[1] = 2000
    Descriptors(soft=1024, base=3).raise_limit()
    assert limits == [2000, 2000]
    limits[:] = [1 << 20, 1 << 20]
    Descriptors(soft=1 << 20, base=3).raise_limit()
    assert limits[0] == 1 << 20


def test_no_limit_is_more_than_enough(limits):
    limits[:] = [descriptors.resource.RLIM_INFINITY] * 2
    own = Descriptors(soft=1 << 62, base=3)
    own.check(MAX_CHILDREN)
    own.raise_limit()
    assert limits[0] == descriptors.resource.RLIM_INFINITY


def test_a_plan_over_the_hard_limit_is_refused_with_both_numbers(limits):
    own = Descriptors(soft=1024, base=3)
    limits[1] = own.needed(60)
    own.check(60)
    limits[1] -= 1
    with pytest.raises(
        TooFewDescriptorsError, match=f"60 workers .* need {own.needed(60)} .* limit is {limits[1]}: raise"
    ):
        own.check(60)


def test_files_opened_by_the_app_count_for_each_worker_too(limits):
    with pytest.raises(TooFewDescriptorsError, match="a worker needs 72 file descriptors, but the soft limit is 64"):
        Descriptors(soft=64, base=60).check(1)


def test_a_reload_needs_room_for_the_workers_of_earlier_code(limits):
    own = Descriptors(soft=64, base=3)
    limits[:] = [own.needed(60)] * 2
    own.check_reload(60, inherited=62)  # a loan for each, the lifeline and the scoreboard
    with pytest.raises(TooFewDescriptorsError, match="while workers of the old code run"):
        own.check_reload(60, inherited=100)


COUNTING = """
from flask_backend.supervisor import Descriptors
before = Descriptors.count()
with open("/dev/null", "rb"):
    assert Descriptors.count().base == before.base + 1
    assert Descriptors.count(ours=1).base == before.base
assert Descriptors.count(soft=7).soft == 7
"""


def test_open_files_are_counted_without_our_own():
    # In a process of its own: in this one, garbage of other tests may be collected meanwhile, with its open files.
    subprocess.run([sys.executable, "-c", COUNTING], check=True)
