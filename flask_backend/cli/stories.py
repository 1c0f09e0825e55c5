"""Show the stories of failures as text."""

from __future__ import annotations

import textwrap
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from flask_backend.operations.bodies import show_expiry
from flask_backend.tracebacks import MAX_MESSAGE, MAX_TRACEBACK
from flask_backend.visible import MAX_NAME, visible, visible_lines

from .output import LABEL, Column, echo, labelled, lay_out_table, show_seconds, show_time, terminal_width

if TYPE_CHECKING:
    from flask_backend.operations.console import Console, Failures
    from flask_backend.operations.failures import FailureGroup
    from flask_backend.stories import Story


def echo_story(note: Story) -> None:
    """Print all fields of a note."""
    title, *lines = story_lines(note, terminal_width())
    echo(title, bold=True)
    for line in lines:
        echo(line)


def story_lines(note: Story, room: int) -> Iterator[str]:
    """Yield the lines of all fields of a note, for a terminal of ``room`` columns."""
    yield f"job {note.job} of {note.queue}"
    for name, value in _story_fields(note):
        lines = textwrap.wrap(visible(value, MAX_MESSAGE), max(LABEL, room - LABEL), break_on_hyphens=False) or [""]
        for label, line in zip([name, *[""] * (len(lines) - 1)], lines, strict=True):
            yield labelled(label, line)
    if note.traceback:
        yield ""
        yield from visible_lines(note.traceback, MAX_TRACEBACK).expandtabs().split("\n")


def table_of_groups(
    console: Console, groups: Sequence[FailureGroup], found: Sequence[Failures]
) -> tuple[list[Column], list[list[str]]]:
    """Return the columns and the rows of a table of failures, with the message of the newest one of each group."""
    columns = [
        *(Column("queue"), Column("endpoint"), Column("exception", least=30)),
        *(Column(title, is_number=True) for title in ("count", "last", "newest")),
        Column("message", least=20),
    ]
    now = time.time()
    newest = console.read_stories(group.newest for group in groups)
    messages = {story.job: visible(story.message or "-", MAX_MESSAGE) for story in newest}
    rows = [
        [
            group.queue,
            visible(group.endpoint or "-", MAX_NAME),
            visible(group.kind, MAX_NAME),
            str(len(group.stories)),
            f"{show_seconds(now - group.newest.buried_at)} ago",
            str(group.newest.job),
            messages.get(group.newest.job, "-"),  # kicked or deleted since
        ]
        for group in groups
    ]
    others = [
        [each.queue, "-", reason, str(count), "-", "-", "-"]
        for each in found
        for reason, count in (("buried without a story", each.untold), ("with an older story, not read", each.unread))
        if count
    ]
    return columns, rows + others


def failure_lines(console: Console, queue: str, limit: int, room: int) -> Iterator[str]:
    """Yield why jobs of a queue are buried, by the newest ``limit`` stories, for a terminal of ``room`` columns."""
    from flask_backend.operations.failures import group

    failures = console.failures(queue, limit)
    if failures.is_empty:
        yield f"no buried jobs in {queue}"
        return
    groups = group([failures])
    for lines in lay_out_table(*table_of_groups(console, groups, [failures]), room):
        yield from lines
    if newest := next(console.read_stories(each.newest for each in groups[:1]), None):
        yield ""
        yield from story_lines(newest, room)
        yield ""
        yield f"run it again:  flask-backend retry {newest.job} --broker {console.address}"
        yield f"delete it:     flask-backend delete {newest.job} --broker {console.address}"


def _story_fields(note: Story) -> Iterator[tuple[str, str]]:
    yield "reason", note.reason
    if note.call or note.endpoint:
        yield "call", note.call or f"{note.endpoint}(…)"  # among many stories, only the first are kept whole
    if note.exception:
        yield "exception", note.exception + (f": {note.message}" if note.message else "")
    elif note.message:
        yield "died", note.message
    if note.attempts is not None:
        yield "attempts", str(note.attempts) + (f" of {note.allowed}" if note.allowed is not None else "")
    if note.scheduled_at is not None:
        yield "scheduled", _show_moment(note.scheduled_at)
    if note.expires_at is not None:
        hint = ": a retry is deleted, and not run" if note.expires_at <= time.time() else ""
        yield "expires", show_expiry(note.expires_at, time.time()) + hint
    yield "buried", _show_moment(note.buried_at)
    if note.ran_s is not None:
        yield "ran", f"{note.ran_s:.3f} s" if note.ran_s < 1 else show_seconds(note.ran_s)
    worker = note.death.get("worker_pid") if note.death else note.pid  # another process reports a death
    yield "worker", f"pid {worker} on {note.host}"


def _show_moment(at: float) -> str:
    return f"{show_time(at)}, {show_seconds(time.time() - at)} ago"
