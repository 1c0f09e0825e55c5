"""Shared memory in which each child says what it does: one row a child, one writer a row, no lock.

A row is written with aligned stores of eight bytes, which no reader sees by half. It stays readable after its child
died, so that the supervisor knows which job went with it.
"""

from __future__ import annotations

import mmap

_WORDS = 8  # 64 bytes, a cache line, so that children do not slow each other
_BUSY_JOB, _JOBS_DONE = range(2)


class Row:
    """What one child tells of itself."""

    def __init__(self, words: memoryview) -> None:
        self._words = words

    def clear(self) -> None:
        for index in range(_WORDS):
            self._words[index] = 0

    @property
    def busy_job(self) -> int:
        """The id of the job that the child works on, or 0; beanstalkd counts ids from 1."""
        return self._words[_BUSY_JOB]

    @busy_job.setter
    def busy_job(self, job_id: int) -> None:
        self._words[_BUSY_JOB] = job_id

    @property
    def jobs_done(self) -> int:
        return self._words[_JOBS_DONE]

    @jobs_done.setter
    def jobs_done(self, count: int) -> None:
        self._words[_JOBS_DONE] = count


class Scoreboard:
    """The rows of all children. Created before the first fork; a row is set before its child is forked."""

    def __init__(self, capacity: int) -> None:
        self._memory = mmap.mmap(-1, capacity * _WORDS * 8)
        self._words = memoryview(self._memory).cast("Q")
        self._free = list(range(capacity))[::-1]
        self._taken: dict[int, int] = {}

    def take(self) -> Row:
        """Return a cleared row that no other child has."""
        index = self._free.pop()
        row = Row(self._words[index * _WORDS : (index + 1) * _WORDS])
        self._taken[id(row)] = index
        row.clear()
        return row

    def give_back(self, row: Row) -> None:
        self._free.append(self._taken.pop(id(row)))
