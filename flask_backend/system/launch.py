"""How this process was started, so that a reload can run the same command line and resolve its names again.

A release is often a link, ``current``, which a deploy points at another folder. The working folder, the interpreter and
the script of this process then belong to the old release, and the app may have changed the folder and the environment
since the start. The command line as typed stays right.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_AT_EXECFN = 31  # getauxval(3)
# Variables for this process alone: the service manager's address and watchdog, and the variables of a reload.
_NOT_KEPT = ("NOTIFY_SOCKET", "WATCHDOG_", "FLASK_BACKEND_HANDOVER", "FLASK_BACKEND_CHECK")


@dataclass(frozen=True, slots=True)
class Launch:
    """A command line. ``folder`` is the working folder under the shell's name for it, unless it is deleted."""

    arguments: Sequence[str]
    environment: Mapping[str, str]
    folder: str | None

    def command(self, executed: str | None) -> list[str]:
        """Return the command line that starts the same program again, from ``folder``.

        ``executed`` is the result of :func:`executed_file`. A script is executed directly, so that its first line
        chooses the interpreter of the new release.
        """
        arguments = self.arguments[1:]
        if executed is not None and executed in arguments[:2]:  # after the interpreter and perhaps an option
            command = arguments[arguments.index(executed) :]
        elif arguments and _is_trampoline(self._absolute(arguments[0])):
            command = arguments
        else:
            command = [_interpreter(executed and self._absolute(executed)), *arguments]
        return [self._absolute(command[0]), *command[1:]]

    def _absolute(self, path: str) -> str:
        return str(Path(self.folder, path)) if self.folder else path


@functools.cache
def launched() -> Launch:
    """Return how this process was started. Call it before any code can change the folder or the environment."""
    environment = _environment()
    kept = {name: value for name, value in environment.items() if not name.startswith(_NOT_KEPT)}
    return Launch(list(sys.orig_argv), kept, _folder(environment.get("PWD")))


def executed_file() -> str | None:
    """Return the file that the system executed, under the name typed or found; not a script's interpreter."""
    if sys.platform != "linux":
        return None
    import ctypes

    getauxval = ctypes.CDLL(None).getauxval
    getauxval.argtypes, getauxval.restype = [ctypes.c_ulong], ctypes.c_ulong
    address = getauxval(_AT_EXECFN)
    return os.fsdecode(ctypes.string_at(address)) if address else None


def _environment() -> dict[str, str]:
    """Return the environment at the start of the process, or the current one where the system does not show that."""
    with suppress(OSError):
        entries = Path("/proc/self/environ").read_bytes().split(b"\0")[:-1]
        if all(b"=" in entry for entry in entries):  # a process title would have overwritten them
            pairs = (os.fsdecode(entry).partition("=") for entry in entries)
            return {name: value for name, _, value in pairs}
    return dict(os.environ)


def _folder(logical: str | None) -> str | None:
    """Return the working folder under the shell's name for it: the system's name has its links resolved."""
    with suppress(OSError):
        if logical and Path(logical).is_absolute() and Path(logical).samefile("."):
            return logical
    with suppress(OSError):
        return str(Path.cwd())
    return None


def _interpreter(executed: str | None) -> str:
    """Return the interpreter as it was typed, unless another program loaded it."""
    with suppress(OSError):
        if executed and Path(executed).samefile(sys.executable):
            return executed
    return sys.executable


def _is_trampoline(path: str) -> bool:
    """Whether a script starts its interpreter through the shell: pip and uv write such scripts for long paths."""
    with suppress(OSError), Path(path).open("rb") as script:
        return script.readline().rstrip() == b"#!/bin/sh" and script.readline().startswith(b"'''exec'")
    return False
