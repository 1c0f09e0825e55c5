"""A person who may view one queue only: no page, number, act or error shows another one."""

from __future__ import annotations

import pytest
from support import dashboard_app
from support.dashboard_app import MAIL, REPORTS, report, tidy
from support.dashboards import OWN, answer_form, make_app
from support.stories import bury_many
from support.waiting import wait_until

from flask_backend import Backend
from flask_backend.config import Address, Settings
from flask_backend.dashboard import Dashboard

pytestmark = pytest.mark.any_broker

MINE, OTHERS = "mail", "payroll"
GROUP = "failures/group?task=welcome&kind=ValueError"
PAGES = ("", "queue", "failures", GROUP, "job?id=1", "workers", "schedules", "batches", "actions")


def may(action, what):
    return what.get("queue", MINE) == MINE


@pytest.fixture
def settings(broker):
    return Settings(Address("127.0.0.1", broker.port))


@pytest.fixture
def client(broker, settings):
    app = make_app(broker.uri, may)
    app.register_blueprint(Dashboard(lambda _action, _what: True, name="all"), url_prefix="/all")
    told = {"endpoint": "welcome", "exception": "ValueError"}
    bury_many(settings, MINE, 2, **told)
    bury_many(settings, OTHERS, 3, **told)
    return app.test_client()


def urls():
    for page in PAGES:
        name, _, query = page.partition("?")
        for queue in ("", MINE, OTHERS):
            for end in ("", ".json"):
                yield f"/backend/{name or ('queues' if end else '')}{end}?{query}&queue={queue}", queue == OTHERS


def test_no_page_shows_another_queue(client):
    for url, is_denied in urls():
        answer = client.get(url)
        assert OTHERS not in answer.text, url
        assert (answer.status_code == 403) >= is_denied, url


def test_numbers_are_those_of_the_queues_that_are_shown(client):
    told = client.get("/backend/queues.json").json
    assert [(queue["queue"], queue["buried"]) for queue in told["queues"]] == [(MINE, 2)]
    assert '<dt>buried</dt><dd class="bad">2</dd>' in client.get("/backend/").text
    told = client.get("/backend/failures.json").json
    assert (told["buried"], len(told["groups"])) == (2, 1)
    assert client.get("/all/failures.json").json["buried"] == 5


def test_what_was_not_read_of_others_is_not_counted(client, settings, monkeypatch):
    monkeypatch.setattr("flask_backend.operations.recent.MOST", 0)
    bury_many(settings, OTHERS, 1)
    for url in ("failures", f"{GROUP}&queue={MINE}"):
        assert "of 6 buried jobs" not in client.get(f"/backend/{url}").text


def test_an_act_on_all_that_match_leaves_other_queues(client, broker):
    page = client.get("/backend/failures?pattern=welcome").text
    link = next(part for part in page.split('"') if part.startswith("/backend/failures/delete?"))
    question = client.get(link.replace("&amp;", "&")).text
    assert "Delete 2 jobs of all queues" in question
    answer_form(client, question, "/failures/delete")
    told = client.get("/all/queues.json").json["queues"]
    assert {queue["queue"]: queue["buried"] for queue in told if queue["buried"]} == {OTHERS: 3}


def test_an_act_on_a_job_of_another_queue_is_refused_without_its_name(client, broker):
    job_id = broker.put(OTHERS, b"{}", delay=100)
    for queue, status in ((MINE, 303), (OTHERS, 403)):
        form = {"queue": queue, "id": str(job_id), "mark": "x"}
        answer = client.post("/backend/job/cancel", data=form, headers=OWN)
        assert (answer.status_code, OTHERS in answer.text) == (status, False)
    assert OTHERS not in client.get("/backend/queue?queue=mail").text
    assert broker.job(job_id) is not None


def test_what_others_have_done_in_another_queue_is_not_listed(client):
    for queue in (MINE, OTHERS):
        client.post("/all/queue/pause", data={"queue": queue, "seconds": "60"}, headers=OWN)
    # Both dashboards have a record of their own.
    assert len(client.get("/all/actions.json").json["actions"]) == 2
    assert client.get("/backend/actions.json").json["actions"] == []


def test_supervisors_schedules_and_batches_of_other_queues_are_left_out(broker, supervise):
    roles = {"viewed": {MAIL, REPORTS}}
    app = dashboard_app.create_app(broker.uri)
    backend: Backend = dashboard_app.backend
    dashboard = Dashboard(lambda _action, what: what.get("queue", MAIL) in roles["viewed"], name="some")
    app.register_blueprint(dashboard, url_prefix="/some")
    client = app.test_client()
    with app.app_context(), backend.batch() as batch:
        batch.on_complete(report, 2026)
        batch.add(tidy)
    client.post("/some/queue/pause", data={"queue": REPORTS, "seconds": "3600"}, headers=OWN)
    supervised = supervise("--queue", f"{REPORTS}=1", app=f"{dashboard_app.__file__}:create_app")
    supervised.wait_for_log("ready: ")

    def shown() -> tuple[bool, bool, bool]:
        pids = [each["pid"] for each in client.get("/some/workers.json").json["supervisors"]]
        schedules = client.get("/some/schedules.json").json["queues"]
        batches = client.get("/some/batches.json").json
        return supervised.pid in pids, bool(schedules), bool(batches["batches"]) and bool(batches["count"])

    wait_until(lambda: shown() == (True, True, True), "all are shown")
    assert f">{REPORTS}<" in client.get("/some/actions").text
    roles["viewed"] = {MAIL}
    assert shown() == (False, False, False)
    for page in ("workers", "schedules", "batches", "actions"):
        assert f">{REPORTS}<" not in client.get(f"/some/{page}").text, page  # an example names it
    form = {"pid": str(supervised.pid)}
    assert client.post("/some/workers/add", data=form, headers=OWN).status_code == 404
