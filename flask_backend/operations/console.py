"""What a person can see and do on the broker: queues, jobs, the stories of buried ones. Knows no app."""

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

# Where a job is put, and deleted at once, to learn how far the server has counted.
_PROBE_TUBE = "flask-backend.probe"
# Notes are large: so many at a time, lest the server hold megabytes for us.
_NOTES_AT_ONCE = 50
# How long at most, at random, to wait before another look at notes that somebody else is looking at.
_LOOK_AGAIN_S = 0.05


@dataclass(frozen=True, slots=True)
class Rates:
    """How many jobs of a queue are put, and deleted, in a second."""

    put: float
    deleted: float


def measure_rates(before: Iterable[Queue], after: Iterable[Queue], seconds: float) -> dict[str, Rates]:
    """Return the rates of the queues that were looked at twice, so many seconds apart."""
    old = {queue.name: (queue.put, queue.deleted) for queue in before}
    rates: dict[str, Rates] = {}
    for queue in after:
        put, deleted = old.get(queue.name, (0, 0))
        if queue.put < put or queue.deleted < deleted:  # it was gone in between: the server counts it from 0
            put = deleted = 0
        rates[queue.name] = Rates((queue.put - put) / seconds, (queue.deleted - deleted) / seconds)
    return rates


@dataclass(frozen=True, slots=True)
class StoredStory:
    """A note, and the job that it is kept as."""

    id: int
    note: Story


@dataclass(frozen=True, slots=True)
class Failures:
    """The buried jobs of a queue: the stories that are told of them, newest first, and how many have none."""

    queue: str
    stories: Sequence[StoredStory]
    untold: int

    @property
    def count(self) -> int:
        return len(self.stories) + self.untold


@dataclass(frozen=True, slots=True)
class ActionResult:
    """What came of acting on given jobs: those with which it was done, and what each of the others is instead."""

    done: Sequence[int]
    refused: Mapping[int, str]


class Console:
    """A connection for looking and acting. All its methods raise :exc:`BrokerConnectionError`."""

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
        """Return all queues by name: those that keep stories are none, nor is ``default`` that nobody really uses."""
        found = self._connection.stats_tube(name for name in self._tubes() if not is_failures_tube(name))
        # Every connection, anybody's, uses and watches that one until it says otherwise.
        return [queue for queue in found if queue.name != "default" or queue.jobs or queue.waiting]

    def _tubes(self) -> list[str]:
        return sorted(name for name in self._connection.list_tubes() if name != _PROBE_TUBE)

    def queue(self, name: str) -> Queue | None:
        """Return a queue; None if the server has none: nobody uses it, and it has no job."""
        return next(iter(self._connection.stats_tube([name])), None)

    def next_ready_of(self, queues: Iterable[str]) -> dict[str, JobRecord]:
        """Return the job that comes next in each of these queues that has one."""
        heads = self._connection.peek_ready(queues)
        jobs = {job.id: job for job in self.jobs(heads.values())}
        return {queue: jobs[job_id] for queue, job_id in heads.items() if job_id in jobs}

    def pause(self, queue: str, seconds: int) -> bool:
        """Have no job of a queue reserved for so long, 0 to end that; return whether there is such a queue.

        A pause is the server's: it ends with it, and with the queue when nobody uses that and its last job is gone.
        """
        return self._connection.pause_tube(queue, seconds)

    # -- jobs ------------------------------------------------------------------------------------------------

    def job(self, job_id: int) -> JobRecord | None:
        return next(iter(self.jobs([job_id])), None)

    def jobs(self, ids: Iterable[int]) -> list[JobRecord]:
        """Return what the server has of these jobs."""
        return self._connection.stats_job(ids)

    def body(self, job_id: int) -> bytes | None:
        return self.bodies([job_id]).get(job_id)

    def bodies(self, ids: Iterable[int]) -> dict[int, bytes]:
        """Return the bodies of these jobs, of which some may be gone."""
        return self._connection.peek(ids)

    def kick(self, job_id: int) -> bool:
        """Make a buried or delayed job ready; return whether it was one."""
        return bool(self.kick_each([job_id]))

    def kick_each(self, ids: Iterable[int]) -> list[int]:
        """Make buried or delayed jobs ready; return those that were."""
        return self._connection.kick_job(ids)

    def delete(self, job_id: int) -> bool:
        """Delete a job that nobody holds; return whether it was one."""
        return bool(self.delete_each([job_id]))

    def delete_each(self, ids: Iterable[int]) -> list[int]:
        """Delete jobs that nobody holds; return those that were."""
        return self._connection.delete_each(ids)

    def next_buried(self, queue: str) -> int | None:
        """Return the id of the job that has been buried for longest."""
        return self._connection.peek_buried([queue]).get(queue)

    # -- all jobs: the protocol has no list, but ids are counted ----------------------------------------------

    def last_id(self) -> int:
        """Return the id of the newest job."""
        return self._connection.probe_last_id(_PROBE_TUBE)

    def scan(
        self, newest: int, count: int, queues: Collection[str], states: Collection[str]
    ) -> Iterator[tuple[int, list[JobRecord]]]:
        """Look at ``count`` ids from ``newest`` down; yield, often, how many were seen and what was found in these.

        What was found are the jobs of ``queues`` in one of ``states``.
        """
        last = max(0, newest - count)
        for start in range(newest, last, -PIPELINE_JOBS):
            ids = range(start, max(last, start - PIPELINE_JOBS), -1)
            yield newest - ids[-1] + 1, self._connection.find_jobs(ids, queues, states)

    # -- buried jobs and their stories -----------------------------------------------------------------------

    def failures(self, queue: str, limit: int = 100_000) -> Failures:
        """Return what is known of the buried jobs of a queue; of its stories the newest ``limit`` at most.

        Stories of jobs that are buried no more are deleted.
        """
        before = self._buried(queue)
        stories, unread = self._stories(queue, limit)
        # The lesser number: a job that was buried, kicked or deleted in between is not one without a story.
        buried = min(before, self._buried(queue))
        return Failures(queue, stories, max(0, buried - len(stories) - unread))

    def all_failures(self) -> list[Failures]:
        """Return the same for each queue that has buried jobs, by name."""
        tubes = self._tubes()
        # Stories are looked for where nothing is buried, too: those of jobs that others have kicked are deleted.
        queues = {tube.removesuffix(failures_tube("")) for tube in tubes if is_failures_tube(tube)}
        queues |= {queue.name for queue in self.queues() if queue.buried}
        return [failures for queue in sorted(queues) if (failures := self.failures(queue)).count]

    def retry_jobs(self, ids: Iterable[int]) -> ActionResult:
        """Kick buried and delayed jobs, and delete the stories of those that were buried."""
        return self._act_on(ids, self.kick_each)

    def delete_jobs(self, ids: Iterable[int]) -> ActionResult:
        """Delete jobs that nobody holds, with the stories of those that were buried."""
        return self._act_on(ids, self.delete_each)

    def retry_failures(self, failures: Failures) -> list[int]:
        """Kick these jobs, as far as they are still buried, and delete their stories; return which it were."""
        return self._act_on_failures(failures, self.kick_each)

    def delete_failures(self, failures: Failures) -> list[int]:
        """Delete these jobs, as far as they are still buried, with their stories; return which it were."""
        return self._act_on_failures(failures, self.delete_each)

    def _buried(self, queue: str) -> int:
        known = self.queue(queue)
        return known.buried if known else 0

    def _stories(self, queue: str, limit: int) -> tuple[list[StoredStory], int]:
        """Return the stories, newest first, and how many notes were not read.

        The protocol shows only the first of many jobs without reserving: the notes are held for as long as it takes.
        Two who look at once would each have a part of them. So whoever finds that waits, and begins anew; at last, as
        somebody may be stuck in it, with what can be had.
        """
        try:
            tube = failures_tube(check_worked_queue_name(queue))
        except QueueNameError:  # a queue that no worker of ours can serve
            return [], 0
        deadline = time.monotonic() + self._settings.timeout_s
        while (known := self.queue(tube)) and known.ready + known.reserved:
            is_last = time.monotonic() > deadline
            if not known.reserved or is_last:
                with _reading(self._settings, tube) as reader:
                    # Not only as many as were there: what has come in between comes first.
                    held = list(_reserve(reader, limit))
                    left = self.queue(tube) or known
                    is_alone = left.reserved == len(held) >= min(limit, known.ready)
                    if is_alone or is_last:
                        return self._sort_out(queue, held, reader), left.ready
            time.sleep(_LOOK_AGAIN_S * random.random())
        return [], 0

    def _sort_out(self, queue: str, held: Iterable[ReservedJob], reader: Connection) -> list[StoredStory]:
        """Return the notes that count, newest first; delete those that do not. All are held by ``reader``."""
        notes = sorted((note for each in held if (note := _decode(queue, each))), key=lambda note: -note.id)
        states = {job.id: job.state for job in self.jobs({each.note.job for each in notes}) if job.queue == queue}
        stories: dict[int, StoredStory] = {}
        stale: list[int] = []
        for each in notes:
            state = states.get(each.note.job)
            if state == "buried" and each.note.job not in stories:
                stories[each.note.job] = each
            elif state != "reserved":  # a job that is held may be about to be buried: its story comes first
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
        # A person has thought about it in between.
        done = act(job.id for job in self.jobs(notes) if job.state == "buried")
        self.delete_each(notes[job_id] for job_id in done)
        seen = set(notes)
        for _ in range(failures.untold):
            job_id = self.next_buried(failures.queue)
            if job_id is None or job_id in seen:  # it has come back, behind all that were there
                break
            seen.add(job_id)
            done += act([job_id])
        return done


@contextmanager
def _reading(settings: Settings, tube: str) -> Generator[Connection, None, None]:
    """Connect for reserving notes, and give back all at the end."""
    reader = Connection(settings.address, settings.timeout_s, watch=tube)
    try:
        yield reader
    finally:
        reader.quit()  # after that the notes are there again, for others and for our own next command


def _reserve(reader: Connection, count: int) -> Iterator[ReservedJob]:
    while count > 0:
        jobs = reader.reserve_ready(wanted := min(count, _NOTES_AT_ONCE))
        yield from jobs
        count -= wanted
        if len(jobs) < wanted:
            return


def _decode(queue: str, job: ReservedJob) -> StoredStory | None:
    """Read a note; None for what somebody else has put there, and what is not ours to delete."""
    try:
        note = Story.decode(job.body)
    except (MessageDecodeError, TypeError):
        return None
    return StoredStory(job.id, note) if note.queue == queue else None


def _what_it_is(job: JobRecord | None) -> str:
    if job is None:
        return "gone"
    if is_failures_tube(job.queue):
        return "no job but the story of one"
    match job.state:
        case "reserved":
            return "reserved: it runs now"
        case "ready":
            return "ready: it waits for a worker"
        case _:
            return f"still {job.state}: the server refuses"
