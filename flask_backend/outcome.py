"""How a job left its worker's hands."""

from __future__ import annotations

from enum import IntEnum


class Ending(IntEnum):
    DONE = 0
    RETRIED = 1
    BURIED = 2
