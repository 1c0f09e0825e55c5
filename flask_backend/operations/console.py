"""Inspection and actions on the broker: queues, jobs, the stories of buried jobs. Independent of any app."""

from __future__ import annotations

import random
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from flask_backend.broker import batches, cursors
from flask_backend.broker.connection import PIPELINE_JOBS, Connection
from flask_backend.broker.cursors import Cursor, Owner
from flask_backend.broker.stats import JobRecord, Queue, Server
from flask_backend.config import Settings
from flask_backend.errors import QueueNameError
from flask_backend.names import (
    check_worked_queue_name,
    failures_tube,
    is_batch_tube,
    is_failures_tube,
    is_internal_tube,
    is_queue_name,
)
from flask_backend.stories import Story

from .batches import Batches, look
from .limits import LimitUse, find_use, limit_names
from .masking import Masking
from .notes import AT_ONCE, StoredStory, decode_note, parts, queue_of, reading, reserve, stored

# The tube of the probe job, which is put and deleted at once to find the newest job id.
_PROBE_TUBE = "flask-backend.probe"
# Steps of a search for greater ids: powers of two, then the ids that follow the greatest one.
_STEPS, _NEXT_IDS = 24, 100
# The longest random wait, in seconds, before reading notes again that another reader holds.
_LOOK_AGAIN_S = 0.05


@dataclass(frozen=True, slots=True)
class Rates:
    """The jobs of a queue that are put, and deleted, per second."""

    put: float
    deleted: float


def measure_rates(before: Iterable[Queue], after: Iterable[Queue], seconds: float) -> dict[str, Rates]:
    """Return the rates of the queues between two looks, ``seconds`` apart."""
    old = {queue.name: (queue.put, queue.deleted) for queue in before}
    rates: dict[str, Rates] = {}
    for queue in after:
        put, deleted = old.get(queue.name, (0, 0))
        if queue.put < put or queue.deleted < deleted:  # deleted in between: the server counts from 0
            put = deleted = 0
        rates[queue.name] = Rates((queue.put - put) / seconds, (queue.deleted - deleted) / seconds)
    return rates


@dataclass(frozen=True, slots=True)
class Failures:
    """The buried jobs of a queue: those with a story that was read, newest first, and the number of the others.

    ``untold`` jobs have no story, ``unread`` ones have a story beyond the limit.
    """

    queue: str
    stories: Sequence[StoredStory]
    untold: int
    unread: int = 0

    @property
    def count(self) -> int:
        """The number of jobs that an action on these failures affects."""
        return len(self.stories) + self.untold

    @property
    def total(self) -> int:
        """The number of buried jobs."""
        return self.count + self.unread

    @property
    def is_empty(self) -> bool:
        return not self.count + self.unread


class Console:
    """A connection for inspection and actions. All its methods raise :exc:`BrokerConnectionError`."""

    def __init__(self, settings: Settings, masking: Masking | None = None) -> None:
        """Connect. ``masking`` hides the secret values of what is shown; by default it does not know an app."""
        self._settings = settings
        self.masking = masking or Masking(settings.mask)
        self._connection = Connection(settings.address, settings.timeout_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _tb: TracebackType | None
    ) -> None:
        self._connection.close()

    @property
    def settings(self) -> Settings:
        return self._settings

    @property
    def address(self) -> str:
        return str(self._settings.address)

    def server(self) -> Server | None:
        return self._connection.server()

    # -- queues ----------------------------------------------------------------------------------------------

    def queue_names(self) -> list[str]:
        """Return the names of all queues, sorted, without our internal tubes."""
        return [name for name in self._tubes() if not is_internal_tube(name)]

    def queues(self, names: Iterable[str] | None = None) -> list[Queue]:
        """Return all queues by name, or those of these ``names`` that exist, without an unused ``default``."""
        found = self.find_queues(self.queue_names() if names is None else names)
        # Every connection, of any program, uses and watches `default` until it chooses another tube.
        return [queue for queue in found if queue.name != "default" or queue.jobs or queue.waiting]

    def failure_tubes(self) -> list[str]:
        """Return the tubes that keep the stories of buried jobs."""
        return [name for name in self._tubes() if is_failures_tube(name)]

    def _tubes(self) -> list[str]:
        return sorted(name for name in self._connection.list_tubes() if name != _PROBE_TUBE)

    def queue(self, name: str) -> Queue | None:
        """Return a queue, if it exists: it has jobs, or a connection uses or watches it."""
        return next(iter(self.find_queues([name])), None)

    def find_queues(self, names: Iterable[str]) -> list[Queue]:
        """Return those of these queues that exist."""
        return self._connection.stats_tube(names)

    def limits(self) -> list[LimitUse]:
        """Return the limits that tasks have used, by name."""
        return [use for name in limit_names(self._tubes()) if (use := self.limit(name))]

    def limit(self, name: str) -> LimitUse | None:
        """Return a limit, if a task has used it."""
        return find_use(self._connection, name)

    def next_ready_of(self, queues: Iterable[str]) -> dict[str, JobRecord]:
        """Return the next ready job of each of these queues that has one."""
        heads = self._connection.peek_ready(queues)
        jobs = {job.id: job for job in self.jobs(heads.values())}
        return {queue: jobs[job_id] for queue, job_id in heads.items() if job_id in jobs}

    def next_waits(self, queues: Iterable[Queue]) -> dict[str, int]:
        """Return how many seconds the next ready job of each queue has been due, where that is known.

        The next job is the most urgent one, not the oldest: the protocol cannot find that.
        """
        found = self.next_ready_of(queue.name for queue in queues if queue.ready)
        return {queue: wait_s for queue, job in found.items() if (wait_s := job.waits_s) is not None}

    def pause(self, queue: str, seconds: int) -> bool:
        """Pause a queue for ``seconds``, or end its pause with 0; return whether the queue exists.

        The server keeps the pause in memory: it ends when the server stops, or when it deletes the empty, unused queue.
        """
        return self._connection.pause_tube(queue, seconds)

    # -- jobs ------------------------------------------------------------------------------------------------

    def job(self, job_id: int) -> JobRecord | None:
        return next(iter(self.jobs([job_id])), None)

    def jobs(self, ids: Iterable[int]) -> list[JobRecord]:
        """Return the records of the jobs that exist."""
        return self._connection.stats_job(ids)

    def body(self, job_id: int) -> bytes | None:
        return self.bodies([job_id]).get(job_id)

    def bodies(self, ids: Iterable[int]) -> dict[int, bytes]:
        """Return the bodies of the jobs that exist, by id."""
        return self._connection.peek(ids)

    def jobs_with_bodies(self, ids: Iterable[int]) -> dict[int, tuple[JobRecord, bytes]]:
        """Return the records and the bodies of the jobs that exist, by id."""
        return self._connection.find_each(ids)

    def places_of(self, ids: Iterable[int]) -> dict[int, tuple[str, str]]:
        """Return the queue and the state of the jobs that exist, by id: quicker than their records."""
        return self._connection.places_of(ids)

    def cursor_of(self, job: JobRecord, body: bytes) -> Cursor | None:
        """Return the newest cursor that the task of a job has saved, if any."""
        return cursors.load(self._connection, Owner.of(job.id, job.queue, body))

    def kick(self, job_id: int) -> bool:
        """Make a buried or delayed job ready; return whether it was buried or delayed."""
        return bool(self.kick_each([job_id]))

    def kick_each(self, ids: Iterable[int]) -> list[int]:
        """Make buried or delayed jobs ready; return the ids of the jobs that were."""
        return self._connection.kick_job(ids)

    def delete(self, job_id: int) -> bool:
        """Delete a job unless a connection holds it; return whether it was deleted."""
        return bool(self.delete_each([job_id]))

    def delete_each(self, ids: Iterable[int]) -> list[int]:
        """Delete jobs that no connection holds, with their cursors; return the ids of the deleted jobs."""
        wanted = list(ids)
        if any(map(is_batch_tube, self._connection.list_tubes())):
            deleted = [job_id for part in parts(wanted, AT_ONCE) for job_id in self._delete_members(part)]
        else:
            deleted = self._connection.delete_each(wanted)
        if deleted:
            cursors.sweep(self._connection)
        return deleted

    def _delete_members(self, ids: Sequence[int]) -> list[int]:
        """Delete jobs that may belong to batches, and count them as finished there."""
        bodies = self.bodies(ids)
        deleted = self._connection.delete_each(ids)
        batches.finish_each(self._connection, (bodies[job_id] for job_id in deleted if job_id in bodies))
        return deleted

    def batches(self, limit: int | None = None) -> Batches:
        """Return the unfinished batches, the oldest first, at most ``limit``. Puts, reserves and deletes nothing."""
        return look(self._connection, limit)

    def next_buried(self, queue: str) -> int | None:
        """Return the id of the job that has been buried longest."""
        return self._connection.peek_buried([queue]).get(queue)

    def next_ready(self, queue: str) -> int | None:
        """Return the id of the most urgent ready job."""
        return self._connection.peek_ready([queue]).get(queue)

    # -- all jobs: the protocol cannot list them, but ids are consecutive -------------------------------------

    def last_id(self) -> int:
        """Return the id of the newest job."""
        return self._connection.probe_last_id(_PROBE_TUBE)

    def find_last_id(self, queue: str, most: int) -> tuple[int, int]:
        """Return the id of the newest job, or less, without writing anything; and how many ids were looked up for it.

        It is the number of all puts, unless the server has read its binlog since. So this begins with the greatest id
        that is known, and looks for jobs with greater ones, in growing steps, while it has not looked up ``most`` ids.
        """
        tubes = [queue, *filter(is_queue_name, [failures_tube(queue)])]
        heads = [self._connection.peek_ready(tubes), self._connection.peek_delayed([queue])]
        heads.append(self._connection.peek_buried([queue]))
        newest = max(self._connection.total_jobs(), *(job_id for head in heads for job_id in head.values()), 0)
        looked_at = 0
        while looked_at < most:
            ids = [newest + 2**step for step in range(_STEPS)]
            found = self.places_of(ids)
            if not found:
                ids = list(range(newest + 1, newest + 1 + _NEXT_IDS))
                found = self.places_of(ids)
                looked_at += _NEXT_IDS
            looked_at += _STEPS
            if not found:
                break
            newest = max(found)
        return newest, looked_at

    def scan(
        self, newest: int, count: int, queues: Collection[str], states: Collection[str]
    ) -> Iterator[tuple[int, list[JobRecord]]]:
        """Scan ``count`` ids from ``newest`` down for the jobs of ``queues`` in one of ``states``.

        Yields, after each batch, the number of ids scanned so far and the jobs found in that batch.
        """
        last = max(0, newest - count)
        for start in range(newest, last, -PIPELINE_JOBS):
            ids = range(start, max(last, start - PIPELINE_JOBS), -1)
            yield newest - ids[-1] + 1, self._connection.find_jobs(ids, queues, states)

    # -- buried jobs and their stories -----------------------------------------------------------------------

    def failures(self, queue: str, limit: int | None = None) -> Failures:
        """Return the buried jobs of a queue, with at most the newest ``limit`` stories.

        Deletes stale stories, whose jobs are not buried any longer.
        """
        before = self._buried(queue)
        stories, unread = self._stories(queue, limit)
        # The smaller number: a job that was buried, kicked or deleted in between does not lack a story.
        left = max(0, min(before, self._buried(queue)) - len(stories))
        return Failures(queue, stories, max(0, left - unread), min(left, unread))

    def all_failures(self, limit: int | None = None) -> list[Failures]:
        """Return the failures of each queue that has buried jobs, by name, as :meth:`failures` does."""
        # Also read the stories of queues without buried jobs, to delete the stories of jobs that others have kicked.
        queues = set(map(queue_of, self.failure_tubes()))
        queues |= {queue.name for queue in self.queues() if queue.buried}
        found = (self.failures(queue, limit) for queue in sorted(queues))
        return [failures for failures in found if not failures.is_empty]

    def read_stories(self, stories: Iterable[StoredStory]) -> Iterator[Story]:
        """Yield stories in full, in the same order, without those that are gone. A few at a time are in memory."""
        for part in parts(stories, AT_ONCE):
            bodies = self.bodies(each.id for each in part)
            for each in part:
                note = decode_note(bodies.get(each.id, b""))
                if note is not None and note.job == each.job:
                    yield self.masking.story(note)

    def delete_notes(self, ids: Iterable[int]) -> list[int]:
        """Delete notes that no reader holds, and whose jobs are not buried any longer; return the deleted ones."""
        return self._connection.delete_each(ids)

    def _buried(self, queue: str) -> int:
        known = self.queue(queue)
        return known.buried if known else 0

    def _stories(self, queue: str, limit: int | None) -> tuple[list[StoredStory], int]:
        """Return the stories, newest first, and the number of notes that were not read.

        Without reserving, the protocol shows only the first job of a tube, so the notes are reserved while they are
        read. Two concurrent readers would each hold part of the notes. A reader that notices gives its notes back,
        waits and retries; after the timeout, since another reader may hang, it returns the notes that it could read.
        """
        try:
            tube = failures_tube(check_worked_queue_name(queue))
        except QueueNameError:  # our workers cannot serve this queue
            return [], 0
        deadline = time.monotonic() + self._settings.timeout_s
        while (known := self.queue(tube)) and known.ready + known.reserved:
            is_last = time.monotonic() > deadline
            if not known.reserved or is_last:
                with reading(self._settings, tube) as reader:
                    held: dict[int, StoredStory | None] = {}
                    # Up to the limit, not only the known number: notes that have just arrived come first.
                    for job in reserve(reader, limit):
                        if job.id in held:  # there are so many that its TTR has expired
                            break
                        note = decode_note(job.body)
                        # Without a story: we must not delete other jobs.
                        held[job.id] = stored(job.id, note) if note and note.queue == queue else None
                    left = self.queue(tube) or known
                    wanted = known.ready if limit is None else min(limit, known.ready)
                    is_alone = left.reserved == len(held) >= wanted
                    if is_alone or is_last:
                        return self._sort_out(queue, [each for each in held.values() if each], reader), left.ready
            time.sleep(_LOOK_AGAIN_S * random.random())
        return [], 0

    def _sort_out(self, queue: str, notes: list[StoredStory], reader: Connection) -> list[StoredStory]:
        """Return the valid notes, newest first, and delete the stale ones. ``reader`` holds all of them."""
        notes.sort(key=lambda note: -note.id)
        stories: dict[int, StoredStory] = {}
        for part in parts(notes, PIPELINE_JOBS):
            states = {job.id: job.state for job in self.jobs({each.job for each in part}) if job.queue == queue}
            stale: list[int] = []
            for each in part:
                state = states.get(each.job)
                if state == "buried" and each.job not in stories:
                    stories[each.job] = each
                elif state != "reserved":  # a reserved job may be about to be buried: its story is written first
                    stale.append(each.id)
            reader.delete_each(stale)
        return list(stories.values())
