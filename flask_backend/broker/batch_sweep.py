"""The sweep of batches: it finishes batches that would never end by themselves.

Their members were deleted by other tools, their producer died while it sent them, or the one that was to start the
callback died. Any worker sweeps, now and then, and a lock on the broker elects one.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Iterable
from typing import Protocol

from flask_backend.names import batch_of_tube, batch_tube, is_batch_tube
from flask_backend.system.loggers import get_logger

from .batches import (
    MARKER_PRIORITY,
    OPEN_LIMIT_S,
    STORE_PRIORITY,
    Facts,
    MemberIds,
    Membership,
    ReadingConnection,
    SendingConnection,
    Store,
    close,
    drop_records,
    read_record,
    start_if_complete,
)
from .election import ElectingConnection, election
from .stats import JobRecord, Queue

logger = get_logger("flask_backend.batches")

MAX_SWEPT = 1000  # batches
# Ids behind the last known job of a batch that are searched for calls of a producer that died.
_SEARCHED_IDS = 100_000
_LOOKED_UP = 500
_SWEEP = "flask-backend.batch/sweep"
_PROBE_TUBE = "flask-backend.probe"

CLOSED = (
    "the producer of batch %s did not end sending its %d calls: %s is scheduled once those that were sent are "
    "finished; %d are not"
)
VANISHED = "%d calls of batch %s are gone without having finished, and count as done"


class SweepingConnection(SendingConnection, ElectingConnection, ReadingConnection, Protocol):
    """The commands that a sweep needs."""

    def list_tubes(self) -> list[str]: ...
    def find_jobs(self, ids: Iterable[int], queues: Collection[str], states: Collection[str]) -> list[JobRecord]: ...
    def stats_tube(self, names: Iterable[str]) -> list[Queue]: ...
    def probe_last_id(self, tube: str) -> int: ...


def sweep(connection: SweepingConnection) -> None:
    """Finish what others have left: members that other tools have deleted, and batches whose producer has died.

    Raises :exc:`BrokerError`.
    """
    tubes = [tube for tube in connection.list_tubes() if is_batch_tube(tube)]
    if not tubes:
        return
    with election(connection, _SWEEP) as is_elected:
        if is_elected:
            for tube in random.sample(tubes, min(len(tubes), MAX_SWEPT)):
                _sweep(connection, tube)


def _sweep(connection: SweepingConnection, tube: str) -> None:
    batch = batch_of_tube(tube)
    first = connection.first_ready(tube)
    if first is None:
        _sweep_records(connection, tube)
        return
    job_id, body = first
    if Store.read(body) is not None:
        start_if_complete(connection, batch)
    elif (facts := Facts.read(body)) is not None:
        _sweep_open(connection, batch, job_id, facts)
    elif (record := read_record(connection, tube)) is not None:
        _sweep_markers(connection, batch, job_id, *record)


def _sweep_records(connection: SweepingConnection, tube: str) -> None:
    """Delete the record of a batch whose callback has started: the finisher died before it did that."""
    record = connection.first_delayed(tube)
    # Who starts the callback holds the store, and may give it back.
    if record is not None and not any(queue.ready or queue.reserved for queue in connection.stats_tube([tube])):
        drop_records(connection, tube)


def _sweep_markers(connection: SweepingConnection, batch: str, marker: int, facts: Facts, ids: MemberIds) -> None:
    """Delete the markers of members that are gone, if that of the first one is."""
    if _is_unfinished(connection, batch, marker, ids.find(marker), facts):
        return
    gone: list[int] = []
    pairs = list(ids)
    for start in range(0, len(pairs), _LOOKED_UP):
        part = pairs[start : start + _LOOKED_UP]
        states = ["ready", "reserved", "delayed"] + (["buried"] if facts.when != "ended" else [])
        there = {job.id for job in connection.find_jobs([member for _, member in part], facts.queues, states)}
        gone += connection.delete_each(marker for marker, member in part if member not in there)
    if ids.find(marker) is None:  # of a call whose fate the producer did not learn
        gone += connection.delete_each([marker])
    logger.warning(VANISHED, len(gone), batch)
    start_if_complete(connection, batch)


def _is_unfinished(connection: SweepingConnection, batch: str, marker: int, member: int | None, facts: Facts) -> bool:
    found = None if member is None else connection.find(member)
    if found is None or (found[0].state == "buried" and facts.when == "ended"):
        return False
    membership = Membership.of_body(found[1])
    return membership is not None and (membership.batch, membership.marker) == (batch, marker)


def _sweep_open(connection: SweepingConnection, batch: str, opened: int, facts: Facts) -> None:
    """Close a batch whose producer has died, as it would have done."""
    found = connection.find(opened)
    if found is None or found[0].age_s < OPEN_LIMIT_S:
        return
    has_store, markers, members = _search(connection, batch, opened, facts)
    if not has_store:  # nothing was sent
        connection.delete_each([opened])
        return
    ids = MemberIds()
    for marker in sorted(markers & members.keys()):
        ids.add(marker, members[marker])
    logger.warning(CLOSED, batch, facts.members, facts.callback, len(ids))
    connection.delete_each(sorted(markers - members.keys()))
    close(connection, batch, opened, facts, ids)


def _search(
    connection: SweepingConnection, batch: str, opened: int, facts: Facts
) -> tuple[bool, set[int], dict[int, int]]:
    """Return whether a batch has a store, its markers, and its members by the ids of their markers.

    All were put after the open marker.

    A producer sends the calls of markers as soon as it knows their ids. So the search ends far behind the last job that
    belongs to the batch.
    """
    tube, states, has_store = batch_tube(batch), ["ready", "reserved", "delayed", "buried"], False
    markers: set[int] = set()
    members: dict[int, int] = {}
    newest, last_known, start = connection.probe_last_id(_PROBE_TUBE), opened, opened + 1
    while start <= min(newest, last_known + _SEARCHED_IDS):
        ids = range(start, min(start + _LOOKED_UP, newest + 1))
        jobs = connection.find_jobs(ids, [tube, *facts.queues], states)
        here = [job.id for job in jobs if job.queue == tube and job.priority == MARKER_PRIORITY]
        markers.update(here)
        has_store |= any(job.queue == tube and job.priority == STORE_PRIORITY for job in jobs)
        bodies = connection.peek(job.id for job in jobs if job.queue != tube)
        found = {job_id: each for job_id, body in bodies.items() if (each := Membership.of_body(body)) is not None}
        ours = {each.marker: job_id for job_id, each in found.items() if each.batch == batch}
        members.update(ours)
        last_known = max([last_known, *here, *ours.values()])
        start += _LOOKED_UP
    return has_store, markers, members
