"""Requests that other sites make with the person's browser change nothing."""

from __future__ import annotations

from html import escape

import pytest
from flask import Flask
from support.dashboard_app import MAIL, welcome
from support.sites import FOREIGN, serve

pytestmark = pytest.mark.any_broker


@pytest.fixture
def attack():
    """A server whose page sends a form to one URL, and frames another one."""
    urls: list[str] = []
    app = Flask("attacker")

    @app.get("/")
    def page():
        aim, framed = map(escape, urls)
        fields = f'<input name="queue" value="{MAIL}"><input name="seconds" value="60">'
        form = f'<form method="post" action="{aim}">{fields}<button>Win a prize</button></form>'
        return f'<title>attacker</title><link rel="icon" href="data:,">{form}<iframe src="{framed}"></iframe>'

    with serve(app) as root:

        def aim(url: str, framed: str) -> str:
            urls[:] = url, framed
            return root

        yield aim


@pytest.mark.parametrize("is_other_host", [False, True], ids=["another port", "another host"])
def test_form_and_script_of_another_origin_change_nothing(chromium, site, attack, is_other_host):
    welcome("ann@example.com")
    root = attack(site.url("/queue/pause"), site.url())
    chromium.open(root.replace("127.0.0.1", FOREIGN) if is_other_host else root)
    chromium.wait(lambda: any("frame-ancestors" in each for each in chromium.problems()), "the frame is refused")
    chromium.run(
        "return fetch(arguments[0], {method: 'POST', mode: 'no-cors', credentials: 'include', "
        "body: new URLSearchParams({queue: arguments[1], seconds: 60})})",
        site.url("/queue/pause"),
        MAIL,
    )
    chromium.follow("button")
    chromium.wait_for_text("Nothing was done", "main")
    assert site.broker.tube(MAIL)["pause-time-left"] == 0
    assert {action["outcome"].partition(":")[0] for action in site.actions} == {"denied"}
    assert all("403" in each for each in chromium.problems())


def test_act_without_the_right_is_not_offered_and_refused(chromium, site):
    welcome("ann@example.com")
    site.log_in(chromium, "reader")
    chromium.open(site.url("/queue", queue=MAIL))
    assert not chromium.find_all("main form")
    answer = (
        "return fetch(arguments[0], {method: 'POST', body: new URLSearchParams({queue: arguments[1], seconds: 60})})"
        ".then(answer => answer.status)"
    )
    assert chromium.run(answer, site.url("/queue/pause"), MAIL) == 403
    assert site.broker.tube(MAIL)["pause-time-left"] == 0
    assert chromium.problems()  # the browser logs the status
    site.log_in(chromium, "operator")
    assert chromium.run(answer, site.url("/queue/pause"), MAIL) == 200
    assert site.broker.tube(MAIL)["pause-time-left"] > 0
    assert [(action["action"], action["outcome"]) for action in site.actions][-1] == ("pause", "done")


def test_stranger_sees_no_page(chromium, site):
    site.log_in(chromium, "stranger")
    chromium.open(site.url())
    assert chromium.find("h1").text == "Not allowed"
    assert not chromium.find_all("nav a")
    assert len(chromium.problems()) == 1
