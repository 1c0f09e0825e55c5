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
MAX_NEXT_ID = 2**62
_U32 = 2**32
_MAX_TIME = 2.0**40  # seconds since the epoch; far beyond the longest delay
_STATES = {state.value: state for state in State if state is not State.RESERVED}
_TUBE = re.compile(TUBE.decode())


class RowError(BackendError):
    """A row has a value that the broker cannot have written."""


class _Check(NamedTuple):
    passes: Callable[[Any], bool]
    expected: str


def _is_number(value: object, least: int, bound: int) -> bool:
    return type(value) is int and least <= value < bound


_NUMBER = _Check(lambda value: _is_number(value, 0, _U32), "a number below 2**32")
_TIME = _Check(lambda value: isinstance(value, float) and abs(value) < _MAX_TIME, "seconds since the epoch")
_COUNT = _Check(lambda value: _is_number(value, 0, MAX_NEXT_ID), "a number")

# The columns of a job, in the order of the table.
_CHECKS = {
    "id": _Check(lambda value: _is_number(value, 1, MAX_NEXT_ID), "a number from 1, below 2**62"),
    "tube": _Check(lambda value: isinstance(value, str) and bool(_TUBE.fullmatch(value)), "the name of a tube"),
    "body": _Check(lambda value: isinstance(value, bytes), "bytes"),
    "state": _Check(lambda value: isinstance(value, str) and value in _STATES, f"one of {', '.join(_STATES)}"),
    "priority": _NUMBER,
    "delay_s": _NUMBER,
    "ttr_s": _Check(lambda value: _is_number(value, 1, _U32), "a number from 1, below 2**32"),
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
    """Return the id of the next job, of the rows of the counter; raise :exc:`RowError` if it is not there."""
    found = [row[0] for row in rows]
    if len(found) != 1 or not _is_number(found[0], -MAX_NEXT_ID, MAX_NEXT_ID):
        raise RowError(f"the counter of ids has {show_value(found)}, expected one number below 2**62")
    return int(found[0])
