"""Hundreds of recycles under load: the supervisor stays as it was after the first few.

``SOAK_S`` in the environment is the duration of the long version.
"""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass

import psutil
import pytest
from support.supervised import Supervised
from support.waiting import wait_until
from support.workload import QUEUE

WORKERS = 4
TASKS_A_LIFE = 5
# One round of load, then a quiet period, so that each reading is of the same state.
TASKS_A_ROUND = 100
RECYCLES_A_ROUND = TASKS_A_ROUND // TASKS_A_LIFE
WARM_UP_ROUNDS = 5
# Memory shared with the children is not the supervisor's own, so its private memory depends on the pages they have
# written to: over 2000 recycles readings differed by up to 100 KiB, and the last was below the first.
# A leak of 1 KiB a recycle is found within some hundreds of them.
USS_SLACK_BYTES = 256 << 10
SOAK_S = float(os.environ.get("SOAK_S", "300"))


@dataclass(frozen=True)
class Reading:
    """The supervisor's resources while all its workers wait."""

    descriptors: int
    threads: int
    uss_bytes: int


def read(supervised: Supervised) -> Reading:
    process = psutil.Process(supervised.pid)
    return Reading(process.num_fds(), process.num_threads(), process.memory_full_info().uss)


def zombies(supervised: Supervised) -> list[int]:
    children = psutil.Process(supervised.pid).children()
    return [child.pid for child in children if child.is_running() and child.status() == psutil.STATUS_ZOMBIE]


def play_round(supervised: Supervised, tasks, broker, number: int) -> Reading:
    first = number * TASKS_A_ROUND
    tasks.note.map(range(first, first + TASKS_A_ROUND))
    wait_until(lambda: broker.is_empty(QUEUE), f"the tasks of round {number} are done; log:\n{supervised.log[-3000:]}")
    supervised.wait_reserving(WORKERS)
    # A dead worker is a zombie until the supervisor looks: it must not remain one.
    wait_until(lambda: not zombies(supervised), f"the dead of round {number} are collected")
    return read(supervised)


def soak(supervise, tasks, broker, seconds: float) -> None:
    supervised = supervise("--max-tasks", str(TASKS_A_LIFE), workers=WORKERS)
    supervised.wait_ready()
    readings: list[Reading] = []
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline or len(readings) < 2 * WARM_UP_ROUNDS:
        readings.append(play_round(supervised, tasks, broker, len(readings)))
    recycles = supervised.log.count("is recycled")
    warm_up, warm = readings[:WARM_UP_ROUNDS], readings[WARM_UP_ROUNDS:]
    before, after = warm_up[-1], readings[-1]
    print(f"{recycles} recycles in {len(readings)} rounds; {before} -> {after}")  # noqa: T201
    assert recycles >= len(readings) * RECYCLES_A_ROUND - WORKERS  # whose last lives may not be over
    # A worker lends its connection just after it begins to wait: a reading may show too few, but not too many.
    assert max(reading.descriptors for reading in warm) <= max(reading.descriptors for reading in warm_up)
    assert {reading.threads for reading in readings} == {1}
    grown = after.uss_bytes - before.uss_bytes
    assert grown <= USS_SLACK_BYTES, f"{grown} bytes more after {recycles} recycles"
    done = [line for line in supervised.ledger if line.startswith("note")]
    assert len(done) == len(set(done)) == len(readings) * TASKS_A_ROUND
    assert "was killed" not in supervised.log
    supervised.send(signal.SIGTERM)
    supervised.assert_clean_exit(0)


def test_hundreds_of_recycles_leave_the_supervisor_unchanged(supervise, tasks, broker):
    soak(supervise, tasks, broker, 8)


@pytest.mark.soak
@pytest.mark.timeout(SOAK_S + 120)
def test_recycling_for_a_long_time_leaves_the_supervisor_unchanged(supervise, tasks, broker):
    soak(supervise, tasks, broker, SOAK_S)
