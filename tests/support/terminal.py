"""A terminal that a test closes, and a program that starts a command in it."""

from __future__ import annotations

import os
import pty
import sys

# A process with its own session takes the first terminal that it opens for the controlling one.
_START = """
import os, signal, sys

name, streams, command = sys.argv[1], sys.argv[2], sys.argv[3:]
os.setsid()
terminal = os.open(name, os.O_RDWR)
for number in streams:
    os.dup2(terminal, int(number))
"""
_AS_LEADER = "os.execvp(command[0], command)"
_IN_SHELL = """
signal.signal(signal.SIGHUP, lambda *_: None)
pid = os.fork()
if pid == 0:
    os.execvp(command[0], command)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""


class Terminal:
    def __init__(self) -> None:
        self._master, slave = pty.openpty()
        self._name = os.ttyname(slave)
        os.close(slave)

    def start(self, *, streams: str = "", in_shell: bool = False) -> list[str]:
        """Return the command prefix that runs a command here, with these ``streams`` here too.

        The kernel sends HUP to the command when the terminal closes, or ``in_shell`` to its parent, which ignores it.
        """
        return [sys.executable, "-c", _START + (_IN_SHELL if in_shell else _AS_LEADER), self._name, streams]

    def close(self) -> None:
        if self._master >= 0:
            os.close(self._master)
            self._master = -1
