"""The journal of systemd: one record for a whole failure, with its priority.

The journal splits a stream at each newline, so records go to its own socket, in its native protocol.
"""

from __future__ import annotations

import fcntl
import logging
import os
import socket
import struct
import termios
import time
from contextlib import suppress
from typing import TextIO

from .streams import STDERR, streams

ADDRESS = "/run/systemd/journal/socket"
IDENTIFIER = "flask-backend"
# The longest message, in bytes: it fits into one datagram under any limits of the system.
MAX_BYTES = 64 * 1024
# Syslog's priorities, each with its lowest level.
_PRIORITIES = ((logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))
_DEBUG = 7
# How long an ending process waits until the journal has read its records, and so can find the unit of the sender.
_GOODBYE_S = 0.2


def is_stderr() -> bool:
    """Whether systemd has connected stderr to the journal."""
    try:
        found = os.fstat(STDERR)
    except OSError:
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{found.st_dev}:{found.st_ino}"


class JournalHandler(logging.Handler):
    """Sends records to the journal's socket; if it is unreachable, writes lines with a priority to stderr."""

    def __init__(self, stderr: TextIO, address: str | None = None) -> None:
        super().__init__()
        self._stderr = stderr
        self._address = address or ADDRESS
        # Opened before the first fork, so that a process without free descriptors can still log.
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._missed = 0

    def __del__(self) -> None:
        self._socket.close()  # not in close(): dictConfig closes handlers that stay in use

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text, priority = self.format(record), _priority(record.levelno)
            data = _encode(_fields(record, _bounded(text), priority))
        except Exception:  # wrong arguments, or an error in the app's code
            self.handleError(record)
            return
        if self._missed:
            lost = f"{self._missed} records could not be sent to the journal and are lost"
            if self._send(_encode({"PRIORITY": "4", "SYSLOG_IDENTIFIER": IDENTIFIER, "MESSAGE": lost})):
                self._missed = 0
        try:
            self._missed += not self._send(data)
        except OSError:  # the journal's socket is missing
            self._stderr.write("".join(f"<{priority}>{line}\n" for line in text.splitlines()))
            self._stderr.flush()

    def _send(self, data: bytes) -> bool:
        """Send a record; return whether the journal took it in time."""
        deadline = time.monotonic() + (0 if self._missed else streams.stderr.patience_s)
        while True:
            try:
                self._socket.sendto(data, socket.MSG_DONTWAIT, self._address)
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    return False
                time.sleep(0.01)
            else:
                return True

    def flush(self) -> None:
        """Wait until the journal has read this process's records: it can look up a sender only while that lives."""
        deadline = time.monotonic() + _GOODBYE_S
        with suppress(OSError):
            while _unread_bytes(self._socket) and time.monotonic() < deadline:
                time.sleep(0.001)


def _unread_bytes(sock: socket.socket) -> int:
    count: int = struct.unpack("i", fcntl.ioctl(sock, termios.TIOCOUTQ, b"\0" * 4))[0]
    return count


def _priority(level: int) -> int:
    return next((priority for least, priority in _PRIORITIES if level >= least), _DEBUG)


def _fields(record: logging.LogRecord, text: str, priority: int) -> dict[str, str]:
    fields = {
        "PRIORITY": str(priority),
        "SYSLOG_IDENTIFIER": IDENTIFIER,
        "LOGGER": record.name,
        "CODE_FILE": record.pathname,
        "CODE_LINE": str(record.lineno),
        "CODE_FUNC": record.funcName or "",
        "MESSAGE": text,
    }
    for name in ("task", "job_id", "attempt", "queue"):
        if (value := getattr(record, name, None)) is not None:
            fields[f"BACKEND_{name.upper()}"] = _bounded(str(value), 1000)
    return fields


def _bounded(text: str, most: int = MAX_BYTES) -> str:
    """Return a text, or the beginning and the end of one that is too long."""
    data = text.encode(errors="backslashreplace")
    if len(data) <= most:
        return text
    half = most // 2
    begin, end = data[:half].decode(errors="ignore"), data[-half:].decode(errors="ignore")
    return f"{begin}\n... {len(data) - 2 * half} bytes left out ...\n{end}"


def _encode(fields: dict[str, str]) -> bytes:
    """Return a datagram of the native protocol: a value with a newline is preceded by its length."""
    parts: list[bytes] = []
    for name, text in fields.items():
        value = text.encode(errors="backslashreplace")
        if b"\n" in value:
            parts.append(b"%s\n%s%s\n" % (name.encode(), struct.pack("<Q", len(value)), value))
        else:
            parts.append(b"%s=%s\n" % (name.encode(), value))
    return b"".join(parts)
