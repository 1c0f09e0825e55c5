"""What a person can do to jobs: retry, delete and cancel them. One interface for the commands and the dashboard.

A page may be old, and ids begin again at 1 when a broker without a binlog restarts. So a :class:`Target` names the job
that the person saw, and an action refuses another job that has its id by now. An action on all failures that match
affects only those of the time of the question, see :class:`Selection`.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from flask_backend.broker.connection import PIPELINE_JOBS
from flask_backend.broker.stats import JobRecord
from flask_backend.errors import MessageDecodeError
from flask_backend.message import decode
from flask_backend.names import failures_tube, internal_use, is_internal_tube

from .console import Console, Failures
from .failures import Pattern
from .notes import AT_ONCE, StoredStory, decode_note, parts, queue_of, reading, stored

# The jobs that one call of :func:`act_on_selection` affects at most.
CHUNK = 10_000
# A queue's newest stories among which that of a given job is looked for.
_LOOKED_THROUGH = 1000

ANOTHER_JOB = "another job now: the broker has given its id again"

# An id of its own that a form can carry.
_PLAIN_UID = re.compile(r"[A-Za-z0-9_-]{1,64}")


class Action(StrEnum):
    """What is done to a job. Cancelling is deleting a job that waits."""

    RETRY = "retry"
    DELETE = "delete"
    CANCEL = "cancel"

    @property
    def past(self) -> str:
        return _PAST[self]

    @property
    def states(self) -> frozenset[str]:
        """The states of the jobs that it affects."""
        return _STATES[self]

    def do(self, console: Console, ids: Iterable[int]) -> list[int]:
        """Do it to these jobs; return the ids of those that it affected."""
        return console.kick_each(ids) if self is Action.RETRY else console.delete_each(ids)


_PAST = {Action.RETRY: "retried", Action.DELETE: "deleted", Action.CANCEL: "cancelled"}
_STATES = {
    Action.RETRY: frozenset({"buried", "delayed"}),
    Action.DELETE: frozenset({"ready", "delayed", "buried"}),
    Action.CANCEL: frozenset({"ready", "delayed"}),
}


@dataclass(frozen=True, slots=True)
class Target:
    """A job as a person saw it: its id, its queue and its :func:`mark_of`; None for a job that was not looked at.

    ``note`` is the id of the note with its story, if known.
    """

    id: int
    queue: str | None = None
    mark: str | None = None
    note: int | None = None

    def is_still(self, record: JobRecord, body: bytes | None) -> bool:
        """Whether a job is the one that was seen."""
        if self.queue not in (None, record.queue):
            return False
        return self.mark is None or (body is not None and self.mark == mark_of(body))


def mark_of(body: bytes) -> str:
    """Return what distinguishes a job from all others with the same id: its own id, or a digest of its body."""
    try:
        uid = decode(body).headers.get("id")
    except MessageDecodeError:
        uid = None
    if isinstance(uid, str) and _PLAIN_UID.fullmatch(uid):
        return uid
    return f"sha256:{hashlib.sha256(body).hexdigest()}"


@dataclass(frozen=True, slots=True)
class ActionResult:
    """The result of an action on given jobs: the jobs that it affected, and the reason for each of the others."""

    done: Sequence[int]
    refused: Mapping[int, str]


def act_on_jobs(console: Console, action: Action, targets: Iterable[Target]) -> ActionResult:
    """Do it to those jobs that are still the ones that were seen, and delete the stories of the buried ones."""
    wanted = {target.id: target for target in targets}
    jobs: dict[int, JobRecord] = {}
    refused: dict[int, str] = {}
    for record, body in _find(console, wanted.values()):
        if not wanted[record.id].is_still(record, body):
            refused[record.id] = ANOTHER_JOB
        elif not is_internal_tube(record.queue) and (record.state in action.states):
            jobs[record.id] = record
    notes = _notes_of(console, [wanted[job.id] for job in jobs.values() if job.state == "buried"], jobs)
    done = action.do(console, jobs)
    console.delete_notes(notes[job_id] for job_id in done if job_id in notes)
    left = [job_id for job_id in wanted if job_id not in refused and job_id not in set(done)]
    now = {job.id: job for job in console.jobs(left)}
    refused |= {job_id: _why_not(action, now.get(job_id)) for job_id in left}
    return ActionResult(done, {job_id: refused[job_id] for job_id in wanted if job_id in refused})


def _find(console: Console, targets: Iterable[Target]) -> Iterator[tuple[JobRecord, bytes | None]]:
    """Yield the jobs that exist, with the bodies of those whose marks are to be checked, a few at a time."""
    marked = [target.id for target in targets if target.mark is not None]
    for part in parts(marked, AT_ONCE):
        yield from console.jobs_with_bodies(part).values()
    for record in console.jobs(target.id for target in targets if target.mark is None):
        yield record, None


def _notes_of(console: Console, targets: Sequence[Target], jobs: Mapping[int, JobRecord]) -> dict[int, int]:
    """Return the ids of the notes about these buried jobs, by the ids of the jobs.

    The stories of jobs that were seen on a page are among the newest ones, or the page has named them.
    """
    bodies = console.bodies(target.note for target in targets if target.note is not None)
    notes: dict[int, int] = {}
    unknown: dict[str, int | None] = {}
    for target in targets:
        queue = jobs[target.id].queue
        note = decode_note(bodies.get(target.note, b"")) if target.note is not None else None
        if target.note is not None and note is not None and (note.job, note.queue) == (target.id, queue):
            notes[target.id] = target.note
        else:
            unknown[queue] = _LOOKED_THROUGH if target.mark is not None and unknown.get(queue, 1) else None
    for queue, limit in unknown.items():
        notes = {each.job: each.id for each in console.failures(queue, limit).stories} | notes
    return notes


def _why_not(action: Action, job: JobRecord | None) -> str:
    if job is None:
        return "gone"
    if (use := internal_use(job.queue)) is not None:
        return f"not a task's job but {use}"
    match job.state:
        case "reserved":
            return "reserved: it runs now"
        case "ready" if action is Action.RETRY:
            return "ready: it waits for a worker"
        case "buried" if action is Action.CANCEL:
            return "buried: it does not wait, but can be deleted"
        case _:
            return f"still {job.state}: the server refused"


def act_on_failures(console: Console, action: Action, failures: Failures) -> list[int]:
    """Do it to the jobs that are still buried, and delete their stories; return the ids of the affected jobs."""
    done: list[int] = []
    for part in parts(failures.stories, PIPELINE_JOBS):
        done += _act_on_stories(console, action, failures.queue, part, console.delete_notes)
    seen = {each.job for each in failures.stories}
    for _ in range(failures.untold):
        job_id = console.next_buried(failures.queue)
        if job_id is None or job_id in seen:  # buried again, behind all earlier ones
            break
        seen.add(job_id)
        done += action.do(console, [job_id])
    return done


@dataclass(frozen=True, slots=True)
class Selection:
    """All failures that match, and that were there when a person was asked about them.

    ``queue`` None means all queues; ``endpoint`` and ``kind`` select one group of failures, ``pattern`` all that it
    covers. Only stories whose note is not newer than ``newest_id``, and that were not written after ``until``, in
    seconds since the epoch, match: both numbers are the greatest ones among the stories that the person saw.
    """

    newest_id: int
    until: float
    queue: str | None = None
    endpoint: str | None = None
    kind: str | None = None
    pattern: Pattern | None = None

    @classmethod
    def of(
        cls,
        seen: Iterable[StoredStory],
        queue: str | None = None,
        *,
        group: tuple[str | None, str] | None = None,
        pattern: Pattern | None = None,
    ) -> Selection:
        """Return the selection of what matches and is not newer than the stories that were seen.

        ``group`` is an endpoint and a kind.
        """
        stories = list(seen)
        newest_id = max((story.id for story in stories), default=0)
        until = max((story.buried_at for story in stories), default=0.0)
        endpoint, kind = group or (None, None)
        return cls(newest_id, until, queue, endpoint, kind, pattern)

    def covers(self, story: StoredStory) -> bool:
        return (
            story.id <= self.newest_id
            and story.buried_at <= self.until
            and (self.kind is None or (story.endpoint, story.kind) == (self.endpoint, self.kind))
            and (self.pattern is None or self.pattern.covers(story))
        )


@dataclass(slots=True)
class Progress:
    """What an action on a selection has done so far in this call.

    ``skipped`` jobs matched, but were not buried any longer. ``unread`` stories are beyond the limit, or held by other
    readers, or were not read for lack of time.
    """

    done: list[int] = field(default_factory=list[int])
    skipped: int = 0
    unread: int = 0

    @property
    def is_finished(self) -> bool:
        """Whether no further job matches."""
        return not self.unread

    @property
    def is_stuck(self) -> bool:
        """Whether another call would do no more: the stories that were not read are out of reach."""
        return bool(self.unread) and not (self.done or self.skipped)


def act_on_selection(
    console: Console, action: Action, selection: Selection, *, limit: int = CHUNK, within_s: float = 10.0
) -> Progress:
    """Do it to at most ``limit`` of the jobs that match, the newest ones first, and for about ``within_s`` seconds."""
    progress = Progress()
    deadline = time.monotonic() + within_s
    tubes = console.failure_tubes()
    if selection.queue is not None:
        tubes = [tube for tube in tubes if tube == failures_tube(selection.queue)]
    for tube in tubes:
        _act_in_tube(console, action, selection, tube, progress, limit, deadline)
    return progress


def _act_in_tube(  # noqa: PLR0913  # what is to be done, where, and how far
    console: Console,
    action: Action,
    selection: Selection,
    tube: str,
    progress: Progress,
    limit: int,
    deadline: float,
) -> None:
    queue = queue_of(tube)
    with reading(console.settings, tube) as reader:
        held: set[int] = set()
        told: set[int] = set()  # the jobs with a newer note
        is_exhausted = False

        def delete_notes(ids: Iterable[int]) -> None:
            held.difference_update(reader.delete_each(ids))

        while not is_exhausted and time.monotonic() < deadline:
            wanted = min(limit - len(progress.done) - progress.skipped, PIPELINE_JOBS)
            if wanted <= 0:
                break
            jobs = reader.reserve_ready(wanted)
            # There may be so many that the TTR of the first ones expires, and they come again.
            is_exhausted = len(jobs) < wanted or not held.isdisjoint(job.id for job in jobs)
            held |= {job.id for job in jobs}
            notes = [stored(job.id, note) for job in jobs if (note := decode_note(job.body)) and note.queue == queue]
            stories: list[StoredStory] = []
            for each in notes:
                if each.job not in told and selection.covers(each):
                    stories.append(each)
                told.add(each.job)
            done = _act_on_stories(console, action, queue, stories, delete_notes)
            progress.done += done
            progress.skipped += len(stories) - len(done)
        if known := console.queue(tube):
            progress.unread += max(0, known.reserved - len(held)) + (0 if is_exhausted else known.ready)


def _act_on_stories(
    console: Console,
    action: Action,
    queue: str,
    stories: Sequence[StoredStory],
    delete_notes: Callable[[Iterable[int]], object],
) -> list[int]:
    """Do it to the jobs that are still buried; delete their notes, and those of jobs that are not buried any longer."""
    # The person may have taken a while to confirm: check the states again.
    places = console.places_of(each.job for each in stories)
    acted = action.do(console, [each.job for each in stories if places.get(each.job) == (queue, "buried")])
    # A reserved job may be about to be buried: its story is written first.
    kept = {job_id for job_id, place in places.items() if place in ((queue, "buried"), (queue, "reserved"))}
    kept -= set(acted)
    delete_notes(each.id for each in stories if each.job not in kept)
    return acted
