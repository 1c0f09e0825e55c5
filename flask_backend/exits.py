"""What the process's exit code means."""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    OK = 0  # stopped as asked, everything finished
    FAILED = 1
    USAGE = 2  # click's own
    CONFIG = 3  # the app or its configuration cannot be loaded: restarting will not help
    GAVE_BACK = 4  # stopped as asked, but some jobs were given back unfinished
    GAVE_UP = 5  # workers kept dying
