"""The periodic tasks, and what can be done with each."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import asdict

from flask import url_for

from flask_backend.dashboard.routing import Done, Page, Pages, question
from flask_backend.dashboard.visit import RefusalError, Visit
from flask_backend.operations.schedules import Schedule, ScheduleError, Schedules
from flask_backend.quantities import show_seconds
from flask_backend.visible import MAX_NAME, visible

pages = Pages()

# How long the page waits for tokens that a scheduler holds: it does so for milliseconds.
_WITHIN_S = 0.5


@pages.page("/schedules", "/schedules.json", nav="Schedules")
def schedules(visit: Visit) -> Page:
    with Schedules(visit.settings) as reader:
        found = [queue for queue in reader.queues(within_s=_WITHIN_S) if visit.may_view(queue.name)]
    data = {"broker": visit.address, "at": visit.now, "queues": [asdict(queue) for queue in found]}
    return Page("schedules.html", {"queues": found, "policy_of": policy_of}, data)


def policy_of(schedule: Schedule) -> str:
    """Return in words what the scheduler does when it comes late."""
    grace = None if schedule.grace_s is None else show_seconds(schedule.grace_s)
    if schedule.catch_up == "skip":
        late = f"no call when over {grace} late"
    else:
        late = f"catches up once, within {grace}" if grace else "catches up once"
    return late if schedule.overlap else f"{late}; no overlap"


@pages.act("/schedules/run", "schedule")
def run_schedule(visit: Visit) -> Done:
    queue, name = visit.queue_name(), visit.value("name")
    with Schedules(visit.settings) as schedules:
        try:
            started = schedules.run(queue, name)
        except ScheduleError as error:
            raise _not_done(error) from error
    what = f"scheduled {visible(name, MAX_NAME)} of {queue} now, as job {started.job}"
    return Done(what, url_for(".schedules"), ids=[started.job])


@pages.act("/schedules/pause", "schedule")
def pause_schedule(visit: Visit) -> Done:
    return _change(visit, "paused", Schedules.pause)


@pages.act("/schedules/resume", "schedule")
def resume_schedule(visit: Visit) -> Done:
    return _change(visit, "resumed", Schedules.resume)


def _ask_to_forget(visit: Visit) -> Page:
    queue, name = visit.queue_name(), visit.value("name")
    shown = visible(name, MAX_NAME)
    return question(
        f"Forget {shown} of {queue}?",
        f"Forget {shown}",
        [("queue", queue), ("name", name)],
        url_for(".schedules"),
        details=["For a periodic task that was removed from the app: one that is there is registered again."],
        command=f"flask-backend schedules forget {shlex.quote(name)} --broker {visit.address}",
    )


@pages.act("/schedules/forget", "schedule", ask=_ask_to_forget)
def forget_schedule(visit: Visit) -> Done:
    queue, name = visit.queue_name(), visit.value("name")
    with Schedules(visit.settings) as schedules:
        try:
            schedules.forget(queue, name)
        except ScheduleError as error:
            raise _not_done(error) from error
    return Done(f"forgot {visible(name, MAX_NAME)} of {queue}", url_for(".schedules"))


def _change(visit: Visit, past: str, change: Callable[[Schedules, str, str], Schedule]) -> Done:
    queue, name = visit.queue_name(), visit.value("name")
    with Schedules(visit.settings) as schedules:
        try:
            change(schedules, queue, name)
        except ScheduleError as error:
            raise _not_done(error) from error
    return Done(f"{past} {visible(name, MAX_NAME)} of {queue}", url_for(".schedules"))


def _not_done(error: ScheduleError) -> RefusalError:
    return RefusalError(409, "Not done", f"{error}.")
