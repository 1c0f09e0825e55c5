"""One queue, and what can be done to it."""

from __future__ import annotations

from flask import url_for

from flask_backend.broker.stats import UNTIL_RESUMED_S, Queue
from flask_backend.dashboard.pages.queues import queue_as_dict
from flask_backend.dashboard.routing import Done, Page, Pages
from flask_backend.dashboard.visit import RefusalError, Visit
from flask_backend.quantities import show_seconds

pages = Pages()

# The pauses that the page offers, in seconds.
PAUSES_S = (60, 600, 3600, 86400, UNTIL_RESUMED_S)


@pages.page("/queue", "/queue.json")
def queue(visit: Visit) -> Page:
    found = find_queue(visit)
    waits = visit.console.next_waits([found])
    values = {
        "queue": found,
        "next_wait_s": waits.get(found.name),
        "pauses": PAUSES_S[:-1],
        "until_resumed": PAUSES_S[-1],
    }
    return Page("queue.html", values, {"broker": visit.address, "at": visit.now, **queue_as_dict(found, waits, {})})


@pages.act("/queue/pause", "pause")
def pause(visit: Visit) -> Done:
    name, seconds = visit.queue_name(), visit.number("seconds")
    if not 0 < seconds <= UNTIL_RESUMED_S:
        raise RefusalError(400, "Bad request", f"seconds is {seconds}; expected from 1 to {UNTIL_RESUMED_S}.")
    duration = "until it is resumed" if seconds == UNTIL_RESUMED_S else f"for {show_seconds(seconds)}"
    return _set_pause(visit, name, seconds, f"paused {name} {duration}")


@pages.act("/queue/resume", "pause")
def resume(visit: Visit) -> Done:
    name = visit.queue_name()
    return _set_pause(visit, name, 0, f"resumed {name}")


def find_queue(visit: Visit) -> Queue:
    """Return the queue that the request names; raise :exc:`RefusalError` if the broker has no such queue."""
    name = visit.queue_name()
    found = visit.console.queue(name)
    if found is None:
        raise _no_queue(name)
    return found


def _set_pause(visit: Visit, name: str, seconds: int, what: str) -> Done:
    if not visit.console.pause(name, seconds):
        raise _no_queue(name)
    return Done(what, url_for(".queue", queue=name))


def _no_queue(name: str) -> RefusalError:
    return RefusalError(404, "No such queue", f"The broker has no queue {name}: it has no jobs and no workers.")
