"""Batches: calls whose end starts a callback.

The state of a batch lies as jobs in a tube that no worker reserves from.

The tube of a batch holds, the first ready job first:

- the *open marker*, from before the first call is sent until all are sent;
- a *marker* for each call, put before that, and deleted when the call is finished;
- the *store*, which holds the callback;
- the *record*, delayed for ever, so that it is never in the way: whose marker is whose.

So if the store comes first, only the store is left. A process that sees this reserves the store, which only one can;
puts the callback, waits for the answer, and then deletes the store. Only then it settles its own job. A death before
that leaves the store, and the job, which starts the callback when it runs again; or a sweep does.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Protocol, Self, TypeGuard, cast

from flask_backend.errors import (
    BrokerConnectionError,
    BrokerError,
    JobNotFoundError,
    JobTooBigError,
    MessageDecodeError,
)
from flask_backend.message import add_header, decode, decode_json, encode_json
from flask_backend.names import batch_tube, is_queue_name
from flask_backend.options import MAX_PRIORITY, PutOptions
from flask_backend.system.loggers import get_logger

from .stats import JobRecord
from .wire import ReservedJob

logger = get_logger("flask_backend.batches")

When = Literal["done", "ended"]

# The header of a member.
HEADER = "batch"

OPEN_PRIORITY, MARKER_PRIORITY, STORE_PRIORITY = 0, 1, MAX_PRIORITY
# A finisher holds the store only while it puts the callback. After this long, in seconds, another one may have it.
_STORE_TTR_S = 60
# Records are never ready. The head of a chain is the first of the delayed jobs.
_HEAD_DELAY_S, _PART_DELAY_S = 800_000_000, 1_600_000_000
# Ids of jobs are less than this.
_MAX_ID = 2**63
# What a record takes beside its runs, and what a run takes, in bytes.
_RECORD_BYTES, _RUN_BYTES = 2000, 70
_MAX_RUNS = 1000

# Calls that are sent in one write, and the bytes of their bodies.
CHUNK_JOBS = 400
_CHUNK_BYTES = 1 << 20
# What the numbers of a member's header take at most: a job that fits only without is refused before anything is sent.
_LONGEST = 10**15

# A batch is sent within seconds. After this long, in seconds, its producer has died.
OPEN_LIMIT_S = 600
COMPLETE = "batch %s is complete: %s is scheduled on %s as job %d"
NOT_STARTED = "the callback of batch %s is not scheduled yet, a sweep will try again: %s"


class FinishingConnection(Protocol):
    """The commands that finish a member, and start the callback."""

    def find(self, job_id: int) -> tuple[JobRecord, bytes] | None: ...
    def first_ready(self, tube: str) -> tuple[int, bytes] | None: ...
    def first_delayed(self, tube: str) -> tuple[int, bytes] | None: ...
    def reserve_job(self, job_id: int) -> ReservedJob | None: ...
    def put(self, queue: str, body: bytes, options: PutOptions) -> int: ...
    def release(self, job_id: int, priority: int, delay_s: int) -> None: ...
    def delete_each(self, ids: Iterable[int]) -> list[int]: ...


class SentPuts(Protocol):
    """Jobs that were sent, and may still await their replies."""

    def collect(self, results: list[int | BrokerError], /) -> None:
        """Wait for the replies; append to ``results`` the id of each job, or the error if it was refused."""
        ...


class SendingConnection(FinishingConnection, Protocol):
    """The commands that send a batch."""

    def max_job_size(self) -> int: ...
    def put_all_aside(self, tube: str, bodies: Sequence[bytes], options: PutOptions) -> list[int]: ...
    def send_puts(self, queue: str, bodies: list[bytes], options: PutOptions) -> SentPuts: ...


class ReadingConnection(Protocol):
    """The commands that read a record."""

    def first_delayed(self, tube: str) -> tuple[int, bytes] | None: ...
    def peek(self, ids: Iterable[int]) -> dict[int, bytes]: ...


# -- what is kept --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Membership:
    """The header of a member: its batch, the ids of its marker and of the store, and when the callback starts."""

    batch: str
    marker: int
    store: int
    when: When

    @classmethod
    def of(cls, headers: Mapping[str, Any]) -> Self | None:
        """Return the membership that the headers of a message name, if they do."""
        fields = _as_dict(headers.get(HEADER))
        batch, marker, store = fields.get("id"), fields.get("marker"), fields.get("store")
        if isinstance(batch, str) and is_queue_name(batch_tube(batch)) and _is_id(marker) and _is_id(store):
            return cls(batch, marker, store, "ended" if fields.get("when") == "ended" else "done")
        return None

    @classmethod
    def of_body(cls, body: bytes) -> Self | None:
        if b'"batch"' not in body:
            return None
        try:
            return cls.of(decode(body).headers)
        except MessageDecodeError:
            return None

    @property
    def counts_burial(self) -> bool:
        return self.when == "ended"

    def header(self) -> dict[str, Any]:
        return {"id": self.batch, "marker": self.marker, "store": self.store, "when": self.when}


def _is_id(value: Any) -> TypeGuard[int]:
    return type(value) is int and 0 < value < _MAX_ID


def _as_dict(value: Any) -> dict[str, Any]:
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def batch_of(headers: Mapping[str, Any]) -> str | None:
    """Return the id of the batch whose member, or callback, has these headers."""
    found = _as_dict(headers.get(HEADER)).get("id")
    return found if isinstance(found, str) else None


@dataclass(frozen=True, slots=True)
class Facts:
    """The facts of a batch: the endpoint and the queue of the callback, and the members' queues and number."""

    when: str
    callback: str
    queue: str
    queues: list[str]
    members: int

    @classmethod
    def read(cls, body: bytes) -> Self | None:
        """Return the facts in the body of an open marker or a record."""
        fields = _as_dict(_read_json(body))
        facts = cls(*(fields.get(name) for name in cls.__slots__))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        texts, queues = (facts.when, facts.callback, facts.queue), facts.queues
        has_queues = isinstance(queues, list) and all(isinstance(each, str) and is_queue_name(each) for each in queues)  # pyright: ignore[reportUnnecessaryIsInstance]
        has_members = type(facts.members) is int and 0 <= facts.members < _MAX_ID
        return facts if has_queues and all(map(_is_text, texts)) and has_members else None


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


@dataclass(slots=True)
class MemberIds:
    """The ids of members by those of their markers, as runs in which both grow by one."""

    runs: list[list[int]] = field(default_factory=list[list[int]])

    def add(self, marker: int, member: int) -> None:
        if self.runs:
            first_marker, first_member, length = self.runs[-1]
            if (marker, member) == (first_marker + length, first_member + length):
                self.runs[-1][2] += 1
                return
        self.runs.append([marker, member, 1])

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """Yield the id of each marker, and of its member."""
        for marker, member, length in self.runs:
            yield from zip(range(marker, marker + length), range(member, member + length), strict=True)

    def __len__(self) -> int:
        return sum(length for _, _, length in self.runs)

    def find(self, marker: int) -> int | None:
        for first_marker, first_member, length in self.runs:
            if 0 <= marker - first_marker < length:
                return first_member + marker - first_marker
        return None


@dataclass(frozen=True, slots=True)
class Store:
    """The callback as it is kept; ``body`` is the text of its job."""

    queue: str
    endpoint: str
    body: str
    priority: int
    delay: int
    ttr: int

    @classmethod
    def read(cls, body: bytes) -> Self | None:
        fields = _as_dict(_read_json(body))
        if fields.keys() != set(cls.__slots__):
            return None
        store = cls(**fields)
        texts, numbers = (store.queue, store.endpoint, store.body), (store.priority, store.delay, store.ttr)
        is_ours = all(map(_is_text, texts)) and all(type(each) is int for each in numbers)
        return store if is_ours and is_queue_name(store.queue) else None

    @property
    def options(self) -> PutOptions:
        return PutOptions(self.priority, self.delay, self.ttr)


def _read_json(body: bytes) -> Any:
    try:
        return decode_json(body) if body else None
    except MessageDecodeError:
        return None


# -- sending -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A call that is to be put on ``queue``; ``body`` is without the header of its batch."""

    queue: str
    endpoint: str
    body: bytes
    options: PutOptions


@dataclass(slots=True)
class Sent:
    """The outcome of each member, by its index. A member without one was not sent."""

    ids: dict[int, int] = field(default_factory=dict[int, int])
    refused: dict[int, BrokerError] = field(default_factory=dict[int, BrokerError])
    unknown: set[int] = field(default_factory=set[int])
    failure: BrokerError | None = None


def send(
    connection: SendingConnection, batch: str, when: When, members: Sequence[Outgoing], callback: Outgoing
) -> Sent:
    """Send a batch. Raises :exc:`BrokerError` if nothing was sent, :exc:`JobTooBigError` too.

    If it was sent only in part, the callback starts once the calls that were sent are finished: at once, or, if the
    connection broke, after a sweep has closed the batch.
    """
    tube = batch_tube(batch)
    body = add_header(callback.body, HEADER, {"id": batch})
    sent = Sent()
    if not members:
        connection.put(callback.queue, body, callback.options)
        return sent
    facts = Facts(when, callback.endpoint, callback.queue, sorted({each.queue for each in members}), len(members))
    options = callback.options
    store = Store(callback.queue, callback.endpoint, body.decode(), options.priority, options.delay_s, options.ttr_s)
    stored = encode_json(asdict(store))
    _check_members(limit := connection.max_job_size(), batch, when, members)
    if len(stored) > limit:
        raise _too_big(f"its callback, {callback.endpoint}, is kept as JSON in JSON, which has", len(stored), limit)
    [opened] = connection.put_all_aside(tube, [encode_json(asdict(facts))], PutOptions(OPEN_PRIORITY, 0, 1))
    try:
        [store_id] = connection.put_all_aside(tube, [stored], PutOptions(STORE_PRIORITY, 0, _STORE_TTR_S))
    except BrokerConnectionError:
        raise
    except BrokerError:
        connection.delete_each([opened])
        raise
    ids = MemberIds()
    try:
        _send_members(connection, Membership(batch, 0, store_id, when), members, ids, sent)
    except BrokerConnectionError as error:
        sent.failure = error
        return sent
    except BrokerError as error:
        sent.failure = error
    try:
        if not sent.ids and sent.failure is not None:
            _withdraw(connection, tube, opened, store_id)
            raise sent.failure
        close(connection, batch, opened, facts, ids)
    except BrokerConnectionError as error:
        sent.failure = error
    return sent


def _check_members(limit: int, batch: str, when: When, members: Sequence[Outgoing]) -> None:
    header = Membership(batch, _LONGEST, _LONGEST, when).header()
    added = len(encode_json({"headers": {HEADER: header}}))  # at most: most bodies need not be read
    for member in members:
        if len(member.body) + added > limit and len(body := add_header(member.body, HEADER, header)) > limit:
            raise _too_big(f"a call of {member.endpoint} has", len(body), limit)


def _too_big(what: str, size: int, limit: int) -> JobTooBigError:
    return JobTooBigError(
        f"nothing of the batch was sent: {what} {size} bytes, but Beanstalkd takes at most {limit} (its option -z); "
        "pass a reference to the data, for example a row's id"
    )


def _send_members(
    connection: SendingConnection, membership: Membership, members: Sequence[Outgoing], ids: MemberIds, sent: Sent
) -> None:
    tube = batch_tube(membership.batch)
    for queue, options, indexes in _chunks(members):
        markers = connection.put_all_aside(tube, [b""] * len(indexes), PutOptions(MARKER_PRIORITY, 0, 1))
        bodies = [
            add_header(
                members[index].body,
                HEADER,
                Membership(membership.batch, marker, membership.store, membership.when).header(),
            )
            for index, marker in zip(indexes, markers, strict=True)
        ]
        sent.unknown.update(indexes)
        results: list[int | BrokerError] = []
        try:
            connection.send_puts(queue, bodies, options).collect(results)
        finally:
            for index, marker, result in zip(indexes, markers, results, strict=False):
                sent.unknown.discard(index)
                if isinstance(result, int):
                    sent.ids[index] = result
                    ids.add(marker, result)
                else:
                    sent.refused[index] = result
        refused = [marker for index, marker in zip(indexes, markers, strict=True) if index in sent.refused]
        if refused:
            connection.delete_each(refused)
            raise sent.refused[indexes[markers.index(refused[0])]]


def _chunks(members: Sequence[Outgoing]) -> Iterator[tuple[str, PutOptions, list[int]]]:
    """Yield the indexes of members that are sent together: of one queue, and with equal options."""
    groups: dict[tuple[str, PutOptions], list[int]] = {}
    for index, member in enumerate(members):
        groups.setdefault((member.queue, member.options), []).append(index)
    for (queue, options), indexes in groups.items():
        chunk: list[int] = []
        size = 0
        for index in indexes:
            chunk.append(index)
            size += len(members[index].body)
            if len(chunk) == CHUNK_JOBS or size >= _CHUNK_BYTES:
                yield queue, options, chunk
                chunk, size = [], 0
        if chunk:
            yield queue, options, chunk


def _withdraw(connection: FinishingConnection, tube: str, opened: int, store: int) -> None:
    """Delete an empty batch: first what could start the callback."""
    connection.delete_each([store])
    connection.delete_each([opened])
    drop_records(connection, tube)


def close(connection: SendingConnection, batch: str, opened: int, facts: Facts, ids: MemberIds) -> None:
    """Let the callback start when all members are finished, which may be the case already."""
    try:
        _put_record(connection, batch_tube(batch), facts, ids)
    except BrokerConnectionError:
        raise
    except BrokerError as error:  # without it a sweep cannot see which calls other tools have deleted
        logger.warning("batch %s has no record: %s", batch, error)
    if not connection.delete_each([opened]):
        logger.warning("sending batch %s took longer than %d s: its callback may start early", batch, OPEN_LIMIT_S)
    start_if_complete(connection, batch)


def _put_record(connection: SendingConnection, tube: str, facts: Facts, ids: MemberIds) -> None:
    size = max(1, min(_MAX_RUNS, (connection.max_job_size() - _RECORD_BYTES) // _RUN_BYTES))
    more: int | None = None
    for start in [*range(0, len(ids.runs), size)][::-1] or [0]:
        body = encode_json({**asdict(facts), "ids": ids.runs[start : start + size], "more": more})
        delay_s = _PART_DELAY_S if start else _HEAD_DELAY_S
        [more] = connection.put_all_aside(tube, [body], PutOptions(STORE_PRIORITY, delay_s, 1))


# -- finishing -----------------------------------------------------------------------------------------------------


def finish(connection: FinishingConnection, member: Membership) -> None:
    """Count a member as finished, once; if it was the last one, start the callback. Call it before it is settled.

    Raises :exc:`BrokerConnectionError`. Another error of the server is logged: then a sweep starts the callback.
    """
    # Ids may restart at 1 with the server, and any producer may have written the header: look before the deletion.
    found = connection.find(member.marker)
    if found is not None and found[0].queue == batch_tube(member.batch):
        connection.delete_each([member.marker])
    start_if_complete(connection, member.batch)


def finish_each(connection: FinishingConnection, bodies: Iterable[bytes]) -> None:
    """Count the jobs with these bodies, which a person has deleted, as finished."""
    for body in bodies:
        if (member := Membership.of_body(body)) is not None:
            finish(connection, member)


def release_store(connection: FinishingConnection, member: Membership) -> None:
    """Give back the store that the dead owner of this connection may have held."""
    with suppress(JobNotFoundError):
        connection.release(member.store, STORE_PRIORITY, 0)


def start_if_complete(connection: FinishingConnection, batch: str) -> None:
    """Start the callback if only the store is left of the batch. Raises :exc:`BrokerConnectionError`."""
    tube = batch_tube(batch)
    found = connection.first_ready(tube)
    store = found and Store.read(found[1])
    if not found or not store or connection.reserve_job(found[0]) is None:
        return
    try:
        job_id = connection.put(store.queue, store.body.encode(), store.options)
    except BrokerConnectionError:
        raise
    except BrokerError as error:
        logger.warning(NOT_STARTED, batch, error)
        connection.release(found[0], STORE_PRIORITY, 0)
        return
    connection.delete_each([found[0]])
    drop_records(connection, tube)
    logger.info(COMPLETE, batch, store.endpoint, store.queue, job_id)


def drop_records(connection: FinishingConnection, tube: str) -> None:
    while (found := connection.first_delayed(tube)) is not None and connection.delete_each([found[0]]):
        pass


# -- reading -------------------------------------------------------------------------------------------------------


def read_record(connection: ReadingConnection, tube: str) -> tuple[Facts, MemberIds] | None:
    """Return the facts of a batch that was sent, and the ids of its members, unless there is no record."""
    found = connection.first_delayed(tube)
    facts = found and Facts.read(found[1])
    return (facts, read_ids(connection, found[1])) if found and facts else None


def read_ids(connection: ReadingConnection, body: bytes) -> MemberIds:
    """Return the ids of the members of a batch from the body of the head of its records."""
    runs: list[list[int]] = []
    seen: set[int] = set()
    while fields := _as_dict(_read_json(body)):
        found = fields.get("ids")
        runs += filter(_is_run, cast("Sequence[Any]", found) if isinstance(found, list) else ())
        more = fields.get("more")
        if not _is_id(more) or more in seen:  # a forged record may lead back to itself
            break
        seen.add(more)
        body = connection.peek([more]).get(more, b"")
    return MemberIds(runs)


def _is_run(value: Any) -> TypeGuard[list[int]]:
    """Whether it is a run of ids: any program may put a record."""
    if not isinstance(value, list) or len(cast("Sequence[Any]", value)) != 3:  # noqa: PLR2004  # marker, member, length
        return False
    return all(_is_id(each) for each in cast("Sequence[Any]", value))
