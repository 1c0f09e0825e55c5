"""Show the stories of failures as text."""

from __future__ import annotations

import textwrap
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from flask_backend.message import cut
from flask_backend.tracebacks import MAX_MESSAGE, MAX_TRACEBACK
from flask_backend.visible import visible, visible_lines

from .bodies import show_expiry
from .output import LABEL, echo, labelled, show_seconds, show_time, terminal_width

if TYPE_CHECKING:
    from flask_backend.stories import Story

# Characters of a story in one line, for texts that name the command that shows all of it.
_MAX_LINE = 200


def show_story(story: Story) -> str:
    """Return why a job is buried, cut to the length of a line or less."""
    return cut(visible(": ".join(filter(None, [story.reason, story.exception, story.message]))), _MAX_LINE)


def echo_story(note: Story) -> None:
    """Print all fields of a note."""
    echo(f"job {note.job} of {note.queue}", bold=True)
    room = max(LABEL + LABEL, terminal_width()) - LABEL
    for name, value in _story_fields(note):
        lines = textwrap.wrap(visible(value, MAX_MESSAGE), room, break_on_hyphens=False) or [""]
        for label, line in zip([name, *[""] * (len(lines) - 1)], lines, strict=True):
            echo(labelled(label, line))
    if note.traceback:
        echo()
        echo(visible_lines(note.traceback, MAX_TRACEBACK).expandtabs())


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
