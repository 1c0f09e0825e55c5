"""Inspection and actions on the broker: queues, jobs, the stories of buried jobs. Independent of any app."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from flask_backend.broker.connection import PIPELINE_JOBS, Connection
from flask_backend.broker.stats import JobRecord, Queue
from flask_backend.broker.wire import ReservedJob
from flask_backend.config import Settings
from flask_backend.errors import MessageDecodeError, QueueNameError
from flask_backend.names import check_worked_queue_name, failures_tube, is_failures_tube
from flask_backend.stories import Story

# The tube of the probe job, which is put and deleted at once to find the newest job id.
_PROBE_TUBE = "flask-backend.probe"
# Notes are large: read them in batches, so that the server does not buffer megabytes.
_NOTES_AT_ONCE = 50
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
class StoredStory:
    """A note, and the id of the job that stores it."""

    id: int
    note: Story


@dataclass(frozen=True, slots=True)
class Failures:
    """The buried jobs of a queue: their stories, newest first, and the number of jobs without a story."""

    queue: str
    stories: Sequence[StoredStory]
    untold: int

    @property
    def count(self) -> int:
        return len(self.stories) + self.untold


@dataclass(frozen=True, slots=True)
class ActionResult:
    """The result of an action on given jobs: the jobs that it affected, and the state of each of the others."""

    done: Sequence[int]
    refused: Mapping[int, str]


class Console:
    """A connection for inspection and actions. All its methods raise :exc:`BrokerConnectionError`."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._connection = Connection(settings.address, settings.timeout_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _tb: TracebackType | None
    ) -> None:
        self._connection.close()

    @property
    def address(self) -> str:
        return str(self._settings.address)

    # -- queues ----------------------------------------------------------------------------------------------

    def queues(self) -> list[Queue]:
        """Return all queues by name, without the failures tubes and without an unused ``default``."""
        found = self._connection.stats_tube(name for name in self._tubes() if not is_failures_tube(name))
        # Every connection, of any program, uses and watches `default` until it chooses another tube.
        return [queue for queue in found if queue.name != "default" or queue.jobs or queue.waiting]

    def _tubes(self) -> list[str]:
        return sorted(name for name in self._connection.list_tubes() if name != _PROBE_TUBE)

    def queue(self, name: str) -> Queue | None:
        """Return a queue, if it exists: it has jobs, or a connection uses or watches it."""
        return next(iter(self._connection.stats_tube([name])), None)

    def next_ready_of(self, queues: Iterable[str]) -> dict[str, JobRecord]:
        """Return the next ready job of each of these queues that has one."""
        heads = self._connection.peek_ready(queues)
        jobs = {job.id: job for job in self.jobs(heads.values())}
        return {queue: jobs[job_id] for queue, job_id in heads.items() if job_id in jobs}

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
        """Delete jobs that no connection holds; return the ids of the deleted jobs."""
        return self._connection.delete_each(ids)

    def next_buried(self, queue: str) -> int | None:
        """Return the id of the job that has been buried longest."""
        return self._connection.peek_buried([queue]).get(queue)

    # -- all jobs: the protocol cannot list them, but ids are consecutive -------------------------------------

    def last_id(self) -> int:
        """Return the id of the newest job."""
        return self._connection.probe_last_id(_PROBE_TUBE)

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

    def failures(self, queue: str, limit: int = 100_000) -> Failures:
        """Return the buried jobs of a queue, with at most the newest ``limit`` stories.

        Deletes stale stories, whose jobs are not buried any longer.
        """
        before = self._buried(queue)
        stories, unread = self._stories(queue, limit)
        # The smaller number: a job that was buried, kicked or deleted in between does not lack a story.
        buried = min(before, self._buried(queue))
        return Failures(queue, stories, max(0, buried - len(stories) - unread))

    def all_failures(self) -> list[Failures]:
        """Return the failures of each queue that has buried jobs, by name."""
        tubes = self._tubes()
        # Also read the stories of queues without buried jobs, to delete the stories of jobs that others have kicked.
        queues = {tube.removesuffix(failures_tube("")) for tube in tubes if is_failures_tube(tube)}
        queues |= {queue.name for queue in self.queues() if queue.buried}
        return [failures for queue in sorted(queues) if (failures := self.failures(queue)).count]

    def retry_jobs(self, ids: Iterable[int]) -> ActionResult:
        """Kick buried and delayed jobs, and delete the stories of the buried ones."""
        return self._act_on(ids, self.kick_each)

    def delete_jobs(self, ids: Iterable[int]) -> ActionResult:
        """Delete jobs that no connection holds, with the stories of the buried ones."""
        return self._act_on(ids, self.delete_each)

    def retry_failures(self, failures: Failures) -> list[int]:
        """Kick the jobs that are still buried, and delete their stories; return the ids of the kicked jobs."""
        return self._act_on_failures(failures, self.kick_each)

    def delete_failures(self, failures: Failures) -> list[int]:
        """Delete the jobs that are still buried, with their stories; return the ids of the deleted jobs."""
        return self._act_on_failures(failures, self.delete_each)

    def _buried(self, queue: str) -> int:
        known = self.queue(queue)
        return known.buried if known else 0

    def _stories(self, queue: str, limit: int) -> tuple[list[StoredStory], int]:
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
                with _reading(self._settings, tube) as reader:
                    # Up to the limit, not only the known number: notes that have just arrived come first.
                    held = list(_reserve(reader, limit))
                    left = self.queue(tube) or known
                    is_alone = left.reserved == len(held) >= min(limit, known.ready)
                    if is_alone or is_last:
                        return self._sort_out(queue, held, reader), left.ready
            time.sleep(_LOOK_AGAIN_S * random.random())
        return [], 0

    def _sort_out(self, queue: str, held: Iterable[ReservedJob], reader: Connection) -> list[StoredStory]:
        """Return the valid notes, newest first, and delete the stale ones. ``reader`` holds all of them."""
        notes = sorted((note for each in held if (note := _decode(queue, each))), key=lambda note: -note.id)
        states = {job.id: job.state for job in self.jobs({each.note.job for each in notes}) if job.queue == queue}
        stories: dict[int, StoredStory] = {}
        stale: list[int] = []
        for each in notes:
            state = states.get(each.note.job)
            if state == "buried" and each.note.job not in stories:
                stories[each.note.job] = each
            elif state != "reserved":  # a reserved job may be about to be buried: its story is written first
                stale.append(each.id)
        reader.delete_each(stale)
        return list(stories.values())

    def _act_on(self, ids: Iterable[int], act: Callable[[Iterable[int]], list[int]]) -> ActionResult:
        wanted = list(dict.fromkeys(ids))
        jobs = [job for job in self.jobs(wanted) if not is_failures_tube(job.queue)]
        queues = {job.queue for job in jobs if job.state == "buried"}
        notes = {each.note.job: each.id for queue in queues for each in self.failures(queue).stories}
        done = act(job.id for job in jobs)
        self.delete_each(notes[job_id] for job_id in done if job_id in notes)
        left = set(wanted).difference(done)
        now = {job.id: job for job in self.jobs(left)}
        return ActionResult(done, {job_id: _what_it_is(now.get(job_id)) for job_id in wanted if job_id in left})

    def _act_on_failures(self, failures: Failures, act: Callable[[Iterable[int]], list[int]]) -> list[int]:
        notes = {each.note.job: each.id for each in failures.stories}
        # The person may have taken a while to confirm: check the states again.
        done = act(job.id for job in self.jobs(notes) if job.state == "buried")
        self.delete_each(notes[job_id] for job_id in done)
        seen = set(notes)
        for _ in range(failures.untold):
            job_id = self.next_buried(failures.queue)
            if job_id is None or job_id in seen:  # buried again, behind all earlier ones
                break
            seen.add(job_id)
            done += act([job_id])
        return done


@contextmanager
def _reading(settings: Settings, tube: str) -> Generator[Connection, None, None]:
    """Connect to reserve notes, and give all of them back at the end."""
    reader = Connection(settings.address, settings.timeout_s, watch=tube)
    try:
        yield reader
    finally:
        reader.quit()  # then the notes are ready again, for other readers and for our next command


def _reserve(reader: Connection, count: int) -> Iterator[ReservedJob]:
    while count > 0:
        jobs = reader.reserve_ready(wanted := min(count, _NOTES_AT_ONCE))
        yield from jobs
        count -= wanted
        if len(jobs) < wanted:
            return


def _decode(queue: str, job: ReservedJob) -> StoredStory | None:
    """Read a note, if the job is one of our notes: we must not delete other jobs."""
    try:
        note = Story.decode(job.body)
    except (MessageDecodeError, TypeError):
        return None
    return StoredStory(job.id, note) if note.queue == queue else None


def _what_it_is(job: JobRecord | None) -> str:
    if job is None:
        return "gone"
    if is_failures_tube(job.queue):
        return "not a job but the story of one"
    match job.state:
        case "reserved":
            return "reserved: it runs now"
        case "ready":
            return "ready: it waits for a worker"
        case _:
            return f"still {job.state}: the server refused"
