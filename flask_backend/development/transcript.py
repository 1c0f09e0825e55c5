"""One log of several programs: whole lines, each with the name of who says it."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

_MAX_LINE = 64 * 1024  # a line is held until it is whole, or as long as this
_ESCAPES = re.compile(rb"\x1b\[[;?0-9]*[A-Za-z]")
_RESET = b"\x1b[0m"


class Lines:
    """Makes whole lines of what a program says in pieces."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[bytes]:
        """Return the lines that are whole now."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) >= _MAX_LINE:
            lines += self.end()
        return [_as_shown(line) for line in lines]

    def end(self) -> list[bytes]:
        """Return the last line, if it never became whole."""
        rest, self._rest = self._rest, b""
        return [_as_shown(rest)] if rest else []


def _as_shown(line: bytes) -> bytes:
    """Return what a terminal shows of a line in the end: what comes after the last return to its beginning."""
    return line.rstrip(b"\r").rpartition(b"\r")[2]


class Transcript:
    """Writes lines to a descriptor; ``colours`` are those of the names, as SGR codes, or None for no colours at all."""

    def __init__(self, fd: int, names: Mapping[str, int], *, is_coloured: bool) -> None:
        self.is_lost = False  # nobody reads it any more
        self._fd = fd
        self._is_coloured = is_coloured
        width = max(map(len, names))
        self._prefixes = {
            name: b"\x1b[%dm%s |%s" % (colour, name.ljust(width).encode(), _RESET)
            if is_coloured
            else b"%s |" % name.ljust(width).encode()
            for name, colour in names.items()
        }

    def write(self, name: str, line: bytes) -> None:
        if not self._is_coloured:
            line = _ESCAPES.sub(b"", line)
        elif b"\x1b" in line:
            line += _RESET
        self._write_all(self._prefixes[name] + (b" " + line if line else b"") + b"\n")

    def _write_all(self, data: bytes) -> None:
        # Not through a file object: what could not be written would be tried again at the interpreter's end.
        try:
            while data and not self.is_lost:
                data = data[os.write(self._fd, data) :]
        except OSError:  # a closed pipe, a terminal that is gone
            self.is_lost = True
