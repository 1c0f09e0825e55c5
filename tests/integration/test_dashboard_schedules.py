"""The dashboard's page of the periodic tasks, with a real scheduler."""

from __future__ import annotations

import time

import pytest
from support import dashboard_app
from support.dashboard_app import REPORTS
from support.dashboards import OWN, answer_form
from support.waiting import wait_until

from flask_backend.names import schedule_tube
from flask_backend.periodic.definition import Definition
from flask_backend.periodic.token import Entry, Release, Token
from flask_backend.periodic.when import Every
from flask_backend.signals import dashboard_action


@pytest.fixture
def client(broker):
    return dashboard_app.create_app(broker.uri).test_client()


@pytest.fixture
def scheduled(client, supervise):
    """A client, and a supervisor whose scheduler has registered the periodic tasks."""
    supervise("--queue", f"{REPORTS}=1", app=f"{dashboard_app.__file__}:create_app").wait_for_log("ready: ")
    wait_until(lambda: schedules_of(client), "the periodic tasks are registered")
    return client


def schedules_of(client) -> dict[str, dict]:
    queues = client.get("/backend/schedules.json").json["queues"]
    return {schedule["name"]: schedule for queue in queues for schedule in queue["schedules"]}


def test_page_teaches_where_nothing_is_periodic(client):
    page = client.get("/backend/schedules")
    assert "@backend.periodic(" in page.text
    assert client.get("/backend/schedules.json").json["queues"] == []


def test_periodic_tasks_are_shown_in_words_with_their_zone_and_policy(scheduled):
    page = scheduled.get("/backend/schedules").text
    for text in ("weekly numbers", "30 3 * * 1-5", "Europe/Prague", "catches up once; no overlap"):
        assert text in page
    assert "No scheduler watches" not in page
    numbers = schedules_of(scheduled)["weekly numbers"]
    assert (numbers["endpoint"], numbers["timezone"], numbers["skipped"]) == ("report", "Europe/Prague", 0)
    assert numbers["next"] > 0


def test_periodic_task_is_run_paused_and_resumed(scheduled, broker):
    heard = []
    app = scheduled.application
    with dashboard_action.connected_to(lambda _app, **facts: heard.append((facts["what"], facts["outcome"])), app):
        page = scheduled.get("/backend/schedules").text
        answer = answer_form(scheduled, page, "/schedules/run")
        assert answer.status_code == 303
        wait_until(lambda: broker.tube(REPORTS)["cmd-delete"] == 1, "the call has run")
        answer_form(scheduled, page, "/schedules/pause")
        page = scheduled.get("/backend/schedules").text
        assert "<strong" in page
        [paused] = [each for each in schedules_of(scheduled).values() if each["is_paused"]]
        assert paused["next"] is None
        answer_form(scheduled, page, "/schedules/resume")
        assert not any(each["is_paused"] for each in schedules_of(scheduled).values())
    assert [outcome for _, outcome in heard] == ["done"] * 3
    assert [what.split()[0] for what, _ in heard] == ["scheduled", "paused", "resumed"]


def test_act_on_an_unknown_periodic_task_is_refused_and_recorded(scheduled):
    answer = scheduled.post("/backend/schedules/run", data={"queue": REPORTS, "name": "<b>"}, headers=OWN)
    assert answer.status_code == 409
    assert "&lt;b&gt;" in answer.text
    assert "failed" in scheduled.get("/backend/actions").text


def put_token(broker, queue, entry):
    broker.put(schedule_tube(queue), Token(queue, 1, Release(), {entry.definition.name: entry}).encode())


def test_periodic_task_without_a_scheduler_is_forgotten_after_a_question(client, broker):
    put_token(broker, "old", Entry(Definition("daily & co", "old", "report", Every(86400)), 1))
    page = client.get("/backend/schedules").text
    assert "No scheduler watches" in page
    question = client.get("/backend/schedules/forget", query_string={"queue": "old", "name": "daily & co"}).text
    assert "Forget daily &amp; co of old?" in question
    assert "schedules forget &#39;daily &amp; co&#39;" in question
    assert schedules_of(client)
    answer = answer_form(client, question, "/schedules/forget")
    assert "forgot daily &amp; co of old" in client.get(answer.location).text
    assert not schedules_of(client)


def test_periodic_task_that_is_scheduled_cannot_be_forgotten(scheduled):
    assert "Forget" not in scheduled.get("/backend/schedules").text
    answer = scheduled.post("/backend/schedules/forget", data={"queue": REPORTS, "name": "tidy"}, headers=OWN)
    assert answer.status_code == 409
    assert "is still scheduled by supervisors" in answer.text


def test_last_call_of_a_periodic_task_is_linked_to_its_job(client, broker):
    job = broker.put("old", b'{"endpoint": "report"}')
    put_token(broker, "old", Entry(Definition("daily", "old", "report", Every(86400)), 1, ran=86400, job=job))
    page = client.get("/backend/schedules").text
    assert f'<a href="/backend/job?id={job}&amp;queue=old">' in page
    assert client.get(f"/backend/job?id={job}&queue=old").status_code == 200


def test_acts_need_the_right(scheduled):
    scheduled.set_cookie("role", "reader")
    assert "Run now" not in scheduled.get("/backend/schedules").text
    for act in ("run", "pause", "resume", "forget"):
        fields = {"queue": REPORTS, "name": "tidy"}
        assert scheduled.post(f"/backend/schedules/{act}", data=fields, headers=OWN).status_code == 403


def test_states_that_are_held_or_are_no_states_neither_hide_others_nor_delay_the_page(client, broker):
    for number in range(30):
        broker.put(schedule_tube(f"q{number:02}"), b"not a state")
    broker.put(schedule_tube("held"), b"{}")
    put_token(broker, "readable", Entry(Definition("daily", "readable", "report", Every(86400)), 1))
    with broker.client(schedule_tube("held")) as holder:
        holder.reserve(timeout=5)
        begun = time.monotonic()
        page = client.get("/backend/schedules").text
        assert time.monotonic() - begun < 0.5 * 31
    assert page.count("could not be read") == 31
    assert "daily" in page
