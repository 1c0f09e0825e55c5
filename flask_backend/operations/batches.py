"""Batches for people: how far each one is. Read without writing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

from flask_backend.broker.batches import Facts, read_ids
from flask_backend.broker.connection import Connection
from flask_backend.names import batch_of_tube, is_batch_tube

# Calls whose states are looked up, to count the buried ones: 50 ms of the server's time, for all batches together.
MAX_COUNTED = 2000


@dataclass(frozen=True, slots=True)
class BatchProgress:
    """A batch that has not started its callback yet.

    ``callback`` is its endpoint, and ``queue`` its queue. The callback starts when ``done`` of the ``members`` calls
    are all of them; ``when`` is ``"done"``, or ``"ended"`` if a buried call counts as well. ``buried`` of the calls are
    buried now; None if they were not counted, because there are too many. ``is_open`` while it is being sent, or since
    its producer died: until then some of the ``members`` may not be sent yet.
    """

    id: str
    callback: str
    queue: str
    when: str
    members: int
    done: int
    buried: int | None
    age_s: int
    is_open: bool


@dataclass(frozen=True, slots=True)
class Batches:
    """The batches that were read, the oldest first, and how many there are."""

    found: Sequence[BatchProgress]
    count: int


def look(connection: Connection, limit: int | None) -> Batches:
    """Return the unfinished batches. A batch that ends meanwhile is left out."""
    tubes = [tube for tube in connection.list_tubes() if is_batch_tube(tube)]
    left = {queue.name: queue.ready + queue.reserved for queue in connection.stats_tube(tubes)}
    # The open marker has the facts until there is a record; then the record, which also has the ids of the calls.
    first = connection.first_ready_of(left)
    opened = {tube: facts for tube, job in first.items() if (facts := Facts.read(job.body)) is not None}
    records = connection.first_delayed_of(tube for tube in left if tube not in opened)
    facts_of = {tube: facts for tube, job in records.items() if (facts := Facts.read(job.body)) is not None} | opened
    holders = {(first if tube in opened else records)[tube].id: tube for tube in facts_of}
    ages = {holders[job.id]: job.age_s for job in connection.stats_job(holders)}
    tubes = sorted(ages, key=lambda tube: (-ages[tube], tube))[:limit]
    found: list[BatchProgress] = []
    countable = MAX_COUNTED
    for tube in tubes:
        facts, is_open = facts_of[tube], tube in opened
        buried: int | None = None
        if not is_open and facts.members <= countable:
            countable -= facts.members
            buried = _count_buried(connection, facts, records[tube].body)
        # Beside the markers there are the store and, while it is open, the open marker.
        markers = max(0, left[tube] - 1 - is_open)
        found.append(
            BatchProgress(
                batch_of_tube(tube),
                facts.callback,
                facts.queue,
                facts.when,
                facts.members,
                0 if is_open else max(0, facts.members - markers),
                buried,
                ages[tube],
                is_open,
            )
        )
    return Batches(found, len(ages))


def _count_buried(connection: Connection, facts: Facts, record: bytes) -> int:
    members = [
        member for _, member in islice(read_ids(connection, record), facts.members)
    ]  # a forged one has any number
    return len(connection.find_jobs(members, facts.queues, ["buried"]))
