"""systemd's notification protocol, see sd_notify(3) and sd_watchdog_enabled(3)."""

from __future__ import annotations

import math
import os
import socket
import time
from collections.abc import MutableMapping
from dataclasses import dataclass

# The longest status, in characters. systemd reads 4096 bytes of a message at most.
STATUS_CHARS = 1000
# How long the manager waits for the next message of a drain. Messages follow each other four times as fast.
EXTENSION_S = 10.0
# What the manager allows beyond the drain timeout: the unit's TimeoutStopSec= has the same.
STOP_MARGIN_S = 5.0
# The least time between two signs of life, however short the manager's patience is.
LEAST_S = 0.05

_STATES = ("READY", "RELOADING", "STOPPING")
_NO_LIMIT = 2**64 - 1  # microseconds


@dataclass(frozen=True, slots=True)
class ServiceManager:
    """What systemd has passed to this process: the address of its socket, and its watchdog's patience, if any."""

    address: str = ""
    watchdog_usec: int = 0

    @classmethod
    def take(cls, environment: MutableMapping[str, str] = os.environ) -> ServiceManager:
        """Read the variables and remove them: only the supervisor notifies, not a task or a program of the app."""
        address, patience, pid = (
            environment.pop(name, "") for name in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")
        )
        is_for_us = address and pid in ("", str(os.getpid()))
        return cls(address, _read_usec(patience) if is_for_us else 0)


def _read_usec(text: str) -> int:
    """Return a number of microseconds; 0 if it is not one, or means no limit."""
    is_number = text.isascii() and text.isdecimal() and len(text) <= len(str(_NO_LIMIT))
    return usec if is_number and (usec := int(text)) < _NO_LIMIT else 0


class Notifier:
    """Reports our state to the service manager, if any. It never blocks: the manager may be stuck.

    A change of state or status that the manager could not take is sent again at the end of the next turn. All times are
    of the monotonic clock.
    """

    def __init__(self, manager: ServiceManager) -> None:
        self.manager = manager
        address = manager.address
        self._address = f"\0{address[1:]}" if address.startswith("@") else address
        # Stays open: a change of state must not be lost because no descriptor is left.
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) if address else None
        self._unsent: dict[str, str] = {}
        self._status = ""
        self._patience_s = manager.watchdog_usec / 1e6
        self._watchdog_due_at = -math.inf
        self._is_watchdog_extended = True  # by the image before this one
        self._extension_due_at = -math.inf

    def report_ready(self) -> None:
        self._report(READY="1")

    def report_reload(self, within_s: float) -> None:
        """Report that the next image takes over. Until its first turn is complete, the watchdog waits longer.

        ``within_s`` is how long the import of the app may take.
        """
        changes = {"RELOADING": "1", "MONOTONIC_USEC": str(time.monotonic_ns() // 1000)}
        if self._patience_s:
            changes |= {"WATCHDOG": "1", "WATCHDOG_USEC": str(self.manager.watchdog_usec + int(within_s * 1e6))}
            self._is_watchdog_extended = True
            self._watchdog_due_at = -math.inf
        self._report(**changes)

    def report_stop(self, status: str) -> None:
        self._report(STOPPING="1", STATUS=self._note_status(status))

    def show(self, status: str) -> None:
        """Show a line of text in `systemctl status`, unless it is there already."""
        before = self._status
        if self._note_status(status) != before:
            self._report(STATUS=self._status)

    def note_turn(self, now: float) -> None:
        """Report that a turn of the loop is complete, if that is due and the manager has a watchdog."""
        self._send_again()
        if not self._patience_s or now < self._watchdog_due_at:
            return
        changes = {"WATCHDOG": "1"}
        if self._is_watchdog_extended:
            changes["WATCHDOG_USEC"] = str(self.manager.watchdog_usec)
        # A turn reports if it comes after a quarter of the time. The loop wakes up for it only after half of it.
        quarter_s = self._patience_s / 4
        if self._send(changes):
            self._is_watchdog_extended = False
            self._watchdog_due_at = now + max(quarter_s, LEAST_S)
        else:
            self._watchdog_due_at = now + max(quarter_s / 4, LEAST_S)

    def next_at(self) -> float:
        """Return when the next turn should be complete."""
        return self._watchdog_due_at + self._patience_s / 4 if self._patience_s else math.inf

    def note_turn_of_drain(self, now: float, end_by: float) -> None:
        """Report a turn while a stop is in progress, which should be complete by ``end_by``: the manager then waits.

        A supervisor that hangs reports nothing, and the manager kills it.
        """
        self._send_again()
        if now >= self._extension_due_at and self._extend(min(EXTENSION_S, end_by + STOP_MARGIN_S - now)):
            self._extension_due_at = now + EXTENSION_S / 4

    def report_end(self, within_s: float) -> None:
        """Report that the loop has ended: the process exits within this time."""
        self._extend(within_s + STOP_MARGIN_S)

    def close_in_child(self) -> None:
        if self._socket is not None:
            self._socket.close()

    def _extend(self, by_s: float) -> bool:
        return by_s > 0 and self._send({"EXTEND_TIMEOUT_USEC": str(int(by_s * 1e6))})

    def _note_status(self, status: str) -> str:
        """Keep a status, as one line that any manager accepts, and return it."""
        self._status = "".join(char if char.isprintable() else " " for char in status[:STATUS_CHARS])
        return self._status

    def _report(self, **changes: str) -> None:
        """Send changes that must arrive. A new state replaces one that could not be sent."""
        if any(name in changes for name in _STATES):
            self._unsent = {name: value for name, value in self._unsent.items() if name == "STATUS"}
        self._unsent |= changes
        self._send_again()

    def _send_again(self) -> None:
        if self._unsent and self._send(self._unsent):
            self._unsent = {}

    def _send(self, changes: dict[str, str]) -> bool:
        """Send one datagram; return whether the manager has it."""
        if self._socket is None:
            return True
        message = "\n".join(f"{name}={value}" for name, value in changes.items())
        try:
            self._socket.sendto(message.encode(), socket.MSG_DONTWAIT, self._address)
        except OSError:  # it is stuck, or gone: that must not affect our children
            return False
        return True
