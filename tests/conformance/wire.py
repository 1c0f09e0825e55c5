"""The protocol as bytes on a socket, without a client library that could hide a difference."""

from __future__ import annotations

import re
import select
import socket
from typing import Self

WITH_DATA = {b"OK", b"FOUND", b"RESERVED"}


class Wire:
    """One connection, which initially uses and watches only ``tube``."""

    def __init__(self, port: int, tube: str | None = None) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=10)
        self._file = self.socket.makefile("rb")
        if tube is not None:
            self.ask(f"use {tube}")
            self.ask(f"watch {tube}")
            self.ask("ignore default")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def send(self, *lines: str | bytes) -> None:
        self.socket.sendall(b"".join((line if isinstance(line, bytes) else line.encode()) + b"\r\n" for line in lines))

    def ask(self, *lines: str | bytes) -> bytes:
        """Send one command, with its body if it has one, and return the reply without its last line break."""
        self.send(*lines)
        return self.read()

    def read(self) -> bytes:
        """Return the next reply; empty if the server has closed the connection."""
        line = self._file.readline()
        words = line.split()
        if words and words[0] in WITH_DATA:
            line += self._file.read(int(words[-1]) + 2)
        return line.removesuffix(b"\r\n")

    def read_bytes(self, count: int) -> bytes:
        return self._file.read(count)

    def read_all(self) -> bytes:
        """Return all data until the server closes the connection."""
        return self._file.read()

    def has_reply(self, timeout_s: float = 0.0) -> bool:
        return bool(select.select([self.socket], [], [], timeout_s)[0])

    def put(self, body: bytes = b"x", *, priority: int = 0, delay: int = 0, ttr: int = 100) -> int:
        reply = self.ask(f"put {priority} {delay} {ttr} {len(body)}", body)
        assert reply.startswith(b"INSERTED "), reply
        return int(reply.split()[1])

    def reserve(self, timeout: int = 0) -> int | None:
        """Reserve a job and return its id; None if no job arrives in time."""
        reply = self.ask(f"reserve-with-timeout {timeout}")
        return int(reply.split()[1]) if reply.startswith(b"RESERVED") else None

    def reserved(self, **options) -> int:
        """Put a job and reserve it."""
        job_id = self.put(**options)
        assert self.ask(f"reserve-job {job_id}").startswith(b"RESERVED")
        return job_id

    def stats(self, of: str = "") -> dict[str, str]:
        """Return the statistics of the server, or of ``-job 1`` or ``-tube default``; empty if it does not exist."""
        return dict(re.findall(r"^(\S+): (.*)$", self.ask(f"stats{of}").decode(), re.MULTILINE))

    def state(self, job_id: int) -> str | None:
        return self.stats(f"-job {job_id}").get("state")

    def close(self) -> None:
        self._file.close()
        self.socket.close()
