"""The token on the broker: how it is found, and replaced without being lost or doubled.

The order of the writes is what counts. The calls are put, and answered; then the new token, and answered; then the old
one is deleted. A death in between leaves two tokens at most, of which the one with the higher number counts, or the old
one alone: then the same slots are scheduled again, with the same ids.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum, auto
from typing import Protocol

from flask_backend.broker.stats import JobRecord, Queue
from flask_backend.broker.wire import ReservedJob
from flask_backend.errors import BrokerError, MessageDecodeError
from flask_backend.message import cut, has_uid
from flask_backend.names import schedule_tube
from flask_backend.options import MAX_PRIORITY, PutOptions
from flask_backend.system.loggers import get_logger

from . import wording
from .due import look_at
from .token import Entry, Token

logger = get_logger("flask_backend.periodic")

# How long the server waits for a holder whose host has vanished. A tick takes milliseconds, and a scheduler whose tick
# takes longer than TICK_S is killed.
TTR_S = 30
TICK_S = 20
# The room that the counters of a token need to grow.
_SPARE_BYTES = 1024
# The tokens that are compared before a holder waits: there is one, and after a death two.
_MOST_TOKENS = 20
_SHOWN_BODY = 200


class KeepingConnection(Protocol):
    """The commands that the token needs."""

    def put(self, queue: str, body: bytes, options: PutOptions) -> int: ...
    def firsts(self, tube: str) -> list[ReservedJob]: ...
    def find(self, job_id: int) -> tuple[JobRecord, bytes] | None: ...
    def stats_job(self, ids: Iterable[int]) -> list[JobRecord]: ...
    def stats_tube(self, names: Iterable[str]) -> list[Queue]: ...
    def delete_each(self, ids: Iterable[int]) -> list[int]: ...
    def release(self, job_id: int, priority: int, delay_s: int) -> None: ...
    def max_job_size(self) -> int: ...


class Standing(Enum):
    """What a token is worth that this connection holds."""

    ONLY = auto()  # the only one
    STALE = auto()  # it was deleted: another one is newer
    UNCLEAR = auto()  # another connection holds one too


def read(job: ReservedJob) -> Token | None:
    """Read a token; an ERROR line tells of a job that is none."""
    try:
        return Token.decode(job.body)
    except MessageDecodeError as error:
        shown = cut(job.body.decode(errors="backslashreplace"), _SHOWN_BODY)
        logger.error(wording.UNREADABLE, job.id, error, shown)
        return None


def find_newest(connection: KeepingConnection, queue: str) -> tuple[ReservedJob, Token] | None:
    """Return the newest token of a queue that no connection holds, without reserving it."""
    found = [(job, token) for job in connection.firsts(schedule_tube(queue)) if (token := read(job)) is not None]
    return max(found, key=_rank, default=None)


def check_standing(connection: KeepingConnection, queue: str, held: ReservedJob, token: Token) -> Standing:
    """Compare a held token with the others in its tube, and delete all but the newest one."""
    tube = schedule_tube(queue)
    for _ in range(_MOST_TOKENS):
        [counts] = connection.stats_tube([tube])
        others = connection.firsts(tube)
        if not others:
            return Standing.ONLY if counts.jobs == 1 else Standing.UNCLEAR
        for other in others:
            theirs = read(other)
            if theirs is not None and _rank((other, theirs)) > _rank((held, token)):
                connection.delete_each([held.id])
                return Standing.STALE
            connection.delete_each([other.id])
    return Standing.UNCLEAR


def replace_token(connection: KeepingConnection, held: ReservedJob, token: Token, now: float) -> None:
    """Put the token that replaces a held one, and delete that once the server has the new one."""
    put_token(connection, token, now)
    connection.delete_each([held.id])


def put_token(connection: KeepingConnection, token: Token, now: float) -> int:
    """Put a token, to be looked at when its next slot is due; return its id.

    The delay is rounded down: a scheduler waits for the rest of a second itself.
    """
    delay_s = max(0, int(look_at(token, now) - now))
    options = PutOptions(priority=_priority(token, now), delay_s=delay_s, ttr_s=TTR_S)
    return connection.put(schedule_tube(token.queue), token.encode(), options)


def release_token(connection: KeepingConnection, job_id: int, token: Token, now: float, delay_s: int = 0) -> None:
    """Release a held token as it is."""
    connection.release(job_id, _priority(token, now), delay_s)


def _priority(token: Token, now: float) -> int:
    """Return the second in which the token is to be looked at.

    So a scheduler of several queues reserves the one that is due first, and waits for none while another one is due.
    """
    return min(MAX_PRIORITY, int(look_at(token, now)))


def check_size(connection: KeepingConnection, token: Token) -> None:
    """Raise :exc:`BrokerError` if the server would not take this token, or soon not any more."""
    size, limit = len(token.encode()), connection.max_job_size()
    if size + _SPARE_BYTES > limit:
        raise BrokerError(
            f"the periodic tasks of {token.queue} take {size} bytes, and the server takes {limit} in one job: shorten "
            "their arguments, or move some to another queue"
        )


def is_unfinished(connection: KeepingConnection, entry: Entry) -> bool:
    """Whether the last call of a periodic task is still to be run, runs, or will be retried. Buried is finished."""
    if entry.job is None or entry.uid is None or (found := connection.find(entry.job)) is None:
        return False
    record, body = found
    is_same = record.queue == entry.definition.queue and has_uid(body, entry.uid)
    return is_same and record.state != "buried"


def _rank(found: tuple[ReservedJob, Token]) -> tuple[int, int]:
    return found[1].number, -found[0].id
