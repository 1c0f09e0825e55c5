"""The dashboard's page of the batches."""

from __future__ import annotations

import pytest
from support import dashboard_app
from support.dashboard_app import MAIL, REPORTS, backend, report, welcome
from support.waiting import wait_until

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
