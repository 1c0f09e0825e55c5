"""An election among processes on any host: one of them acts, the others leave it alone.

Beanstalkd has no command that puts a job only if a tube is empty. So each candidate puts a job into a tube from which
nobody reserves, and looks which job comes first there: with equal priorities, that is the one with the lowest id.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable
from contextlib import contextmanager, suppress
from typing import Protocol

from flask_backend.errors import BrokerConnectionError
from flask_backend.names import lock_tube

from .stats import JobRecord

# The lock of a candidate that died stays: after this long, in seconds, another one deletes it.
MAX_LOCK_AGE_S = 60


class ElectingConnection(Protocol):
    """The commands that an election needs."""

    def put_aside(self, tube: str, body: bytes, priority: int) -> int: ...
    def first_ready(self, tube: str) -> tuple[int, bytes] | None: ...
    def stats_job(self, ids: Iterable[int]) -> list[JobRecord]: ...
    def delete_each(self, ids: Iterable[int]) -> list[int]: ...


@contextmanager
def election(connection: ElectingConnection, name: str) -> Generator[bool, None, None]:
    """Yield whether this process was elected to act on ``name``, until the end of the block.

    Two are never elected at the same time, unless one takes longer than ``MAX_LOCK_AGE_S``. One may be elected just
    after another has acted, so whoever is elected must look whether there is still something to do.

    Raises :exc:`BrokerError` if the server takes no lock, or :exc:`BrokerConnectionError`.
    """
    tube = lock_tube(name)
    mine = connection.put_aside(tube, b"", 0)
    try:
        yield _is_first(connection, tube, mine)
    finally:
        with suppress(BrokerConnectionError):  # then the lock ends by its age
            connection.delete_each([mine])


def _is_first(connection: ElectingConnection, tube: str, mine: int) -> bool:
    while (first := connection.first_ready(tube)) is not None and first[0] != mine:
        found = connection.stats_job([first[0]])
        if not found:  # just deleted: the next one in the tube is elected
            continue
        if found[0].age_s <= MAX_LOCK_AGE_S:
            return False
        connection.delete_each([first[0]])
    return first is not None
