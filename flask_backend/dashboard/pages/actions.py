"""What people have done in the dashboard, as far as this web process knows."""

from __future__ import annotations

import os
from dataclasses import asdict

from flask_backend.dashboard.audit import REMEMBERED
from flask_backend.dashboard.routing import Page, Pages
from flask_backend.dashboard.visit import Visit

pages = Pages()


@pages.page("/actions", "/actions.json", nav="Actions")
def actions(visit: Visit) -> Page:
    found = [each for each in visit.record.latest() if each.queue is None or visit.may_view(each.queue)]
    values = {"actions": found, "pid": os.getpid(), "most": REMEMBERED}
    return Page("actions.html", values, {"pid": os.getpid(), "actions": [asdict(each) for each in found]})
