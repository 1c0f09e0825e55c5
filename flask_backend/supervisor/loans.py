"""Duplicates of the children's sockets: the jobs of a dead child stay reserved until they are settled.

A child sends each connection that it opens through a socket pair (SCM_RIGHTS, see unix(7)). The supervisor never reads
from or writes to a duplicate: it keeps it open, passes it to a post-mortem, or closes it.
"""

from __future__ import annotations

import importlib
import os
import socket

from flask_backend.system.loggers import get_logger

from . import wording

logger = get_logger("flask_backend.supervisor")

importlib.import_module("array")  # as socket.recv_fds() does: an import needs a descriptor, and none may be left then

_PID_BYTES = 4


class Loans:
    """At most one socket for each child, the one it opened last. Create this before the first fork."""

    def __init__(self) -> None:
        self._receiver, self._sender = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._receiver.setblocking(False)
        self._sender.setblocking(False)
        self._lent: dict[int, int] = {}

    def fileno(self) -> int:
        """Return the descriptor that is readable when a child has lent something."""
        return self._receiver.fileno()

    def lend(self, fd: int) -> None:
        """Lend a socket to the supervisor. For use in a child. If this fails, its job goes back when it dies."""
        try:
            socket.send_fds(self._sender, [os.getpid().to_bytes(_PID_BYTES, "little")], [fd])
        except OSError as error:
            logger.debug(wording.CANNOT_LEND, error)

    def receive(self) -> None:
        """Receive the sockets that children have lent so far."""
        while True:
            try:
                message, fds, _, _ = socket.recv_fds(self._receiver, _PID_BYTES, 1)
            except BlockingIOError:
                return
            except OSError as error:  # the system lacks a resource: the next turn may succeed
                logger.debug(wording.CANNOT_RECEIVE_LOANS, error)
                return
            pid = int.from_bytes(message, "little")
            self.close(pid)  # the child has already closed the one it lent before
            if fds:
                self._lent[pid] = fds[0]
            else:
                logger.warning(
                    wording.NO_DESCRIPTOR_FOR_LOAN,
                    pid,
                )

    def keep(self, pid: int, fd: int) -> None:
        """Take over the socket that a child lent to an earlier image of this process."""
        self._lent[pid] = fd

    def get(self, pid: int) -> int | None:
        return self._lent.get(pid)

    def close(self, pid: int) -> None:
        """Close the socket that a child has lent, if any."""
        fd = self._lent.pop(pid, None)
        if fd is not None:
            os.close(fd)

    def close_all(self) -> None:
        """Close all of them."""
        for pid in list(self._lent):
            self.close(pid)
        self._receiver.close()
        self._sender.close()

    def close_in_child(self, *, keep: int | None = None) -> None:
        """Close the sockets of other children: a second holder would keep their jobs reserved."""
        self._receiver.close()
        for pid in list(self._lent):
            if pid != keep:
                self.close(pid)
