"""What the other tests in the browser rely on."""

from __future__ import annotations

import pytest
from flask import Flask, request
from support.sites import FOREIGN, serve

HEAD = '<!doctype html><html lang="en"><title>page</title><link rel="icon" href="data:,">'


@pytest.fixture
def site():
    app = Flask("site")

    @app.get("/<path:body>")
    def page(body):
        return f"{HEAD}<main><h1>{request.host}</h1>{body}</main>"

    with serve(app) as address:
        yield address


def test_axe_finds_a_barrier_where_one_is(chromium, site):
    chromium.open(f"{site}/fine")
    assert chromium.violations() == []
    chromium.open(f"{site}/<input>")
    assert chromium.violations() == ["label: <input>"]


def test_browser_resolves_the_name_of_an_attacker_to_this_machine(chromium, site):
    port = site.rpartition(":")[2]
    chromium.open(f"http://{FOREIGN}:{port}/fine")
    assert chromium.find("h1").text == f"{FOREIGN}:{port}"


def test_reset_forgets_cookies_storage_and_emulation(chromium, site):
    chromium.open(f"{site}/fine")
    chromium.run("document.cookie = 'a=1'; localStorage.b = sessionStorage.c = 2")
    chromium.prefer("dark")
    chromium.resize(320, 480)
    chromium.reset()
    chromium.open(f"{site}/fine")
    kept = (
        "return [document.cookie, localStorage.b, sessionStorage.c, matchMedia('(prefers-color-scheme: dark)').matches]"
    )
    assert chromium.run(f"{kept}.concat([innerWidth])") == ["", None, None, False, 1280]
