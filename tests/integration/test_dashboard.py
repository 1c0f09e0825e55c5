"""The dashboard in an app, on a real broker."""

from __future__ import annotations

import pytest
from support.dashboards import OWN, make_app
from support.stories import bury_many

from flask_backend.config import Address, Settings
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


def test_the_newest_jobs_are_listed_by_state_and_further_ones_are_looked_up(app, broker, monkeypatch):
    with app.app_context():
        app.extensions["welcome"].map([f"user{number}" for number in range(60)])
        app.extensions["welcome"].options(delay=60)("late")
    client = app.test_client()
    told = client.get("/backend/queue.json?queue=mail").json
    assert (len(told["jobs"]), told["jobs"][0]["call"]) == (50, 'welcome("late")')
    page = client.get("/backend/queue?queue=mail&state=ready").text
    assert "welcome(&#34;user59&#34;)" in page
    assert "late" not in page
    assert "The newest 50 of 60;" in page
    before = client.get("/backend/queue.json?queue=mail&state=ready").json["before"]
    older = client.get(f"/backend/queue.json?queue=mail&state=ready&before={before}").json
    assert [job["call"] for job in older["jobs"]] == [f'welcome("user{number}")' for number in range(9, -1, -1)]


def test_a_get_sends_nothing_that_changes_the_broker(app, broker):
    with app.app_context():
        app.extensions["welcome"].map(["ann", "bob"])
    client = app.test_client()

    def commands():
        with broker.client() as other:
            stats = other.stats()
        changing = ("put", "delete", "release", "bury", "kick", "touch", "pause-tube", "kick-job")
        return {name: stats[f"cmd-{name}"] for name in changing if f"cmd-{name}" in stats} | {
            "total-jobs": stats["total-jobs"]
        }

    before = commands()
    for page in (
        "",
        "queue?queue=mail",
        "queue/delete-ready?queue=mail",
        "workers",
        "actions",
        "queues.json?measure=1",
    ):
        assert client.get(f"/backend/{page}").status_code == 200
    assert commands() == before


def test_who_may_not_see_arguments_sees_none_in_the_list(broker):
    app = make_app(broker.uri, lambda action, what: action == "view")
    with app.app_context():
        app.extensions["welcome"]("ann@example.com")
    broker.put("mail", b"a message for ann@example.com")
    client = app.test_client()
    for path in ("queue?queue=mail", "queue.json?queue=mail"):
        answer = client.get(f"/backend/{path}")
        assert "ann@example.com" not in answer.text
        assert "welcome(" in answer.text


def test_secret_arguments_are_masked_by_the_names_of_the_parameters(broker):
    app = make_app(broker.uri)
    backend = app.extensions["backend"]

    @backend.task("mail")
    def log_in(user: str, password: str) -> None: ...

    with app.app_context():
        log_in("ann", "hunter2")
    answer = app.test_client().get("/backend/queue?queue=mail")
    assert "hunter2" not in answer.text
    assert "***" in answer.text


def test_hostile_bodies_keep_the_page_whole(app, broker):
    for body in (
        b"<script>alert(1)</script>",
        "\u202etxt\x1b[31m".encode(),
        b"\xff\xfe\x00",
        b'"' * 60_000,
        b"[" * 50_000,
        b"",
    ):
        broker.put("mail", body)
    broker.put("mail", b'{"endpoint": "<b>x</b>", "args": ["<img src=x>"]}')
    answer = app.test_client().get("/backend/queue?queue=mail")
    assert answer.status_code == 200
    for text in ("<script>alert", "<b>x", "<img", "\u202e", "\x1b", "\x00"):
        assert text not in answer.text
    assert len(answer.text) < 20_000


def test_the_page_of_a_queue_links_to_its_metrics(broker):
    broker.put("com.example/mail", b"{}")
    config = {"BACKEND_DASHBOARD_METRICS_URL": "https://example.com/?q={queue}"}
    page = make_app(broker.uri, config=config).test_client().get("/backend/queue?queue=com.example/mail").text
    assert 'href="https://example.com/?q=com.example%2Fmail"' in page


def test_the_strip_shows_when_a_job_was_last_buried(app, broker):
    bury_many(Settings(Address("127.0.0.1", broker.port)), "mail", 2, b"{}", buried_at=lambda number: 1000.0 + number)
    broker.put("z" * 200, b"{}")  # a queue without room for the tube of its stories
    client = app.test_client()
    assert client.get("/backend/queues.json").json["last_failure_at"] == 1001.0
    assert '<time datetime="1970-01-01T00:16:41Z"' in client.get("/backend/").text


def test_the_page_of_a_job_links_to_its_trace(broker):
    trace = "0af7651916cd43dd8448eb211c80319c"
    headers = f'{{"traceparent": "00-{trace}-b7ad6b7169203331-01"}}'
    job = broker.put("mail", f'{{"endpoint": "welcome", "args": ["ann"], "headers": {headers}}}'.encode())
    config = {"BACKEND_DASHBOARD_TRACE_URL": "https://example.com/trace/{trace}"}
    page = make_app(broker.uri, config=config).test_client().get(f"/backend/job?id={job}&queue=mail").text
    assert f'href="https://example.com/trace/{trace}"' in page


def test_very_many_queues_are_cut_and_what_is_shown_says_so(app, broker, monkeypatch):
    monkeypatch.setattr("flask_backend.dashboard.pages.queues.MOST", 3)  # "default" is there, and not shown
    client = app.test_client()
    for name in ("b", "c"):
        broker.put(name, b"{}")
    assert client.get("/backend/queues.json").json["is_complete"]
    assert "≥" not in client.get("/backend/").text
    for name in ("a", "d"):
        broker.put(name, b"{}")
    told = client.get("/backend/queues.json").json
    assert ([queue["queue"] for queue in told["queues"]], told["is_complete"]) == (["a", "b", "c"], False)
    page = client.get("/backend/").text
    assert "Only the first 3 queues by name are shown and counted." in page
    assert "<dt>jobs</dt><dd>≥ 3</dd>" in page
    assert client.get("/backend/queue?queue=d").status_code == 200
