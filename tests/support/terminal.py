"""A terminal that a test types in, looks at and closes, and a program that starts a command in it."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import sys
import termios
from contextlib import suppress

from support.waiting import wait_until

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


class Picture:
    """What a terminal shows, for programs that use few of its abilities: it fails at any other."""

    def __init__(self) -> None:
        self.is_alternate = self.hides_cursor = self.cuts_lines = False
        self.clearings = 0
        self._left = self._style = ""
        self._rest = b""
        self.resize(80, 24)
        self._main = self._lines, 0, 0  # while the alternate screen is shown

    def resize(self, columns: int, lines: int) -> None:
        self._columns = columns
        self._lines = [""] * lines
        self._styles = [""] * lines
        self._line = self._column = 0

    @property
    def lines(self) -> list[str]:
        return [line.rstrip() for line in self._lines]

    @property
    def styled_lines(self) -> list[str]:
        """The lines with their styles, which apply to whole lines."""
        pairs = zip(self._lines, self._styles, strict=True)
        return [f"\x1b[{style}m{line}\x1b[m" if style else line for line, style in pairs]

    @property
    def text(self) -> str:
        return "\n".join(self.lines)

    def feed(self, data: bytes) -> None:
        data = self._rest + data
        try:
            text, self._rest = data.decode(), b""
        except UnicodeDecodeError as error:  # the last character is incomplete
            text, self._rest = data[: error.start].decode(), data[error.start :]
        text = self._left + text
        self._left = ""
        while text:
            if text[0] != "\x1b":
                self._put(text[0])
                text = text[1:]
            elif found := re.match(r"\x1b\[([?\d;]*)([A-Za-z])", text):
                self._act(found[1], found[2])
                text = text[found.end() :]
            else:
                self._left, text = text, ""

    def _put(self, char: str) -> None:
        if char == "\n" or (char >= " " and self._column == self._columns and not self.cuts_lines):
            self._column = self._column if char == "\n" else 0
            self._line += 1
            if self._line == len(self._lines):
                self._lines = [*self._lines[1:], ""]
                self._line -= 1
        if char == "\r":
            self._column = 0
        elif char >= " ":
            self._column = min(self._column, self._columns - 1) if self.cuts_lines else self._column
            line = self._lines[self._line].ljust(self._column)
            self._styles[self._line] = self._style
            self._lines[self._line] = line[: self._column] + char + line[self._column + 1 :]
            self._column += 1

    def _act(self, number: str, final: str) -> None:
        if final == "m":
            self._style = number.strip("0")
        elif final in "hl":
            self._set_mode(number, is_set=final == "h")
        elif final == "H":
            line, column = (int(n) for n in (number or "1;1").split(";"))
            self._line, self._column = min(line, len(self._lines)) - 1, column - 1
        elif (number, final) == ("2", "J"):
            self.clearings += 1
            self._lines = [""] * len(self._lines)
        elif (number, final) == ("", "J"):
            self._lines[self._line :] = [""] * (len(self._lines) - self._line)
        else:
            assert (number, final) == ("", "K"), f"unexpected sequence {number!r} {final!r}"
            self._lines[self._line] = self._lines[self._line][: min(self._column, self._columns - 1)]

    def _set_mode(self, number: str, *, is_set: bool) -> None:
        if number == "?25":
            self.hides_cursor = not is_set
        elif number == "?7":
            self.cuts_lines = not is_set
        else:
            assert number == "?1049", f"unexpected mode {number!r}"
            if is_set and not self.is_alternate:
                self._main = self._lines, self._line, self._column
                self._lines = [""] * len(self._lines)
            elif self.is_alternate and not is_set:
                self._lines, self._line, self._column = self._main
            self.is_alternate = is_set


class Terminal:
    def __init__(self) -> None:
        self._master, slave = pty.openpty()
        self._name = os.ttyname(slave)
        os.close(slave)
        self.picture = Picture()

    def start(self, *, streams: str = "", in_shell: bool = False) -> list[str]:
        """Return the command prefix that runs a command here, with these ``streams`` here too.

        The kernel sends HUP to the command when the terminal closes, or ``in_shell`` to its parent, which ignores it.
        """
        return [sys.executable, "-c", _START + (_IN_SHELL if in_shell else _AS_LEADER), self._name, streams]

    def resize(self, columns: int, lines: int) -> None:
        """Set the size; the kernel sends WINCH to the programs in the foreground."""
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        self.picture.resize(columns, lines)

    def type(self, keys: bytes) -> None:
        os.write(self._master, keys)

    def modes(self) -> list:
        return termios.tcgetattr(self._master)

    @property
    def unread(self) -> int:
        """How many bytes have been written and not been read."""
        return int.from_bytes(fcntl.ioctl(self._master, termios.FIONREAD, bytes(4)), sys.byteorder)

    def read(self) -> bytes:
        """Read what has been written so far, and let the picture show it."""
        seen = b""
        with suppress(OSError):  # the other side is closed
            while select.select([self._master], [], [], 0)[0]:
                seen += os.read(self._master, 1 << 16)
        self.picture.feed(seen)
        return seen

    def wait_for(self, pattern: str) -> re.Match[str]:
        """Wait until the picture shows this."""

        def look():
            self.read()
            return re.search(pattern, self.picture.text, re.MULTILINE)

        try:
            return wait_until(look, f"{pattern!r} on the screen")
        except AssertionError as error:
            raise AssertionError(f"{error}:\n{self.picture.text}") from None

    def close(self) -> None:
        if self._master >= 0:
            os.close(self._master)
            self._master = -1
