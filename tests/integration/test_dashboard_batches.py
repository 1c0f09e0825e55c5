"""The dashboard's page of the batches."""

from __future__ import annotations

import json

import pytest
from support import dashboard_app
from support.dashboard_app import MAIL, REPORTS, backend, report, welcome
from support.waiting import wait_until

from flask_backend.names import batch_tube

APP = f"{dashboard_app.__file__}:create_app"


@pytest.fixture
def app(broker):
    app = dashboard_app.create_app(broker.uri)
    with app.app_context():
        yield app


def test_page_teaches_where_no_batch_is_under_way(app):
    assert "with backend.batch() as batch:" in app.test_client().get("/backend/batches").text


def test_batch_is_shown_with_what_is_done_and_what_holds_it_up(app, broker, supervise):
    with backend.batch() as batch:
        batch.on_complete(report, 2026)
        batch.map(welcome, ["ann@example.com", "bob@example.com", "nobody"])
    client = app.test_client()
    [shown] = client.get("/backend/batches.json").json["batches"]
    assert (shown["callback"], shown["queue"], shown["members"], shown["done"]) == ("report", REPORTS, 3, 0)
    supervise("--queue", f"{MAIL}=1", app=APP)
    wait_until(lambda: client.get("/backend/batches.json").json["batches"][0]["buried"], "a call is buried")
    page = client.get("/backend/batches").text
    assert "2 of 3" in page
    assert '<td data-label="Buried" class="n bad">1</td>' in page


@pytest.mark.parametrize(
    "forged",
    [
        {"ids": 5},
        {"ids": [5, [1], ["a", 1, 1], [1, 1, -5], [1, 2**64, 3]]},
        {"ids": [[1, 1, 10**12]]},
        {"more": "itself"},
        {"members": -1},
        {"members": 10**400},
    ],
)
def test_records_of_other_programs_neither_break_nor_hold_up_the_page(app, broker, forged):
    tube = batch_tube("forged")
    facts = {"callback": "x", "queue": "mail", "queues": ["mail"], "when": "done", "members": 1, "ids": [[1, 1, 1]]}
    last = broker.put(tube, b"")
    if forged.get("more"):
        forged = {"more": last + 1}
    assert broker.put(tube, json.dumps({**facts, **forged}).encode(), delay=800_000_000) == last + 1
    for page in ("batches", "batches.json"):
        answer = app.test_client().get(f"/backend/{page}")
        assert answer.status_code == 200
        assert ("forged" in answer.text) == ("members" not in forged)
