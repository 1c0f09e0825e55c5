"""One job: why it has not run or why it failed, and what can be done to it."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from flask import url_for

from flask_backend.broker.stats import JobRecord
from flask_backend.dashboard.rendering import MAX_TEXT, PARSED_BYTES, show_large
from flask_backend.dashboard.routing import Done, Page, Pages, question
from flask_backend.dashboard.visit import RefusalError, Visit
from flask_backend.message import cut, expires_at, scheduled_at
from flask_backend.names import is_internal_tube
from flask_backend.operations.actions import Action, Target, mark_of
from flask_backend.operations.bodies import GONE, call_in, show_at_length, show_body, show_cursor
from flask_backend.operations.explanation import Facts, KnownApp, explain, gather
from flask_backend.operations.notes import decode_note
from flask_backend.operations.records import job_as_dict
from flask_backend.operations.tracebacks import fold, last_own_frame
from flask_backend.stories import Story

from .failures import act_on

pages = Pages()

HIDDEN = "hidden: you may not see arguments"
_MAX_LINES = 2000  # of a message that is not a call
_TRACE = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}")  # W3C Trace Context, traceparent


@pages.page("/job", "/job.json")
def job(visit: Visit) -> Page:
    job_id = visit.number("id")
    found = visit.console.jobs_with_bodies([job_id]).get(job_id)
    if found is None or is_internal_tube(found[0].queue):
        raise RefusalError(404, "No such job", f"Job {job_id} {GONE}.")
    record, body = found
    if visit.value("queue") not in ("", record.queue):
        raise RefusalError(
            404, "Another job", f"Job {job_id} of {visit.value('queue')} is gone: this id is another job now."
        )
    visit.require("view", {"page": "job", "queue": record.queue})
    may_view = visit.may("view_arguments", queue=record.queue)
    story, note = _find_story(visit, record)
    shown = story if may_view or story is None else _without_values(story)
    app = KnownApp(visit.backend.queues, visit.settings)
    is_large = len(body) > PARSED_BYTES
    facts = gather(visit.console, record, b"" if is_large else body, shown, app)
    if facts is None:
        raise RefusalError(404, "No such job", f"Job {job_id} {GONE}.")
    if is_large or not may_view:
        facts = replace(facts, misfit=None, cursor=None)
    reason = explain(facts)
    masked = b"" if is_large else visit.console.masking.body(record.queue, body)
    call = call_in(masked)
    trace = _trace_of(call.headers if call else {})
    values = {
        "record": record,
        "address": visit.address,
        "hidden": HIDDEN,
        "reason": reason.text,
        "story": shown,
        "note": note,
        "mark": mark_of(body),
        "may_view_arguments": may_view,
        "size": len(body),
        "call": show_body(masked, MAX_TEXT) if may_view and call else None,
        "lines": _lines(body, masked) if may_view and call is None else None,
        "cursor": show_cursor(facts.cursor.value) if facts.cursor else None,
        "trace": trace,
        "trace_url": visit.settings.trace_link.to(trace) if trace and visit.settings.trace_link else None,
        "scheduled_at": scheduled_at(call.headers) if call else None,
        "expires_at": expires_at(call.headers) if call else None,
        "parts": fold(shown.traceback) if shown and shown.traceback else None,
        "own_frame": last_own_frame(shown.traceback) if shown and shown.traceback else None,
        "events": _events(visit, facts),
        "commands": _commands(visit, record),
    }
    return Page("job.html", values, _as_data(visit, record, reason.text, shown, values))


def _find_story(visit: Visit, record: JobRecord) -> tuple[Story | None, int]:
    """Return the story of a buried job, and the id of its note, without reserving more than the newest ones."""
    if record.state != "buried":
        return None, 0
    note = visit.number("note", 0)
    if not note:
        recent = visit.stories.read_of(visit.console, record.queue)
        note = next((each.id for each in recent.of(record.queue).stories if each.job == record.id), 0)
    story = decode_note(visit.console.bodies([note]).get(note, b"")) if note else None
    if story is None or (story.job, story.queue) != (record.id, record.queue):
        return None, 0
    # Our workers' stories are shorter; another program may have written this one.
    message, traceback, call = (
        cut(text or "", MAX_TEXT) or None for text in (story.message, story.traceback, story.call)
    )
    return visit.console.masking.story(replace(story, message=message, traceback=traceback, call=call)), note


def _lines(body: bytes, masked: bytes) -> list[str]:
    """Return the lines of a message that is not a call, as many as a page shows."""
    if len(body) > PARSED_BYTES:
        return [show_large(body)]
    return cut("\n".join(show_at_length(masked)[:_MAX_LINES]), MAX_TEXT).split("\n")


def _without_values(story: Story) -> Story:
    """Return a story without what may repeat an argument: its call, its texts, and the values in its traceback."""
    return replace(story, call=None, message=None, traceback=None, reason=HIDDEN)


def _trace_of(headers: Mapping[str, Any]) -> str | None:
    parent = headers.get("traceparent")
    found = _TRACE.fullmatch(parent) if isinstance(parent, str) else None
    return found[1] if found else None


def _events(visit: Visit, facts: Facts) -> list[tuple[str, float | None]]:
    """Return what has happened to a job and will happen, with the times that are known."""
    record = facts.record
    events: list[tuple[str, float | None]] = [("put on the queue", visit.now - record.age_s)]
    counters = (
        ("reserved by workers", record.reserves),
        ("released for a retry", record.releases),
        ("back after a silent worker", record.timeouts),
        ("buried", record.buries),
        ("kicked", record.kicks),
    )
    events += [
        (f"{what}{f' {number:,} times' if number > 1 else ' once'}", None) for what, number in counters if number
    ]
    match record.state:
        case "delayed":
            events.append((f"attempt {facts.attempt} is due", visit.now + record.time_left_s))
        case "reserved":
            events.append((f"attempt {facts.attempt} runs", None))
        case "buried":
            events.append(("buried", facts.story.buried_at if facts.story else None))
        case _:
            events.append((f"attempt {facts.attempt} waits for a worker", None))
    return events


def _commands(visit: Visit, record: JobRecord) -> list[str]:
    verbs = ("retry", "delete") if record.state == "buried" else ("explain", "delete")
    return [shlex.join(["flask-backend", verb, str(record.id), "--broker", visit.address]) for verb in verbs]


def _as_data(
    visit: Visit, record: JobRecord, reason: str, story: Story | None, values: Mapping[str, Any]
) -> dict[str, Any]:
    return {
        **job_as_dict(visit.address, record),
        "explanation": reason,
        "call": values["call"],
        "body": values["lines"],
        "cursor": values["cursor"],
        "trace": values["trace"],
        "story": asdict(story) if story else None,
    }


# -- acts --------------------------------------------------------------------------------------------------------


def _target(visit: Visit) -> Target:
    return Target(visit.number("id"), visit.queue_name(), visit.value("mark") or "-", visit.number("note", 0) or None)


def _act(visit: Visit, action: Action) -> Done:
    target = _target(visit)
    then = url_for(".queue", queue=target.queue)
    if visit.value("from") == "failures":
        then = url_for(".failures")
    return act_on(visit, action, [target], then)


def _ask(visit: Visit, verb: str, detail: str) -> Page:
    target = _target(visit)
    back = url_for(".job", queue=target.queue, id=target.id, note=target.note)
    fields = [(name, visit.value(name)) for name in ("queue", "id", "mark", "note", "from")]
    return question(
        f"{verb} job {target.id} of {target.queue}?", f"{verb} job {target.id}", fields, back, details=[detail]
    )


@pages.act("/job/retry", "retry")
def retry_job(visit: Visit) -> Done:
    return _act(visit, Action.RETRY)


@pages.act("/job/delete", "delete", ask=lambda visit: _ask(visit, "Delete", "This cannot be undone."))
def delete_job(visit: Visit) -> Done:
    return _act(visit, Action.DELETE)


@pages.act("/job/cancel", "cancel", ask=lambda visit: _ask(visit, "Cancel", "It is deleted, and does not run."))
def cancel_job(visit: Visit) -> Done:
    return _act(visit, Action.CANCEL)
