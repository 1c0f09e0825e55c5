"""What a person does in the dashboard, on a real broker, without scripts."""

from __future__ import annotations

import pytest
from support.dashboards import OWN, Form, answer_form, make_app

from flask_backend.operations import heads


@pytest.fixture
def app(broker):
    return make_app(broker.uri)


@pytest.fixture
def client(app):
    return app.test_client()


@pytest.fixture
def bury(broker):
    """Bury jobs of a queue, the first one first; return their ids."""

    def bury(count, queue="mail"):
        with broker.client(queue) as client:
            for number in range(count):
                client.put(b'{"endpoint": "welcome", "args": [%d]}' % number)
            jobs = [client.reserve(timeout=5) for _ in range(count)]
            for job in jobs:
                client.bury(job)
        return [job.id for job in jobs]

    return bury


def test_all_buried_jobs_are_retried_after_a_question_with_their_number(broker, client, bury):
    ids = bury(3)
    page = client.get("/backend/queue?queue=mail").text
    assert "/backend/queue/retry-buried?queue=mail" in page
    page = client.get("/backend/queue/retry-buried?queue=mail").text
    assert "Retry 3 buried jobs of mail?" in page
    assert f"flask-backend retry --all --queue mail --broker {broker.uri}" in page
    answer = answer_form(client, page, "/queue/retry-buried")
    assert answer.status_code == 303
    assert "retried 3 buried jobs of mail" in client.get(answer.location).text
    assert (broker.count("mail", "ready"), broker.count("mail", "buried")) == (3, 0)
    [action] = client.get("/backend/actions.json").json["actions"]
    assert (action["action"], action["count"], action["ids"], action["outcome"]) == ("retry", 3, ids, "done")


def test_jobs_that_were_buried_after_the_question_stay(broker, client, bury):
    bury(2)
    page = client.get("/backend/queue/delete-buried?queue=mail").text
    later = bury(2)
    answer = answer_form(client, page, "/queue/delete-buried")
    assert "deleted 2 buried jobs of mail" in client.get(answer.location).text
    assert [broker.job(job_id)["state"] for job_id in later] == ["buried", "buried"]


def test_many_jobs_take_several_steps_which_a_person_can_stop(broker, client, bury, monkeypatch):
    monkeypatch.setattr(heads, "STEP", 4)
    bury(10)
    page = client.get("/backend/queue/retry-buried?queue=mail").text
    answer = answer_form(client, page, "/queue/retry-buried")
    assert answer.status_code == 200
    assert "Retried 4 of 10 buried jobs of mail" in answer.text
    assert broker.count("mail", "buried") == 6  # who stops here has done no more
    answer = answer_form(client, answer.text, "/queue/retry-buried")
    assert "Retried 8 of 10" in answer.text
    answer = answer_form(client, answer.text, "/queue/retry-buried")
    assert "retried 10 buried jobs of mail" in client.get(answer.location).text
    assert [action["count"] for action in client.get("/backend/actions.json").json["actions"]] == [2, 4, 4]


def test_jobs_that_are_gone_meanwhile_are_said_to_be_missing(broker, client, bury):
    ids = bury(3)
    page = client.get("/backend/queue/delete-buried?queue=mail").text
    with broker.client("mail") as other:
        other.delete(ids[1])
    answer = answer_form(client, page, "/queue/delete-buried")
    shown = client.get(answer.location)
    # The queue may be gone with its last job.
    assert "deleted 2 buried jobs of mail; 1 job fewer than asked for" in shown.text


def test_ready_jobs_are_deleted_only_after_the_name_is_typed(app, broker, client):
    with app.app_context():
        app.extensions["welcome"].map([str(number) for number in range(5)])
    page = client.get("/backend/queue/delete-ready?queue=mail").text
    assert "Delete 5 ready jobs of mail?" in page
    for typed in ("", "main", "MAIL"):
        assert answer_form(client, page, "/queue/delete-ready", typed=typed).status_code == 400
    assert broker.count("mail", "ready") == 5
    client.post("/backend/queue/pause", data={"queue": "mail", "seconds": 60}, headers=OWN)  # also a paused queue
    answer = answer_form(client, page, "/queue/delete-ready", typed=" mail ")
    assert "deleted 5 ready jobs of mail" in client.get(answer.location).text
    assert broker.is_empty("mail")


def test_ready_jobs_that_are_put_between_two_steps_stay(app, broker, client, monkeypatch):
    monkeypatch.setattr(heads, "STEP", 2)
    with app.app_context():
        app.extensions["welcome"].map(["1", "2", "3"])
    page = client.get("/backend/queue/delete-ready?queue=mail").text
    page = answer_form(client, page, "/queue/delete-ready", typed="mail").text
    assert "Deleted 2 of 3" in page
    urgent = broker.put("mail", b"{}", priority=0)
    answer = answer_form(client, page, "/queue/delete-ready")
    assert "deleted 2 ready jobs of mail; 1 job fewer" in client.get(answer.location).text
    assert broker.job(urgent)["state"] == "ready"


def test_there_is_no_question_about_nothing(app, client):
    with app.app_context():
        app.extensions["welcome"]("ann")
    assert client.get("/backend/queue/retry-buried?queue=mail").status_code == 409
    assert client.get("/backend/queue/retry-buried?queue=none").status_code == 404


def test_a_question_and_its_control_need_the_right(broker, bury):
    bury(1)
    client = make_app(broker.uri, lambda action, what: action in ("view", "retry")).test_client()
    page = client.get("/backend/queue?queue=mail").text
    assert ("Retry all buried" in page, "Delete all buried" in page) == (True, False)
    assert client.get("/backend/queue/delete-buried?queue=mail").status_code == 403
    form = Form(client.get("/backend/queue/retry-buried?queue=mail").text, "/queue/retry-buried")
    assert client.post("/backend/queue/delete-buried", data=form.fields, headers=OWN).status_code == 403
    assert broker.count("mail", "buried") == 1


@pytest.mark.parametrize(
    ("path", "data", "status"),
    [
        ("/queue/pause", {"queue": "mail", "seconds": "-1"}, 400),
        ("/queue/pause", {"queue": "mail", "seconds": "0"}, 400),
        ("/queue/pause", {"queue": "mail", "seconds": str(2**40)}, 400),
        ("/queue/pause", {"queue": "mail", "seconds": "\u0661"}, 400),
        ("/queue/pause", {"queue": "mail\r\nkick 1", "seconds": "1"}, 404),
        ("/queue/pause", {"queue": "mail.failures", "seconds": "1"}, 404),
        ("/queue/pause", {"queue": "", "seconds": "1"}, 404),
        ("/queue/pause", {"seconds": "1"}, 404),
        ("/queue/resume", {"queue": "nothing-here"}, 404),
        ("/queue/retry-buried", {"queue": "mail"}, 400),
        ("/queue/retry-buried", {"queue": "mail", "left": "9" * 30, "total": "1"}, 400),
        ("/queue/resume", {"queue": "mail", "id": "9" * 5000}, 400),
        ("/workers/reload", {"pid": "1"}, 404),
        ("/workers/reload", {"pid": "x"}, 400),
        ("/workers/stop", {"pid": "999999999", "worker": "1"}, 404),
    ],
)
def test_an_invalid_form_is_refused_with_its_status(app, client, path, data, status):
    with app.app_context():
        app.extensions["welcome"]("ann")
    answer = client.post(f"/backend{path}", data=data, headers=OWN)
    assert answer.status_code == status
    assert "<h1>" in answer.text


def test_the_broker_may_restart_under_an_open_question(broker, client, bury):
    bury(2)
    page = client.get("/backend/queue/retry-buried?queue=mail").text
    broker.stop()
    assert answer_form(client, page, "/queue/retry-buried").status_code == 503
    broker.start()
    other = bury(1)[0]  # its id may be that of an earlier job
    answer = answer_form(client, page, "/queue/retry-buried")
    assert answer.status_code == 409
    assert "the broker was restarted since" in answer.text
    assert broker.job(other)["state"] == "buried"
    outcomes = [action["outcome"] for action in client.get("/backend/actions.json").json["actions"]]
    assert [outcome.partition(":")[0] for outcome in outcomes] == ["failed", "failed"]
