"""The terminal where the supervisor was started: a HUP because it closed is not a reload request."""

from __future__ import annotations

import errno
import os
import signal
from dataclasses import dataclass

# The errors of opening a terminal that is gone. Other errors, such as a lack of descriptors, do not prove it.
_GONE = (errno.ENXIO, errno.EIO, errno.ENODEV, errno.ENOTTY)


@dataclass(frozen=True, slots=True)
class Terminal:
    """The controlling terminal at the start, if ``was_there``. ``nohup`` sets ``ignores_hangup``."""

    was_there: bool
    ignores_hangup: bool

    @classmethod
    def find(cls, *, was_there: bool | None = None) -> Terminal:
        """Look for the terminal. Call this before the import of the app, which may change signals.

        After a reload ``was_there`` is the result of the first image: the terminal may be gone since.
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
