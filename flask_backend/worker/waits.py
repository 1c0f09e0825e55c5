"""How long jobs wait for a worker: from when they were due until their first attempt begins.

The time of scheduling, in the message, is known at no cost, but not whether the job had a delay or was retried in
between. Both take whole seconds. So for a job that was scheduled longer ago than one second the worker asks the
broker: the reply arrives with later ones, and the job does not wait for it. If many such jobs follow each other, it
asks about some, and each stands for the jobs since the last.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from typing import Any

from flask_backend.broker.connection import Connection

# A job scheduled less long ago has neither a delay nor an attempt that was retried later than at once.
FRESH_S = 1.0
# How many jobs the broker is asked about at once, and in each further second.
ASK_MOST = 20
# The server counts whole seconds: on average it leaves out half of one.
_ROUNDED_OFF_US = 500_000

# The parts of the reply to stats-job. A first attempt has one reserve and no other count.
_AGE = re.compile(rb"\nage: (\d{1,9})\ndelay: (\d{1,9})\n")
_FIRST = re.compile(rb"\nreserves: 1\ntimeouts: 0\nreleases: 0\nburies: 0\nkicks: 0\n")

# Takes the name of a task, the microseconds that jobs of it have waited, and their number.
CountWait = Callable[[str, int, int], None]


class Waits:
    """Counts how long the jobs of one worker have waited."""

    def __init__(self, count: CountWait) -> None:
        self._count = count
        self._noted_at = 0.0
        self._connection: Connection | None = None
        self._may_ask = float(ASK_MOST)
        self._unasked = 0

    def note(self, connection: Connection, job_id: int, label: str, headers: Mapping[str, Any], now: float) -> None:
        """Count the wait of a job that begins ``now``, on the monotonic clock. Raises :exc:`BrokerConnectionError`."""
        at = headers.get("at")  # other producers may write anything here, also an infinite number
        if isinstance(at, float) and (waited_s := time.time() - at) < FRESH_S:
            self._count(label, int(waited_s * 1e6) if waited_s > 0 else 0, 1)
            return
        self._unasked += 1
        if connection is not self._connection:
            # A connection that breaks again and again must carry jobs first.
            self._may_ask = 0.0 if self._connection else self._may_ask
            self._connection, self._noted_at = connection, now
        self._may_ask = min(ASK_MOST, self._may_ask + ASK_MOST * (now - self._noted_at))
        self._noted_at = now
        if self._may_ask >= 1:
            connection.ask_stats_later(job_id, _Answer(self._count, label, self._unasked))
            self._may_ask -= 1
            self._unasked = 0


class _Answer:
    """Receives the statistics of a job."""

    def __init__(self, count: CountWait, label: str, jobs: int) -> None:
        self._count = count
        self._label = label
        self._jobs = jobs

    def receive(self, words: list[bytes], data: bytes) -> None:
        if words[0] == b"OK" and _FIRST.search(data) and (found := _AGE.search(data)):
            waited_s = max(0, int(found[1]) - int(found[2]))
            self._count(self._label, waited_s * 10**6 + _ROUNDED_OFF_US, self._jobs)
