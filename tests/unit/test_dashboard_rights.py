"""Who may do what in the dashboard: the answers of authorize."""

from __future__ import annotations

import logging

import pytest
from flask import Flask, Response, abort

from flask_backend.dashboard.rights import Rights


@pytest.fixture
def app():
    return Flask(__name__)


def fail(action, what):
    raise LookupError("no session")


@pytest.mark.parametrize("answer", [False, None])
def test_only_true_is_a_permission(app, answer):
    assert not Rights(lambda action, what: answer, app).has("view", {})
    assert Rights(lambda action, what: True, app).has("view", {})


@pytest.mark.parametrize("answer", [1, "yes", "", 0, object(), ("no", 403), {"view"}])
def test_any_other_value_is_denied_and_logged(app, caplog, answer):
    assert not Rights(lambda action, what: answer, app).has("view", {})
    assert "expected True, False or a response" in caplog.text


def test_a_function_that_raises_denies_and_logs(app, caplog):
    with caplog.at_level(logging.ERROR, "flask_backend.dashboard"):
        assert not Rights(fail, app).has("delete", {"queue": "mail"})
    assert "authorize of the dashboard failed: delete is denied" in caplog.text
    assert "no session" in caplog.text


def test_a_response_and_an_http_exception_are_sent_in_place_of_the_refusal(app):
    login = Response("log in", 401)
    assert Rights(lambda action, what: login, app).ask("view", {}) is login
    rights = Rights(lambda action, what: abort(401), app)
    assert rights.ask("view", {}).status_code == 401
    assert not rights.has("view", {})


def test_each_question_is_asked_once_and_cannot_change_what_is_asked_about(app):
    asked = []

    def may(action, what):
        asked.append((action, dict(what)))
        what.clear()
        return True

    rights = Rights(may, app)
    assert rights.has("retry", {"queue": "mail", "ids": (1, 2)})
    assert rights.has("retry", {"ids": (1, 2), "queue": "mail"})
    assert rights.has("retry", {"queue": "news"})
    assert asked == [("retry", {"queue": "mail", "ids": (1, 2)}), ("retry", {"queue": "news"})]


def test_an_unknown_action_is_a_bug_of_ours(app):
    with pytest.raises(ValueError, match="'kick' is not one of view"):
        Rights(lambda action, what: True, app).has("kick", {})


def test_without_a_function_all_is_denied(app):
    rights = Rights(None, app)
    assert not rights.has("view", {})
    assert "Dashboard(authorize=may)" in rights.why_denied("view")
