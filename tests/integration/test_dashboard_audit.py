"""The record of actions: each act leaves one entry, also those that were refused, that failed, or that lie."""

from __future__ import annotations

import logging

import pytest
from support.dashboards import OWN, make_app
from support.stories import bury_many

from flask_backend.config import Address, Settings
from flask_backend.dashboard.pages import ALL
from flask_backend.signals import dashboard_action

pytestmark = pytest.mark.any_broker

ACTS = [act for pages in ALL for act in pages.acts]
FORGED = "mail\r\n2026-11-29 flask_backend.audit: root: deleted 1 job: done\x1b[2J\u202e"


class Trail(logging.Handler):
    """What the log and the signal have."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []
        self.sent: list[dict] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)

    def receive(self, _app, **facts) -> None:
        self.sent.append(facts)


@pytest.fixture
def trail():
    trail, logger = Trail(), logging.getLogger("flask_backend.audit")
    level = logger.level
    logger.setLevel(logging.INFO)
    logger.addHandler(trail)
    with dashboard_action.connected_to(trail.receive):
        yield trail
    logger.removeHandler(trail)
    logger.setLevel(level)


def client_of(broker, may=lambda _action, _what: True, **options):
    return make_app(broker.uri, may, **{"user": lambda: "ann", **options}).test_client()


def test_each_act_that_is_refused_is_recorded_with_who_tried(broker, trail):
    broker.put("mail", b"{}")
    denied = client_of(broker, lambda action, _what: action.startswith("view"))
    allowed = client_of(broker)
    form = {"queue": "mail", "id": "1", "pid": "1"}
    for act in ACTS:
        url = f"/backend{act.path}"
        assert denied.post(url, data=form, headers=OWN).status_code == 403
        assert allowed.post(url, data=form).status_code == 403  # from nowhere
        assert allowed.post(url, query_string=form, headers=OWN).status_code in (400, 404)  # a form in the URL is none
        assert allowed.post(url, json=form, headers=OWN).status_code in (400, 404)
    assert len(trail.records) == len(trail.sent) == 4 * len(ACTS)
    for record, facts in zip(trail.records, trail.sent, strict=True):
        assert (record.levelno, facts["user"], facts["count"]) == (logging.WARNING, "ann", 0)
        assert facts["outcome"].startswith(("denied: ", "failed: "))
        assert record.getMessage().startswith("ann: ")
    assert [facts["action"] for facts in trail.sent[::4]] == [act.action for act in ACTS]
    assert denied.get("/backend/actions.json").json["actions"] == []  # anybody may fill it


@pytest.mark.parametrize("action", ["retry", "delete"])
def test_what_is_done_is_recorded_with_its_jobs(broker, trail, action):
    settings = Settings(Address("127.0.0.1", broker.port))
    ids = bury_many(settings, "mail", 30, endpoint="welcome", exception="E")
    client = client_of(broker)
    form = {"queue": "mail", "pattern": "welc*", "newest": "999", "until": "9e9"}
    assert client.post(f"/backend/failures/{action}", data=form, headers=OWN).status_code == 303
    [facts] = trail.sent
    assert (facts["action"], facts["queue"], facts["pattern"], facts["count"]) == (action, "mail", "welc*", 30)
    assert (facts["outcome"], len(facts["ids"]), set(facts["ids"]) <= set(ids)) == ("done", 20, True)
    assert trail.records[0].dashboard_count == 30


def test_nothing_that_a_form_says_forges_a_line(broker, trail):
    broker.put("mail", b"{}")
    client = client_of(broker, user=lambda: FORGED)
    for act in ACTS:
        form = dict.fromkeys(("queue", "pattern", "kind", "task", "name", "typed", "mark", "until", "seen"), FORGED)
        client.post(f"/backend{act.path}", data=form, headers=OWN)
        client.post(f"/backend{act.path}", data={**form, "queue": "mail", "newest": "1", "until": "1"}, headers=OWN)
    assert len(trail.records) == 2 * len(ACTS)
    for record, facts in zip(trail.records, trail.sent, strict=True):
        for text in (record.getMessage(), *map(str, facts.values())):
            assert not any(character in text for character in "\r\n\x1b\u202e"), text


class Detached:
    def __str__(self) -> str:
        raise LookupError("detached")


async def ann():
    return "ann"


@pytest.mark.parametrize(("user", "name"), [(Detached, "unknown (detached)"), (ann, "ann"), (lambda: "", None)])
def test_no_user_keeps_an_act_from_the_record(broker, trail, user, name):
    broker.put("mail", b"{}")
    client = client_of(broker, user=user)
    assert client.post("/backend/queue/pause", data={"queue": "mail", "seconds": "9"}, headers=OWN).status_code == 303
    assert (trail.sent[0]["user"] or None, trail.sent[0]["outcome"]) == (name, "done")
