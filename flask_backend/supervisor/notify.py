"""systemd's notification protocol, see sd_notify(3)."""

from __future__ import annotations

import os
import socket
from contextlib import suppress


class Notifier:
    """Tells the service manager of our state, if there is one.

    Takes the variable out of the environment: only the supervisor speaks, not what the app or a task starts.
    """

    def __init__(self, path: str | None = None) -> None:
        """Take the address from the environment, unless it is told."""
        self.path = os.environ.pop("NOTIFY_SOCKET", "") if path is None else path
        self._address = f"\0{self.path[1:]}" if self.path.startswith("@") else self.path
        # Open all the time: a state must not be lost because no descriptor is left when it changes.
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) if self._address else None
        self._last = ""

    def send(self, *lines: str) -> None:
        """Send one datagram; the same one is not sent twice in a row. Nobody listening is no error."""
        message = "\n".join(lines)
        if self._socket is None or message == self._last:
            return
        # A manager that went away, or that reads nothing, does not concern our children.
        with suppress(OSError):
            self._socket.sendto(message.encode(), socket.MSG_DONTWAIT, self._address)
            self._last = message

    def close_in_child(self) -> None:
        if self._socket is not None:
            self._socket.close()
