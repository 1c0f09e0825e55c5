"""The terminal that the supervisor was started at: the HUP of its end asks for no reload."""

from __future__ import annotations

import errno
import os
import signal
from dataclasses import dataclass

# What an open of a terminal that is gone says. Other errors, such as a lack of descriptors, say nothing about it.
_GONE = (errno.ENXIO, errno.EIO, errno.ENODEV, errno.ENOTTY)


@dataclass(frozen=True, slots=True)
class Terminal:
    """The controlling terminal of the start, if ``was_there``; ``ignores_hangup`` is what ``nohup`` asks for."""

    was_there: bool
    ignores_hangup: bool

    @classmethod
    def find(cls, *, was_there: bool | None = None) -> Terminal:
        """Look for it, before the import of the app, which may change signals.

        After a reload ``was_there`` is what the first image has found: the terminal may be gone since.
        """
        if was_there is None:
            was_there = _open_error() is None
        return cls(was_there, signal.getsignal(signal.SIGHUP) is signal.SIG_IGN)

    def is_gone(self) -> bool:
        return self.was_there and _open_error() in _GONE


def _open_error() -> int | None:
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError as error:
        return error.errno
    return None
