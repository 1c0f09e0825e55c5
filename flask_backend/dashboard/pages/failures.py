"""Why jobs are buried: all failures by group and age, one group with its jobs, and acts on all that match."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from flask import url_for

from flask_backend.dashboard.rendering import LISTED_BYTES, show_large
from flask_backend.dashboard.routing import Done, Page, Pages, question
from flask_backend.dashboard.visit import RefusalError, Visit
from flask_backend.operations.actions import CHUNK, Action, Selection, Target, act_on_jobs, act_on_selection, mark_of
from flask_backend.operations.bodies import show_body
from flask_backend.operations.failures import Aged, Count, FailureGroup, Pattern, count_by_age, group_of
from flask_backend.operations.listing import PAGE, list_stories
from flask_backend.operations.notes import StoredStory
from flask_backend.operations.recent import RecentStories
from flask_backend.quantities import count_of
from flask_backend.visible import MAX_NAME, visible

pages = Pages()

# Characters of a pattern, and of a call in a list.
_MAX_PATTERN, _MAX_CALL = 500, 200
# The groups on one page, the newest ones: a row takes about 0.3 ms, and there may be as many as stories.
_MOST_GROUPS = 50


# -- pages -------------------------------------------------------------------------------------------------------


@pages.page("/failures", "/failures.json", nav="Failures")
def failures(visit: Visit) -> Page:
    queue = visit.queue_name() if visit.value("queue") else None
    recent = _read(visit, queue)
    pattern = find_pattern(visit)
    found = count_by_age(recent, visit.now, pattern)
    others = [each for each in recent.failures if each.untold or each.unread]
    selection = Selection.of((story for each in found for story in each.group.stories), queue, pattern=pattern)
    values = {
        "recent": recent,
        "queue": queue,
        "pattern": pattern.text if pattern else "",
        "found": found[:_MOST_GROUPS],
        "unshown": len(found) - _MOST_GROUPS,
        "others": others,
        "message_of": partial(_message_of, visit),
        "fields": fields_of(selection) if pattern and found else None,
    }
    return Page("failures.html", values, partial(_as_data, visit, recent, found))


@pages.page("/failures/group", "/failures/group.json")
def group(visit: Visit) -> Page:
    name, endpoint, kind = visit.queue_name(), visit.value("task") or None, visit.value("kind")
    visit.require("view", {"page": "group", "queue": name})
    recent = visit.stories.read_of(visit.console, name).only(visit.may_view)
    found = group_of(recent.of(name), endpoint, kind)
    before = visit.number("before", 0)
    stories: Sequence[StoredStory] = [each for each in found.stories if not before or each.id < before]
    more: int | None = stories[PAGE - 1].id if len(stories) > PAGE else None
    stories = stories[:PAGE]
    if before and not stories:
        further = list_stories(visit.console, name, found.covers, before)
        stories, more = further.stories, further.before
    elif more is None and recent.of(name).unread:
        more = stories[-1].id if stories else _oldest(recent.of(name).stories)
    rows = _rows(visit, name, stories)
    selection = Selection.of(found.stories, name, group=(endpoint, kind))
    count = Count(len(found.stories), not recent.of(name).unread)
    values = {
        "group": found,
        "count": count,
        "recent": recent,
        "rows": rows,
        "before": before,
        "more": more,
        "may_view_arguments": visit.may("view_arguments", queue=name),
        "fields": fields_of(selection) if found.stories else None,
    }
    data = {
        **_group_as_data(found),
        "count": count.number,
        "is_exact": count.is_exact,
        "before": more,
        "jobs": [{key: row[key] for key in ("job", "note", "buried_at", "message", "call")} for row in rows],
    }
    return Page("group.html", values, data)


def _read(visit: Visit, queue: str | None) -> RecentStories:
    """Return the newest stories of all queues that the person may view, or of one."""
    return visit.stories.read(visit.console, queue).only(visit.may_view)


def _oldest(stories: Sequence[StoredStory]) -> int | None:
    return min((each.id for each in stories), default=None)


def _rows(visit: Visit, queue: str, stories: Sequence[StoredStory]) -> list[dict[str, Any]]:
    """Return what is shown of stories and their jobs, and what an act needs to find the same jobs again."""
    bodies = visit.console.bodies(each.job for each in stories)
    may_view = visit.may("view_arguments", queue=queue)
    rows: list[dict[str, Any]] = []
    for each in stories:
        body = bodies.get(each.job)
        if body is None:  # retried or deleted since
            continue
        call = None
        if may_view:
            is_large = len(body) > LISTED_BYTES
            call = show_large(body) if is_large else show_body(visit.console.masking.body(queue, body), _MAX_CALL)
        rows.append(
            {
                "job": each.job,
                "note": each.id,
                "mark": mark_of(body),
                "buried_at": each.buried_at,
                "message": each.message if may_view else None,
                "call": call,
            }
        )
    return rows


def _message_of(visit: Visit, found: FailureGroup) -> str | None:
    """Return the message of the newest failure of a group, if the person may see it."""
    return found.newest.message if visit.may("view_arguments", queue=found.queue) else None


def find_pattern(visit: Visit) -> Pattern | None:
    text = visit.value("pattern").strip()[:_MAX_PATTERN]
    return Pattern(text) if text.strip("/") else None


def _as_data(visit: Visit, recent: RecentStories, found: Iterable[Aged]) -> dict[str, Any]:
    return {
        "broker": visit.address,
        "read_at": recent.read_at,
        "stale_since": recent.stale_since,
        "is_complete": recent.is_complete,
        "buried": recent.total,
        "queues": [
            {"queue": each.queue, "buried": each.total, "without_story": each.untold, "unread": each.unread}
            for each in recent.failures
        ],
        "groups": [
            {
                **_group_as_data(each.group),
                **{name: _count_as_data(count) for name, count in zip(("1h", "24h", "7d"), each.recent, strict=True)},
                "all": _count_as_data(each.all),
                "last": each.group.newest.buried_at,
                "newest": each.group.newest.job,
                "message": _message_of(visit, each.group),
            }
            for each in found
        ],
    }


def _count_as_data(count: Count) -> dict[str, Any]:
    return {"number": count.number, "is_exact": count.is_exact}


def _group_as_data(found: FailureGroup) -> dict[str, Any]:
    return {"queue": found.queue, "endpoint": found.endpoint, "kind": found.kind}


# -- acts on all that match --------------------------------------------------------------------------------------


def fields_of(selection: Selection) -> dict[str, str]:
    """Return a selection as the fields of a form or a query."""
    fields = {
        "newest": str(selection.newest_id),
        "until": repr(selection.until),
        "queue": selection.queue,
        "task": selection.endpoint,
        "kind": selection.kind,
        "pattern": selection.pattern.text if selection.pattern else None,
    }
    return {name: value for name, value in fields.items() if value}


def _selection_in(visit: Visit) -> Selection:
    """Return the selection that the request names; raise :exc:`RefusalError` without one."""
    queue = visit.queue_name() if visit.value("queue") else None
    kind, pattern = visit.value("kind") or None, find_pattern(visit)
    try:
        until = float(visit.value("until"))
    except ValueError:
        until = 0.0
    newest = visit.number("newest", 0)
    if not newest or not until or (kind is None and pattern is None):
        raise RefusalError(400, "Bad request", "Choose the failures on the page of all failures, or of one group.")
    return Selection(newest, until, queue, visit.value("task") or None, kind, pattern)


def _queues_of(visit: Visit, action: Action, selection: Selection, recent: RecentStories) -> list[str]:
    """Return the queues of a selection in which the person may do it."""
    if selection.queue is not None:
        return [selection.queue]
    return [each.queue for each in recent.failures if visit.may(action, queue=each.queue)]


def _count(selection: Selection, recent: RecentStories, queues: Iterable[str]) -> Count:
    found = [recent.of(queue) for queue in queues]
    number = sum(selection.covers(story) for each in found for story in each.stories)
    return Count(number, not any(each.unread for each in found))


def _ask(visit: Visit, action: Action) -> Page:
    selection = _selection_in(visit)
    recent = _read(visit, selection.queue)
    count = _count(selection, recent, _queues_of(visit, action, selection, recent))
    if not count.number:
        raise RefusalError(409, "Nothing to do", "No buried job matches any longer.")
    where = selection.queue or "all queues"
    which = selection.pattern.text if selection.pattern else f"{selection.endpoint or '-'} / {selection.kind}"
    jobs = "job" if str(count) == "1" else "jobs"
    details = ["Each is ready at once, and gets its full number of attempts again."]
    if action is Action.DELETE:
        details = ["Their stories are deleted with them. This cannot be undone."]
    if not count.is_exact:
        details.append(
            f"Of {count_of(recent.total, 'buried job')}, {recent.count:,} were read; all that match are meant."
        )
    details.append("Jobs that fail from now on are left alone.")
    pattern = selection.pattern.text if selection.pattern else f"{selection.endpoint or ''}/{selection.kind}"
    command = ["flask-backend", action.value, "--all", "--match", pattern, "--broker", visit.address]
    command += ["--queue", selection.queue] if selection.queue else []
    return question(
        f"{action.capitalize()} {count} {jobs} of {where} that failed with {which}?",
        f"{action.capitalize()} {count} {jobs}",
        [*fields_of(selection).items(), ("total", count.number if count.is_exact else recent.total)],
        _back(selection),
        details=details,
        command=shlex.join(visible(word, 1000) for word in command),
    )


def _back(selection: Selection) -> str:
    if selection.pattern is not None:
        return url_for(".failures", queue=selection.queue, pattern=selection.pattern.text)
    return url_for(".group", queue=selection.queue, task=selection.endpoint or "", kind=selection.kind)


def _act(visit: Visit, action: Action) -> Done:
    selection = _selection_in(visit)
    so_far, skipped = visit.number("so_far", 0), visit.number("skipped", 0)
    recent = _read(visit, selection.queue)
    done: list[int] = []
    is_finished = True
    unread = 0
    for queue in _queues_of(visit, action, selection, recent):
        progress = act_on_selection(visit.console, action, replace(selection, queue=queue), limit=CHUNK)
        done += progress.done
        skipped += progress.skipped
        unread += progress.unread
        if not progress.is_finished:
            is_finished = progress.is_stuck
            break
    visit.stories.forget()
    so_far += len(done)
    pattern = selection.pattern.text if selection.pattern else f"{selection.endpoint or ''}/{selection.kind}"
    what = f"{action.past} {count_of(len(done), 'job')} that failed with {visible(pattern, MAX_NAME)}"
    total = max(visit.number("total", 0), so_far)
    if not is_finished:
        fields = [*fields_of(selection).items(), ("so_far", so_far), ("skipped", skipped), ("total", total)]
        bulk = {"past": action.past, "state": "buried", "endpoint": f"{action}_failures"}
        values = {
            "bulk": bulk,
            "queue": selection.queue or "all queues",
            "fields": fields,
            "total": total,
            "so_far": so_far,
            "back": _back(selection),
        }
        return Done(what, Page("progress.html", values), len(done), done, pattern)
    notice = f"{action.past} {count_of(so_far, 'job')}"
    notice += f"; {skipped:,} were no longer buried" if skipped else ""
    notice += (
        f"; {count_of(unread, 'story')[:-1]}ies could not be read, since others read them: try again" if unread else ""
    )
    return Done(what, url_for(".failures"), len(done), done, pattern, notice=notice)


@pages.act("/failures/retry", "retry", ask=lambda visit: _ask(visit, Action.RETRY))
def retry_failures(visit: Visit) -> Done:
    return _act(visit, Action.RETRY)


@pages.act("/failures/delete", "delete", ask=lambda visit: _ask(visit, Action.DELETE))
def delete_failures(visit: Visit) -> Done:
    return _act(visit, Action.DELETE)


# -- acts on the ticked ones -------------------------------------------------------------------------------------


def _act_on_ticked(visit: Visit, action: Action) -> Done:
    queue, ids = visit.queue_name(), visit.ids()
    seen = targets_in(visit, queue)
    if not ids or not set(ids) <= seen.keys():
        raise RefusalError(400, "Nothing is ticked", "Nothing was done: tick the jobs in the table.")
    return act_on(visit, action, [seen[job_id] for job_id in ids], _back_to_group(visit, queue))


def _back_to_group(visit: Visit, queue: str) -> str:
    return url_for(".group", queue=queue, task=visit.value("task"), kind=visit.value("kind"))


def targets_in(visit: Visit, queue: str) -> Mapping[int, Target]:
    """Return the jobs that the page of the form has shown, by their ids."""
    seen: dict[int, Target] = {}
    for text in visit.values("seen"):
        job_id, _, rest = text.partition(" ")
        note, _, mark = rest.partition(" ")
        if job_id.isdecimal() and note.isdecimal() and mark:
            seen[int(job_id)] = Target(int(job_id), queue, mark, int(note) or None)
    return seen


def act_on(visit: Visit, action: Action, targets: Sequence[Target], then: str) -> Done:
    """Do it to jobs as they were seen; say for the others why not."""
    result = act_on_jobs(visit.console, action, targets)
    visit.stories.forget()
    queue = targets[0].queue
    what = f"{action.past} {count_of(len(result.done), 'job')} of {queue}"
    refusals = "; ".join(f"job {job_id} is {reason}" for job_id, reason in list(result.refused.items())[:3])
    more = f"; and {len(result.refused) - 3:,} more" if len(result.refused) > 3 else ""  # noqa: PLR2004  # as above
    if not result.done:
        ids = [target.id for target in targets]
        return Done(what, then, 0, ids, failure=f"{refusals}{more}")
    notice = f"{what}; not done: {refusals}{more}" if refusals else what
    return Done(what, then, len(result.done), result.done, notice=notice)


@pages.act("/failures/group/retry", "retry")
def retry_ticked(visit: Visit) -> Done:
    return _act_on_ticked(visit, Action.RETRY)


@pages.act("/failures/group/delete", "delete")
def delete_ticked(visit: Visit) -> Done:
    return _act_on_ticked(visit, Action.DELETE)
