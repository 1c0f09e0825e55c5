"""All queues, and the broker: the page that opens first."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import islice

from flask_backend.broker.stats import Queue
from flask_backend.dashboard.routing import Page, Pages
from flask_backend.dashboard.visit import Visit
from flask_backend.names import failures_tube, is_queue_name
from flask_backend.operations.console import Console, Rates, measure_rates
from flask_backend.operations.notes import decode_note
from flask_backend.operations.records import queue_as_dict
from flask_backend.operations.supervisors import find_pids, reload_times

pages = Pages()

# The queues that are shown, the first by name: each takes about 0.3 ms, and other programs may make any number.
MOST = 1000
# How long the page measures the rates, if it is asked to: without a script it cannot compare two of its looks.
_MEASURE_S = 1.0


@pages.page("/", "/queues.json", nav="Queues")
def queues(visit: Visit) -> Page:
    names = list(islice(filter(visit.may_view, visit.console.queue_names()), MOST + 1))
    is_complete = len(names) <= MOST
    found, rates = _look(visit.console, names[:MOST], is_measured="measure" in visit.query)
    waits = visit.console.next_waits(found)
    server = visit.console.server()
    failed_at = _find_last_failure(visit.console, found)
    values = {
        "queues": found,
        "is_complete": is_complete,
        "rates": rates,
        "waits": waits,
        "server": server,
        "buried": sum(queue.buried for queue in found),
        "address": visit.address,
        "supervisors": len(find_pids()),
        "reloads": reload_times(visit.address),
        "failed_at": failed_at,
    }
    data = {
        "broker": visit.address,
        "at": visit.now,
        "server": asdict(server) if server else None,
        "last_failure_at": failed_at,
        "is_complete": is_complete,
        "queues": [
            queue_as_dict(visit.address, queue, waits.get(queue.name), rates.get(queue.name)) for queue in found
        ],
    }
    return Page("queues.html", values, data)


def _find_last_failure(console: Console, queues: Sequence[Queue]) -> float | None:
    """Return when the newest story that the broker shows was written: each tube of stories shows its newest one."""
    tubes = [failures_tube(queue.name) for queue in queues if queue.buried]
    notes = console.next_ready_of(filter(is_queue_name, tubes)).values()
    stories = map(decode_note, console.bodies(note.id for note in notes).values())
    return max((story.buried_at for story in stories if story), default=None)


def _look(console: Console, names: Sequence[str], *, is_measured: bool) -> tuple[Sequence[Queue], Mapping[str, Rates]]:
    before, began = console.queues(names), time.monotonic()
    if not is_measured:
        return before, {}
    time.sleep(_MEASURE_S)  # a person has asked for the rates of this time
    after = console.queues(names)
    return after, measure_rates(before, after, time.monotonic() - began)
