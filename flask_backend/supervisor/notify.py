"""systemd's notification protocol, see sd_notify(3)."""

from __future__ import annotations

import os
import socket
from contextlib import suppress


class Notifier:
    """Reports our state to the service manager, if any.

    It removes the variable from the environment: only the supervisor may notify, not the programs of the app or a task.
    """

    def __init__(self, path: str | None = None) -> None:
        """Take the address from the environment, unless it is given."""
        self.path = os.environ.pop("NOTIFY_SOCKET", "") if path is None else path
        self._address = f"\0{self.path[1:]}" if self.path.startswith("@") else self.path
        # Stays open: a change of state must not be lost because no descriptor is left.
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) if self._address else None
        self._last = ""

    def send(self, *lines: str) -> None:
        """Send one datagram, unless it equals the last one. A missing listener is not an error."""
        message = "\n".join(lines)
        if self._socket is None or message == self._last:
            return
        # A manager that is gone or does not read must not affect our children.
        with suppress(OSError):
            self._socket.sendto(message.encode(), socket.MSG_DONTWAIT, self._address)
            self._last = message

    def close_in_child(self) -> None:
        if self._socket is not None:
            self._socket.close()
