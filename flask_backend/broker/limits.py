"""The tokens of limits: a worker takes one before it starts a limited task.

The tokens of a limit are jobs in a tube from which workers reserve. The registry is a job in another tube, which no
worker watches: it has the numbers of the limit and the ids of its tokens. A token that is not listed there does not
count. Only an elected process writes the registry, see :mod:`flask_backend.broker.election`, in three cases:

- The registry is missing: at first, and after the server has lost its jobs.
- The code of the process was loaded later than that of the last writer, and has other numbers.
- Tokens are missing, or reserved for longer than their TTR. The server misses the end of some TTRs while the connection
  of a vanished host stays open, so a worker that waits takes a census now and then.

New tokens are delayed until they are listed. If the process dies before that, the workers that reserve them delete them
as unlisted.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

from flask_backend.errors import BrokerError, MessageDecodeError
from flask_backend.limit import REGISTRY, Limit
from flask_backend.message import decode_json, encode_json
from flask_backend.names import limit_tube
from flask_backend.options import DEFAULT_PRIORITY, MAX_PRIORITY, PutOptions

from .election import ElectingConnection, election
from .stats import JobRecord

# How long the holder of a token may be silent. It touches the token three times as often.
TOKEN_TTR_S = 60
# A token that is reserved for so long after the end of its TTR has no holder any more.
EXPIRED_S = 10
# How long new tokens wait for the registry that lists them.
UNLISTED_S = 10
# The clocks of hosts may differ by this much. A registry from a later time has a wrong time.
CLOCKS_DIFFER_S = 3600


class LimitConnection(ElectingConnection, Protocol):
    """The commands that tokens need."""

    def put(self, queue: str, body: bytes, options: PutOptions) -> int: ...
    def kick_job(self, ids: Iterable[int]) -> list[int]: ...


@dataclass(frozen=True, slots=True)
class Registry:
    """The numbers of a limit, and the ids of its tokens.

    ``since`` is when the code with these numbers was loaded, in seconds since the epoch. ``number`` counts the
    versions of the registry from 1, ``id`` is its job's, and ``replaces`` that of the version before.
    """

    n: int
    per: int | None
    ids: tuple[int, ...]
    since: float
    number: int = 0
    replaces: int | None = None
    id: int = 0

    def is_outdated_by(self, limit: Limit) -> bool:
        """Whether a limit has other numbers, from code that was loaded later."""
        is_newer = limit.loaded_at > self.since or self.since > time.time() + CLOCKS_DIFFER_S
        return (self.n, self.per) != (limit.n, limit.per) and is_newer


def registry_tube(name: str) -> str:
    return limit_tube(name) + REGISTRY


def load(connection: LimitConnection, name: str) -> Registry | None:
    """Return the registry of a limit, if it has one."""
    found = connection.first_ready(registry_tube(name))
    return found and _read(*found)


def census(connection: LimitConnection, limit: Limit) -> Registry | None:
    """Return the registry, after a repair if it needs one; None if another process repairs it now.

    Raises :exc:`BrokerError` if the server does not take new tokens, and :exc:`BrokerConnectionError`.
    """
    tube = limit_tube(limit.name)
    current = load(connection, limit.name)
    if current and not current.is_outdated_by(limit):
        tokens = connection.stats_job(current.ids)
        if sum(_is_sound(token, tube, current.per) for token in tokens) == current.n:
            return current
    with election(connection, tube) as is_elected:
        return _repair(connection, limit, _load_or_drop(connection, limit.name)) if is_elected else None


def _is_sound(token: JobRecord, tube: str, per: int | None) -> bool:
    """Whether a token has a holder, or can be had now or within the time of the limit."""
    match token.state if token.queue == tube else "":  # ids restart at 1 after the server has lost its jobs
        case "reserved":
            return token.time_left_s >= -EXPIRED_S
        case "delayed":  # not for the longer time of an earlier release
            return token.time_left_s <= max(per or 0, UNLISTED_S)
        case state:
            return state == "ready"


def _load_or_drop(connection: LimitConnection, name: str) -> Registry | None:
    """Return the registry, after the deletion of what other programs have put in its place."""
    while (found := connection.first_ready(registry_tube(name))) is not None:
        if current := _read(*found):
            return current
        connection.delete_each([found[0]])
    return None


def _repair(connection: LimitConnection, limit: Limit, old: Registry | None) -> Registry:
    """Write the registry that the limit should have, with new tokens for the missing ones. For an elected process."""
    new = Registry(limit.n, limit.per, (), limit.loaded_at) if old is None or old.is_outdated_by(limit) else old
    n, per = new.n, new.per
    tube = limit_tube(limit.name)
    known = [token for token in connection.stats_job(old.ids) if token.queue == tube] if old else []
    sound = [token for token in known if _is_sound(token, tube, per)]
    # The ones in use first: a task that runs must count as long as it does.
    kept = [token.id for token in sorted(sound, key=lambda token: token.state != "reserved")[:n]]
    if old is new and len(kept) == n:
        return new
    if old and old.replaces is not None:  # its writer died before the deletion
        connection.delete_each([old.replaces])
    added = _put_tokens(connection, tube, n - len(kept))
    number, replaces = (old.number + 1, old.id) if old else (1, None)
    facts = {"n": n, "per": per, "ids": [*kept, *added], "since": new.since, "number": number, "replaces": replaces}
    written = connection.put_aside(registry_tube(limit.name), encode_json(facts), max(0, MAX_PRIORITY - number))
    first = load(connection, limit.name)
    if first is None or first.id != written:  # this process was stopped for long, and another one was elected
        connection.delete_each([written, *added])
        raise BrokerError(f"limit {limit.name}: another process has written its registry")
    if old:
        connection.delete_each([old.id])
    connection.delete_each(token.id for token in known if token.id not in kept)  # unless they are held
    connection.kick_job(added)
    return first


def _put_tokens(connection: LimitConnection, tube: str, count: int) -> list[int]:
    options = PutOptions(DEFAULT_PRIORITY, UNLISTED_S, TOKEN_TTR_S)
    return [connection.put(tube, b"", options) for _ in range(count)]


def _read(job_id: int, body: bytes) -> Registry | None:
    """Return the registry in a body, unless another program has written it."""
    try:
        value = decode_json(body)
    except MessageDecodeError:
        return None
    kept = cast("dict[str, Any]", value) if isinstance(value, dict) else {}
    ids = kept.get("ids")
    is_ours = (
        all(_is_count(kept.get(key)) for key in ("n", "number"))
        and all(kept.get(key) is None or _is_count(kept[key]) for key in ("per", "replaces"))
        and isinstance(ids, list)
        and all(map(_is_count, cast("Sequence[Any]", ids)))
        and isinstance(kept.get("since"), int | float)
    )
    if not is_ours:
        return None
    return Registry(
        kept["n"],
        kept.get("per"),
        tuple(kept["ids"]),
        kept["since"],
        kept["number"],
        kept.get("replaces"),
        job_id,
    )


def _is_count(value: object) -> bool:
    return type(value) is int and value > 0
