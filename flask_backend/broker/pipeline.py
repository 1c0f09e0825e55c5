"""Pipelined use of a connection by a worker: it sends the next command without waiting for the last reply.

It sends with :meth:`Pipeline.reserve` and :meth:`Pipeline.delete_and_reserve`, then calls :meth:`Connection.receive`
whenever the socket is readable, until no reply is awaited. Every other command of the connection first waits for all
these replies, so do not call one while a reserve is in flight.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

from .connection import Connection
from .wire import Deletions, Reservations, ReservedJob


class Pipeline:
    """The reserves and deletes that are in flight on a connection, and their results."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self._wire = connection.wire
        self._deletions = Deletions()
        self._reservations = Reservations()

    @property
    def is_reserving(self) -> bool:
        """Whether a reply to a reserve is still awaited."""
        return self._reservations.pending > 0

    @property
    def pending_deletes(self) -> Sequence[ReservedJob]:
        """The jobs that the server may or may not have deleted: the replies have not arrived."""
        return self._deletions.pending

    def pop_pending_deletes(self) -> list[ReservedJob]:
        """Return the pending deletes and forget them. Call it after the connection is closed."""
        jobs = list(self._deletions.pending)
        self._deletions.pending.clear()
        return jobs

    def delete_later(self, job: ReservedJob) -> None:
        """Let a job whose deletion could not be sent count as a pending delete: the connection is broken."""
        self._deletions.pending.append(job)

    def reserve(self, wait_s: int, count: int = 1) -> None:
        """Ask for ``count`` jobs: the first within ``wait_s`` seconds, the others only if they are ready by then.

        The wait is finite, so that a waiter whose host vanished does not receive jobs for long.
        """
        self.connection.guard(lambda: self._wire.send(_reserves(wait_s, count), *self._expect_jobs(count)))

    def delete_and_reserve(self, job: ReservedJob, wait_s: int = 0, count: int = 0, *, with_next: bool = False) -> None:
        """Delete a job, and ask for ``count`` jobs as :meth:`reserve` does, all in one write.

        ``with_next`` leaves a deletion without a reserve to the system, which sends it with the next command, after
        about 200 ms, or when this process dies, whichever is first.
        """
        try:
            self._deletions.pending.append(job)
            if count == 0 and with_next:
                self._wire.send_with_next(b"delete %d\r\n" % job.id, self._deletions)
            elif count == 0:
                self._wire.send(b"delete %d\r\n" % job.id, self._deletions)
            else:
                commands = b"delete %d\r\n%b" % (job.id, _reserves(wait_s, count))
                self._wire.send(commands, self._deletions, *self._expect_jobs(count))
        except BaseException as error:  # raised again, once the connection is closed if need be
            self.connection.fail(error)

    def take_jobs(self) -> list[ReservedJob]:
        """Return the jobs that have arrived since the last call."""
        jobs, self._reservations.jobs = self._reservations.jobs, []
        return jobs

    def pop_expired(self) -> list[ReservedJob]:
        """Return the jobs, since the last call, whose reservation had expired when they were deleted."""
        late = self._deletions.late
        if late:
            self._deletions.late = []
        return late

    def give_back(self) -> None:
        """Wait until all finished jobs are deleted, then close, which gives back all jobs that are held or in flight.

        The server puts such jobs back where they were without counting: a ``release`` would count as an attempt.
        """
        try:
            while self._deletions.pending:
                self.connection.guard(self._wire.receive_next)
        finally:
            self.connection.close()

    def _expect_jobs(self, count: int) -> list[Reservations]:
        self._reservations.pending += count
        return [self._reservations] * count


@functools.cache
def _reserves(wait_s: int, count: int) -> bytes:
    return b"reserve-with-timeout %d\r\n" % wait_s + b"reserve-with-timeout 0\r\n" * (count - 1)
