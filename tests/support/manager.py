"""The receiving end of systemd's notification protocol, see sd_notify(3)."""

from __future__ import annotations

import os
import select
import socket
import time
from pathlib import Path

SIGNS_OF_LIFE = {"WATCHDOG", "WATCHDOG_USEC", "EXTEND_TIMEOUT_USEC"}


class Manager:
    """A service manager's socket, at a path or abstract. ``variable`` is its address, as in `NOTIFY_SOCKET`."""

    def __init__(self, folder: Path | None = None) -> None:
        name = f"@flask-backend-test-{os.getpid()}-{time.monotonic_ns()}"
        self.variable = str(folder / "notify") if folder else name
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._sock.bind(self.variable.replace("@", "\0") if folder is None else self.variable)
        self._sock.settimeout(20)

    def next(self) -> dict[str, str]:
        """Wait for a message; return its variables."""
        return dict(line.split("=", 1) for line in self._sock.recv(4096).decode().split("\n"))

    def next_change(self) -> dict[str, str]:
        """Wait for a message that is not only a sign of life."""
        while not (change := self.next()).keys() - SIGNS_OF_LIFE:
            pass
        return change

    def unread(self) -> list[dict[str, str]]:
        """Return the messages that have arrived."""
        self._sock.settimeout(0)
        found = []
        try:
            while True:
                found.append(self.next())
        except BlockingIOError:
            return found
        finally:
            self._sock.settimeout(20)

    def has_heard_nothing(self) -> bool:
        """Whether nothing but signs of life has arrived."""
        return all(message.keys() <= SIGNS_OF_LIFE for message in self.unread())

    def has_message_within(self, timeout_s: float) -> bool:
        return bool(select.select([self._sock], [], [], timeout_s)[0])

    def close(self) -> None:
        self._sock.close()
