"""Jobs and stories by their ids, some at a time and without writing anything, for pages.

The protocol cannot list jobs, but ids are consecutive: each view looks up a bounded number of them, from the newest
down, and ends where the next one begins.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

from flask_backend.broker.connection import PIPELINE_JOBS
from flask_backend.broker.stats import JobRecord
from flask_backend.names import failures_tube, is_queue_name

from .console import Console
from .notes import AT_ONCE, MAX_MESSAGE, StoredStory, decode_note, parts, stored

# The ids that one view looks up.
LOOKED_UP = 2000
# The jobs or stories of a view.
PAGE = 50
# The part of LOOKED_UP that may be spent on the search for the newest id.
FOR_NEWEST = 600
# Bodies that are read for a page of stories: those of other groups are read too.
_MOST_BODIES = 500


@dataclass(frozen=True, slots=True)
class JobPage:
    """Jobs of a queue with their bodies, newest first.

    ``counted`` is the server's number of jobs in these states. The next view begins ``before`` an id, if there may be
    further jobs; ``looked_up`` ids were looked up for this one.
    """

    jobs: Sequence[tuple[JobRecord, bytes]]
    counted: int
    looked_up: int
    before: int | None


def list_jobs(
    console: Console, queue: str, states: Collection[str], before: int | None = None, most: int = PAGE
) -> JobPage:
    """Return the newest jobs of a queue in some states, or those ``before`` an id."""
    known = console.queue(queue)
    counted = sum(int(getattr(known, state)) for state in states) if known is not None else 0
    if not counted:
        return JobPage([], 0, 0, None)
    newest, looked_up = (before - 1, 0) if before is not None else console.find_last_id(queue, FOR_NEWEST)
    found: list[JobRecord] = []
    looked = 0
    for seen, records in console.scan(newest, LOOKED_UP - looked_up, {queue}, set(states)):
        found += records
        looked = seen
        if len(found) >= min(most, counted):
            break
    last = found[most - 1].id if len(found) > most else newest - looked + 1
    page = found[:most]
    bodies = console.bodies(record.id for record in page)
    is_all = before is None and len(found) >= counted and len(found) <= most
    return JobPage(
        [(record, bodies[record.id]) for record in page if record.id in bodies],
        counted,
        looked_up + looked,
        None if is_all or last <= 1 else last,
    )


@dataclass(frozen=True, slots=True)
class StoryPage:
    """Stories of a queue, newest first; the next view begins ``before`` an id, if there may be further ones."""

    stories: Sequence[StoredStory]
    before: int | None


def list_stories(
    console: Console, queue: str, covers: Callable[[StoredStory], bool], before: int, most: int = PAGE
) -> StoryPage:
    """Return those stories that ``covers`` accepts among the notes ``before`` an id, without reserving them."""
    tube = failures_tube(queue)
    if not is_queue_name(tube):
        return StoryPage([], None)
    notes = _notes_before(console, tube, before)
    stories: list[StoredStory] = []
    for number, part in enumerate(parts(notes, AT_ONCE), 1):
        chosen = [story for story in _told(console, queue, part) if covers(story)]
        places = console.places_of({story.job for story in chosen})
        stories += [story for story in chosen if places.get(story.job) == (queue, "buried")]
        if len(stories) >= most:
            stories = stories[:most]
            return StoryPage(stories, stories[-1].id)
        if number * AT_ONCE >= _MOST_BODIES:
            return StoryPage(stories, part[-1])
    last = before - LOOKED_UP
    return StoryPage(stories, last if last > 1 else None)


def _notes_before(console: Console, tube: str, before: int) -> Iterator[int]:
    """Yield the ids of the notes in a tube, from the newest down."""
    for part in parts(range(before - 1, max(0, before - 1 - LOOKED_UP), -1), PIPELINE_JOBS):
        yield from (job_id for job_id, (queue, _) in console.places_of(part).items() if queue == tube)


def _told(console: Console, queue: str, notes: Sequence[int]) -> Iterator[StoredStory]:
    bodies = console.bodies(notes)
    for note_id in notes:
        note = decode_note(bodies.get(note_id, b""))
        if note is not None and note.queue == queue:
            yield stored(note_id, note, MAX_MESSAGE)
