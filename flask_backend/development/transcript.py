"""One log of several programs: whole lines, each with the name of its program."""

from __future__ import annotations

import re
from collections.abc import Mapping

from flask_backend.system.streams import Outlet

_MAX_LINE = 64 * 1024  # a line is held until it is complete or this long
_ESCAPES = re.compile(rb"\x1b\[[;?0-9]*[A-Za-z]")
_RESET = b"\x1b[0m"


class Lines:
    """Joins the pieces of a program's output into whole lines."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[bytes]:
        """Return the lines that are now complete."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) >= _MAX_LINE:
            lines += self.end()
        return [_as_shown(line) for line in lines]

    def end(self) -> list[bytes]:
        """Return the last line, if it is incomplete."""
        rest, self._rest = self._rest, b""
        return [_as_shown(rest)] if rest else []


def _as_shown(line: bytes) -> bytes:
    """Return the part of a line that a terminal shows in the end: the text after the last carriage return."""
    return line.rstrip(b"\r").rpartition(b"\r")[2]


class Transcript:
    """Writes lines to an outlet. ``names`` maps each name to a colour, an SGR code."""

    def __init__(self, outlet: Outlet, names: Mapping[str, int], *, is_coloured: bool) -> None:
        self._outlet = outlet
        self._is_coloured = is_coloured
        width = max(map(len, names))
        self._prefixes = {
            name: b"\x1b[%dm%s |%s" % (colour, name.ljust(width).encode(), _RESET)
            if is_coloured
            else b"%s |" % name.ljust(width).encode()
            for name, colour in names.items()
        }

    @property
    def is_lost(self) -> bool:
        """Whether its reader is gone: the pipe or the terminal has closed."""
        return self._outlet.is_broken

    def write(self, name: str, line: bytes) -> None:
        if not self._is_coloured:
            line = _ESCAPES.sub(b"", line)
        elif b"\x1b" in line:
            line += _RESET
        if not self.is_lost:
            self._outlet.write(self._prefixes[name] + (b" " + line if line else b"") + b"\n")
