"""How a worker settled a job."""

from __future__ import annotations

from enum import IntEnum


class Ending(IntEnum):
    DONE = 0
    RETRIED = 1
    BURIED = 2
    DISCARDED = 3
    EXPIRED = 4  # never begun
