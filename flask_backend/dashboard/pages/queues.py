"""All queues, and the broker: the page that opens first."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict

from flask_backend.broker.stats import Queue
from flask_backend.dashboard.routing import Page, Pages
from flask_backend.dashboard.visit import Visit
from flask_backend.operations.console import Console, Rates, measure_rates
from flask_backend.operations.records import queue_as_dict
from flask_backend.operations.supervisors import find_pids

pages = Pages()

# How long the page measures the rates, if it is asked to: without a script it cannot compare two of its looks.
_MEASURE_S = 1.0


@pages.page("/", "/queues.json", nav="Queues")
def queues(visit: Visit) -> Page:
    found, rates = _look(visit.console, is_measured="measure" in visit.query)
    waits = visit.console.next_waits(found)
    server = visit.console.server()
    values = {
        "queues": found,
        "rates": rates,
        "waits": waits,
        "server": server,
        "buried": sum(queue.buried for queue in found),
        "address": visit.address,
        "supervisors": len(find_pids()),
    }
    data = {
        "broker": visit.address,
        "at": visit.now,
        "server": asdict(server) if server else None,
        "queues": [
            queue_as_dict(visit.address, queue, waits.get(queue.name), rates.get(queue.name)) for queue in found
        ],
    }
    return Page("queues.html", values, data)


def _look(console: Console, *, is_measured: bool) -> tuple[Sequence[Queue], Mapping[str, Rates]]:
    before, began = console.queues(), time.monotonic()
    if not is_measured:
        return before, {}
    time.sleep(_MEASURE_S)
    after = console.queues()
    return after, measure_rates(before, after, time.monotonic() - began)
