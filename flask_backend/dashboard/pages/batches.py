"""The batches that are not complete."""

from __future__ import annotations

from dataclasses import asdict

from flask_backend.dashboard.routing import Page, Pages
from flask_backend.dashboard.visit import Visit
from flask_backend.operations.batches import Batches

pages = Pages()

# The oldest are shown: those that hang are among them.
MOST = 100


@pages.page("/batches", "/batches.json", nav="Batches")
def batches(visit: Visit) -> Page:
    all_batches = visit.console.batches(MOST)
    shown = [batch for batch in all_batches.found if visit.may_view(batch.queue)]
    found = Batches(shown, all_batches.count - len(all_batches.found) + len(shown))
    data = {
        "broker": visit.address,
        "at": visit.now,
        "count": found.count,
        "batches": [asdict(batch) for batch in found.found],
    }
    return Page("batches.html", {"batches": found}, data)
