"""The dashboard in an app, on a real broker."""

from __future__ import annotations

import pytest
from support.dashboards import OWN, make_app

from flask_backend.signals import dashboard_action


@pytest.fixture
def app(broker):
    return make_app(broker.uri)


def test_the_queues_are_shown_with_their_numbers(app):
    with app.app_context():
        app.extensions["welcome"].map(["ann", "bob"])
    client = app.test_client()
    page = client.get("/backend/")
    assert page.status_code == 200
    assert "no worker" in page.text
    [queue] = client.get("/backend/queues.json").json["queues"]
    assert (queue["queue"], queue["ready"], queue["put_per_s"]) == ("mail", 2, None)
    [queue] = client.get("/backend/queues.json?measure=1").json["queues"]
    assert queue["put_per_s"] == 0


def test_an_empty_broker_teaches(app):
    assert "flask-backend supervise" in app.test_client().get("/backend/").text


def test_without_authorize_each_page_is_closed_and_names_the_line(broker):
    client = make_app(broker.uri, None).test_client()
    for path in ("/backend/", "/backend/queues.json", "/backend/queue?queue=mail"):
        answer = client.get(path)
        assert answer.status_code == 403
        assert "Dashboard(authorize=may)" in answer.text
    assert client.post("/backend/queue/pause", data={"queue": "mail", "seconds": 60}, headers=OWN).status_code == 403


def test_a_queue_is_paused_and_resumed_and_both_are_recorded(app):
    heard = []

    def hear(sender, **facts):
        heard.append((sender, facts))

    dashboard_action.connect(hear)
    client = app.test_client()
    with app.app_context():
        app.extensions["welcome"]("ann")
    answer = client.post("/backend/queue/pause", data={"queue": "mail", "seconds": 600}, headers=OWN)
    assert (answer.status_code, answer.location) == (303, "/backend/queue?queue=mail")
    assert "paused mail for 10m" in client.get(answer.location).text
    assert "paused mail for 10m" not in client.get(answer.location).text
    assert client.get("/backend/queue.json?queue=mail").json["pause_left_s"] > 500
    client.post("/backend/queue/resume", data={"queue": "mail"}, headers=OWN)
    assert client.get("/backend/queue.json?queue=mail").json["pause_left_s"] == 0
    assert [(sender is app, facts["action"], facts["what"], facts["outcome"]) for sender, facts in heard] == [
        (True, "pause", "paused mail for 10m", "done"),
        (True, "pause", "resumed mail", "done"),
    ]


def test_a_denied_control_is_not_rendered_and_refused_on_post(broker):
    app = make_app(broker.uri, lambda action, what: action == "view")
    with app.app_context():
        app.extensions["welcome"]("ann")
    client = app.test_client()
    page = client.get("/backend/queue?queue=mail")
    assert "<form" not in page.text
    answer = client.post("/backend/queue/pause", data={"queue": "mail", "seconds": 60}, headers=OWN)
    assert (answer.status_code, "You may not pause here." in answer.text) == (403, True)
    assert client.get("/backend/queue.json?queue=mail").json["pause_left_s"] == 0


def test_a_post_from_elsewhere_changes_nothing(app):
    with app.app_context():
        app.extensions["welcome"]("ann")
    client = app.test_client()
    for headers in ({}, {"Sec-Fetch-Site": "cross-site"}, {"Origin": "https://evil.example"}):
        answer = client.post("/backend/queue/pause", data={"queue": "mail", "seconds": 60}, headers=headers)
        assert answer.status_code == 403
    assert client.get("/backend/queue.json?queue=mail").json["pause_left_s"] == 0


def test_a_broker_that_is_away_leaves_the_page_its_navigation(app, broker):
    broker.stop()
    answer = app.test_client().get("/backend/")
    assert answer.status_code == 503
    assert 'aria-current="page"' in answer.text
    assert broker.uri.removeprefix("btq://") in answer.text
    assert app.test_client().get("/backend/queues.json").status_code == 503
    assert app.test_client().head("/backend/").status_code == 200
