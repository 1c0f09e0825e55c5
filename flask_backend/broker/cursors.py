"""Cursors: how far a long task has come. They outlive its worker, as jobs in a tube that no worker reserves from.

The newest cursor comes first by its priority. A new one is put, and its put answered, before the old one is deleted: a
death in between leaves both, and the newer one counts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol, cast

from flask_backend.errors import MessageDecodeError, MessageEncodeError
from flask_backend.message import decode, decode_json, encode_json, has_uid, show_value
from flask_backend.names import cursor_tube, is_cursor_tube, is_queue_name
from flask_backend.options import MAX_PRIORITY

from .stats import JobRecord

# Beanstalkd keeps cursors in memory: large ones belong into the app's database, and their keys into the cursor.
MAX_CURSOR_BYTES = 8 * 1024
# The tubes that one sweep looks at: a lookup takes the server about as long as a put.
MAX_SWEPT = 1000


class CursorConnection(Protocol):
    """The commands that cursors need."""

    def put_aside(self, tube: str, body: bytes, priority: int) -> int: ...
    def first_ready(self, tube: str) -> tuple[int, bytes] | None: ...
    def delete_each(self, ids: Iterable[int]) -> list[int]: ...


class SweepingConnection(CursorConnection, Protocol):
    """The commands that a sweep needs."""

    def list_tubes(self) -> list[str]: ...
    def find(self, job_id: int) -> tuple[JobRecord, bytes] | None: ...


@dataclass(frozen=True, slots=True)
class Owner:
    """The job whose cursor it is. Without a ``uid`` of its own, a job is known by the id that the server gave it."""

    job: int
    queue: str
    uid: str | None

    @classmethod
    def of(cls, job: int, queue: str, body: bytes) -> Owner:
        try:
            return cls.with_headers(job, queue, decode(body).headers)
        except MessageDecodeError:
            return cls(job, queue, None)

    @classmethod
    def with_headers(cls, job: int, queue: str, headers: Mapping[str, Any]) -> Owner:
        uid = headers.get("id")
        return cls(job, queue, uid if isinstance(uid, str) and uid else None)

    @property
    def tube(self) -> str:
        name = self.uid or f"{self.queue}:{self.job}"
        # Any producer may have chosen the id, and a tube takes only some characters.
        is_plain = self.uid is not None and is_queue_name(cursor_tube(self.uid))
        return cursor_tube(name if is_plain else hashlib.sha256(name.encode(errors="surrogatepass")).hexdigest())


@dataclass(frozen=True, slots=True)
class Cursor:
    """A cursor as it is kept: the ``number`` of the save, from 1, and the id of its own job."""

    value: Any
    number: int
    id: int


def encode(value: Any) -> bytes:
    """Return a cursor as JSON; raise :exc:`MessageEncodeError` if that is impossible, or too long."""
    try:
        body = encode_json(value)
    except MessageEncodeError as error:
        raise MessageEncodeError(
            f"the cursor {show_value(value)} cannot be kept: JSON cannot carry it ({error})"
        ) from error
    if len(body) > MAX_CURSOR_BYTES:
        raise MessageEncodeError(
            f"the cursor {show_value(value)} cannot be kept: as JSON it has {len(body)} bytes, and at most "
            f"{MAX_CURSOR_BYTES} are allowed; pass a key, for example a row's id"
        )
    return body


def load(connection: CursorConnection, owner: Owner) -> Cursor | None:
    """Return the newest cursor of a job, if one is kept."""
    found = connection.first_ready(owner.tube)
    kept = found and _read(found[1])
    # Without a uid, the tube may be that of an earlier job with the same id.
    if not found or not kept or (owner.uid is None and (kept["job"], kept["queue"]) != (owner.job, owner.queue)):
        return None
    return Cursor(kept["cursor"], kept["number"], found[0])


def save(connection: CursorConnection, owner: Owner, value: Any, old: Cursor | None) -> Cursor:
    """Keep a cursor in place of the ``old`` one; raise :exc:`BrokerError` if the server does not take it."""
    number = (old.number if old else 0) + 1
    body = encode_json({**asdict(owner), "number": number, "cursor": value})
    cursor = Cursor(value, number, connection.put_aside(owner.tube, body, max(0, MAX_PRIORITY - number)))
    if old is not None:
        connection.delete_each([old.id])
    return cursor


def drop(connection: CursorConnection, tube: str) -> None:
    """Delete all cursors in a tube."""
    while (found := connection.first_ready(tube)) is not None and connection.delete_each([found[0]]):
        pass


def sweep(connection: SweepingConnection) -> None:
    """Delete the cursors whose jobs are gone: deleted by other tools, or finished as the connection broke."""
    for tube in [tube for tube in connection.list_tubes() if is_cursor_tube(tube)][:MAX_SWEPT]:
        found = connection.first_ready(tube)
        kept = found and _read(found[1])
        if kept:
            job = connection.find(kept["job"])
            if (
                job is None
                or job[0].queue != kept["queue"]
                or not (kept["uid"] is None or has_uid(job[1], kept["uid"]))
            ):
                drop(connection, tube)


def _read(body: bytes) -> dict[str, Any] | None:
    """Return the fields of a cursor's body, unless another program has written it."""
    try:
        value = decode_json(body)
    except MessageDecodeError:
        return None
    kept = cast("dict[str, Any]", value) if isinstance(value, dict) else {}
    is_ours = (
        kept.keys() == {"job", "queue", "uid", "number", "cursor"}
        and all(type(kept[key]) is int and kept[key] > 0 for key in ("job", "number"))
        and isinstance(kept["queue"], str)
        and isinstance(kept["uid"], str | None)
    )
    return kept if is_ours else None
