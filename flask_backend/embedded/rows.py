"""The rows of the broker's file: jobs to rows, and rows to jobs. Pure.

Every value is checked when it is read: another program, or a damaged disk, may have changed it, and SQLite stores any
type in any column.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from flask_backend.errors import BackendError
from flask_backend.message import show_value

from .protocol import TUBE
from .store import State, StoredJob, Tube

# Counting from here, a broker never reaches the largest integer of SQLite.
_MAX_ID = 2**62
_U32 = 2**32
_MAX_TIME = 2.0**40  # seconds since the epoch; far beyond the longest delay
_STATES = {state.value: state for state in State if state is not State.RESERVED}
_TUBE = re.compile(TUBE.decode())


class RowError(BackendError):
    """A row has a value that the broker cannot have written."""


class _Check(NamedTuple):
    passes: Callable[[object], bool]
    expected: str


def _from(least: int, bound: int) -> Callable[[object], bool]:
    """Return a check for whole numbers from ``least``, below ``bound``."""
    return lambda value: type(value) is int and least <= value < bound


def _is_tube(value: object) -> bool:
    return isinstance(value, str) and bool(_TUBE.fullmatch(value))


def _is_bytes(value: object) -> bool:
    return isinstance(value, bytes)


def _is_state(value: object) -> bool:
    return isinstance(value, str) and value in _STATES


def _is_time(value: object) -> bool:
    return isinstance(value, float) and abs(value) < _MAX_TIME


_NUMBER = _Check(_from(0, _U32), "a number below 2**32")
_TIME = _Check(_is_time, "seconds since the epoch")
_COUNT = _Check(_from(0, _MAX_ID), "a number")
_is_next_id = _from(-_MAX_ID, _MAX_ID)

# The columns of a job, in the order of the table.
_CHECKS = {
    "id": _Check(_from(1, _MAX_ID), "a number from 1, below 2**62"),
    "tube": _Check(_is_tube, "the name of a tube"),
    "body": _Check(_is_bytes, "bytes"),
    "state": _Check(_is_state, f"one of {', '.join(_STATES)}"),
    "priority": _NUMBER,
    "delay_s": _NUMBER,
    "ttr_s": _Check(_from(1, _U32), "a number from 1, below 2**32"),
    "created_at": _TIME,
    "at": _TIME,
    **dict.fromkeys(("reserves", "timeouts", "releases", "buries", "kicks"), _COUNT),
}


def read_job(row: Sequence[Any], shift_s: float) -> StoredJob:
    """Return the job of a row. ``shift_s`` is the wall clock's lead over the broker's clock, in seconds.

    Raise :exc:`RowError` if a value is not one that the broker writes.
    """
    for (column, check), value in zip(_CHECKS.items(), row, strict=True):
        if not check.passes(value):
            raise RowError(f"job {show_value(row[0])} has {column} {show_value(value)}, expected {check.expected}")
    job_id, tube, body, state, priority, delay_s, ttr_s, created_at, at, *counters = row
    job = StoredJob(job_id, Tube(tube), body, priority, delay_s, ttr_s, created_at - shift_s)
    job.state, job.at = _STATES[state], at - shift_s
    job.reserves, job.timeouts, job.releases, job.buries, job.kicks = counters
    return job


def write_job(job: StoredJob, shift_s: float) -> tuple[object, ...]:
    """Return the row of a job. A reserved one is ready again after a restart."""
    state = State.READY if job.state is State.RESERVED else job.state
    counters = (job.reserves, job.timeouts, job.releases, job.buries, job.kicks)
    times = (job.created_at + shift_s, job.at + shift_s)
    return job.id, job.tube.name, job.body, state.value, job.priority, job.delay_s, job.ttr_s, *times, *counters


def read_next_id(rows: Sequence[Sequence[Any]]) -> int:
    """Return the id of the next job from the rows of the counter; raise :exc:`RowError` unless it is one number."""
    found = [row[0] for row in rows]
    if len(found) != 1 or not _is_next_id(found[0]):
        raise RowError(f"the counter of ids has {show_value(found)}, expected one number below 2**62")
    return int(found[0])
