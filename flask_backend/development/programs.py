"""A program that runs in its own session: its output is read line by line, and it ends with all its processes."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from selectors import EVENT_READ, BaseSelector

from flask_backend.deaths import Exit

from .transcript import Lines

_LEASH = str(Path(__file__).with_name("leash.py"))
_READ_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class CommandLine:
    """A command to run: the interpreter's arguments, additions to our environment, and descriptors to inherit."""

    arguments: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict[str, str])
    descriptors: Sequence[int] = ()


class Program:
    """A program that can be started repeatedly, one process at a time.

    It runs in its own session: the terminal's Ctrl-C does not reach it, and the processes that it starts can be found.
    """

    def __init__(self, name: str, hear: Callable[[bytes], None], selector: BaseSelector, grace_s: float) -> None:
        """Name it. ``hear`` receives its lines. It is killed if it has not stopped after ``grace_s`` seconds."""
        self.name = name
        self.has_spoken = False
        self.was_told_to_end = False
        self.started_at = 0.0
        self._hear = hear
        self._selector = selector
        self._grace_s = grace_s
        self._kill_at = math.inf
        self._process: subprocess.Popen[bytes] | None = None
        self._output = -1
        self._lines = Lines()

    @property
    def is_running(self) -> bool:
        return self._process is not None

    def start(self, command: CommandLine) -> None:
        # Unbuffered: its output must appear at once.
        environment = {**os.environ, "PYTHONUNBUFFERED": "1", **command.environment}
        self._output, theirs = os.pipe()
        # A HUP that arrives before the program has a handler must stay pending, not end the program.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGHUP])
        try:
            self._process = subprocess.Popen(  # noqa: S603  # our own commands and Flask's
                [sys.executable, "-I", "-S", _LEASH, str(os.getpid()), sys.executable, *command.arguments],
                stdin=subprocess.DEVNULL,
                stdout=theirs,
                stderr=theirs,
                env=environment,
                pass_fds=command.descriptors,
                start_new_session=True,
            )
        finally:
            os.close(theirs)
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        os.set_blocking(self._output, False)
        self._selector.register(self._output, EVENT_READ, self._listen)
        self.started_at = time.monotonic()
        self.has_spoken = self.was_told_to_end = False
        self._kill_at = math.inf

    def stop(self) -> None:
        """Ask it to exit, once."""
        if self._process and not self.was_told_to_end:
            self.was_told_to_end = True
            self._kill_at = time.monotonic() + self._grace_s
            self.send(signal.SIGTERM)

    def kill(self) -> None:
        """Kill it and all processes that it has started."""
        if self._process:
            self.was_told_to_end = True
            _kill_session(self._process.pid)

    def kill_overdue(self, now: float) -> None:
        if now >= self._kill_at:
            self.kill()

    def send(self, number: signal.Signals) -> None:
        if self._process:
            os.kill(self._process.pid, number)  # the pid is valid, dead or alive, until it is reaped

    def reap(self) -> Exit | None:
        """Return its exit, once, if it has ended. Kill the processes that it left running."""
        if self._process is None:
            return None
        pid = self._process.pid
        if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            return None
        _kill_session(pid)  # while the zombie still holds the number
        while self._listen():
            pass
        for line in self._lines.end():
            self._hear(line)
        self._hang_up()
        code = self._process.wait()
        self._process = None
        return Exit(pid, status=code if code >= 0 else None, signal=-code if code < 0 else None)

    def _listen(self) -> bool:
        """Pass on its output; return whether there may be more."""
        if self._output < 0:
            return False
        try:
            data = os.read(self._output, _READ_BYTES)
        except BlockingIOError:
            return False
        if not data:
            self._hang_up()
            return False
        self.has_spoken = True
        for line in self._lines.feed(data):
            self._hear(line)
        return True

    def _hang_up(self) -> None:
        if self._output >= 0:
            self._selector.unregister(self._output)
            os.close(self._output)
            self._output = -1


def _kill_session(leader: int) -> None:
    """Kill every process of a session. Repeat until no new one appears, since they may fork."""
    import psutil

    killed: set[int] = set()
    while found := {pid for pid in psutil.pids() if _session_of(pid) == leader} - killed:
        for pid in found:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        killed |= found


def _session_of(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except (ProcessLookupError, PermissionError):
        return None
