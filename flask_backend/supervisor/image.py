"""A program to execute, in a child or in place of this process."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NoReturn


@dataclass(frozen=True, slots=True)
class Image:
    """A command to execute, its environment and its folder; without a folder, the current one."""

    command: list[str]
    environment: Mapping[str, str]
    folder: str | None

    def execute(self) -> NoReturn:
        """Replace this process's program; if refused, restore the folder and raise :exc:`OSError`."""
        here = os.open(".", getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY)
        try:
            if self.folder is not None:
                os.chdir(self.folder)
            os.execve(self.command[0], self.command, self.environment)  # noqa: S606  # a shell is not wanted
        finally:
            os.fchdir(here)
            os.close(here)
