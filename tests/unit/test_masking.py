"""Secret values are hidden by their names, at any depth, wherever calls and messages are shown."""

from __future__ import annotations

import json

import pytest
from flask import Flask

from flask_backend import Backend, ConfigError, Retry, testing
from flask_backend.config import Settings
from flask_backend.functions import parameters_of
from flask_backend.masking import MASKED, Mask
from flask_backend.operations.masking import Masking
from flask_backend.registry import Handler, Handlers
from flask_backend.stories import Story

HIDDEN = "hunter2"


def login(user: str, password: str, *rest: object, token: str = "") -> None:
    raise ValueError


QUEUES = {"q": Handlers("q", {"login": Handler("login", login)})}


@pytest.mark.parametrize(
    "name", ["password", "PASSWORD", "user_password2", "X-Api-Key", "apiKey", "access_token", "Authorization"]
)
def test_a_name_that_contains_a_word_is_secret(name):
    assert Mask().hides(name)
    assert Mask().value({name: {"a": HIDDEN}}) == {name: MASKED}


@pytest.mark.parametrize("name", ["user", "pass", "", "key", 7, None])
def test_other_names_are_not(name):
    assert not Mask().hides(name)


def test_values_are_hidden_at_any_depth_and_nothing_else_changes():
    value = {"a": [{"b": {"token": HIDDEN, "c": [1, None, True, "x"]}}], "d": {}}
    assert Mask().value(value) == {"a": [{"b": {"token": MASKED, "c": [1, None, True, "x"]}}], "d": {}}
    assert Mask(()).value(value) == value
    assert value["a"][0]["b"]["token"] == HIDDEN
    deep = json.loads('{"a":' * 250 + '{"token":"x"}' + "}" * 250)
    assert HIDDEN not in str(Mask().value(deep))


def test_positional_arguments_are_hidden_by_the_names_of_the_parameters():
    assert parameters_of(login) == ["user", "password"]
    assert Mask().positional(["ada", HIDDEN, "x", "y"], parameters_of(login)) == ["ada", MASKED, "x", "y"]
    assert Mask().positional([HIDDEN]) == [HIDDEN]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ('login("ada", password="hunter2", n=1)', 'login("ada", password=***, n=1)'),
        ('f({"token": "hunter2", "b": 1})', 'f({"token": ***, "b": 1})'),
        ('f({"b": {"Api-Key": "a\\"hunter2"}, "c": 2})', 'f({"b": {"Api-Key": ***}, "c": 2})'),
        ('f(token=["hunter2", 1], b=2)', "f(token=***"),
        ('f(token="hunter2', "f(token=***"),
        ("user=ada&password=hunter2&x=1", "user=ada&password=***&x=1"),
        ("f(1, b=2)", "f(1, b=2)"),
        ("", ""),
    ],
)
def test_secret_values_in_a_text_are_hidden_as_far_as_it_names_them(text, shown):
    assert Mask().text(text) == shown
    assert Mask(()).text(text) == text


HOSTILE = ["a=" * 50_000, '"' * 60_000, '\\"' * 30_000, "=[" * 30_000, 'password="' + "\\" * 60_000, "a" * 60_000]


@pytest.mark.parametrize("text", HOSTILE)
def test_a_hostile_text_takes_no_time(text):
    assert len(Mask().text(text)) <= len(text) + 3


def a_body(**parts) -> bytes:
    return json.dumps({"endpoint": "login", "args": [], "kwargs": {}, **parts}).encode()


def test_a_body_is_masked_by_the_parameters_of_the_app_and_by_the_names_in_it():
    body = a_body(args=["ada", HIDDEN], kwargs={"token": HIDDEN}, headers={"authorization": HIDDEN, "id": "1"})
    known = Masking(Mask(), QUEUES)
    assert HIDDEN.encode() not in known.body("q", body)
    assert json.loads(known.body("q", body))["args"] == ["ada", MASKED]
    assert json.loads(known.body("other", body))["args"] == ["ada", HIDDEN]  # not the app's queue
    assert HIDDEN not in json.loads(Masking(Mask()).body("q", body))["kwargs"].values()


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"\x00", b"\xff\xfe", b"[" * 1000, b"7", b"[1]"),
        *(b'{"endpoint": 7, "args": [1]}', b'{"endpoint":"login","args":7}'),
    ],
)
def test_bodies_without_a_secret_stay_the_same_bytes(body):
    assert Masking(Mask(), QUEUES).body("q", body) == body


def test_a_body_that_is_not_json_is_masked_as_text():
    assert Masking(Mask()).body("q", b"password=hunter2") == b"password=***"
    assert json.loads(Masking(Mask()).body("q", b'[{"token":"\\ud800"}]')) == [{"token": MASKED}]
    assert Masking(Mask(())).body("q", b"password=hunter2") == b"password=hunter2"


def test_the_call_in_a_story_of_an_earlier_version_is_masked():
    story = Story(1, "q", "r", 1.0, "h", 1, call='login("ada", password="hunter2")')
    assert Masking(Mask()).story(story).call == 'login("ada", password=***)'
    assert Masking(Mask()).story(Story(1, "q", "r", 1.0, "h", 1)).call is None


def test_a_worker_writes_no_secret_into_a_story():
    app = Flask(__name__)
    app.config.update(BACKEND_CONNECTION_URI="memory://", BACKEND_MASK=["pass", "token"])
    backend = Backend(app)
    task = backend.task("q", retry=Retry(0))(login)
    with app.app_context():
        task("ada", HIDDEN, token=HIDDEN)
        testing.drain(raise_errors=False)
        [buried] = testing.buried()
    assert buried.note.call == 'login("ada", "***", token="***")'


@pytest.mark.parametrize("value", ["password", None, 7, [""], ["_"], [7], {"a": 1}])
def test_the_setting_must_be_words(value):
    with pytest.raises(ConfigError, match="BACKEND_MASK"):
        Settings.from_config({"BACKEND_MASK": value})


@pytest.mark.parametrize("value", [[], ("iban",), {"iban"}])
def test_the_setting_replaces_the_default(value):
    mask = Settings.from_config({"BACKEND_MASK": value}).mask
    assert mask == Mask(tuple(value))
    assert not mask.hides("password")
