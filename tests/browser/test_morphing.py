"""What the refresh of a page relies on in idiomorph."""

from __future__ import annotations

from pathlib import Path

import pytest
from flask import Flask, Response
from support.sites import serve

STATIC = Path(__file__).parents[2] / "flask_backend" / "dashboard" / "static"
PAGE = """<!doctype html><html lang="en"><title>page</title><link rel="icon" href="data:,">
<script src="/static/idiomorph-0.8.0.min.js"></script>
<main data-live id="jobs"><details id="d"><summary>more</summary>old</details>
<input id="field" aria-label="name"><table><tr id="a"><td>1</td></tr><tr id="b"><td>2</td></tr></table></main></html>"""
CHANGED = """<main data-live id="jobs"><details id="d"><summary>more</summary>new</details>
<input id="field" aria-label="name"><table><tr id="c"><td>3</td></tr><tr id="a"><td>1</td></tr></table></main>"""


@pytest.fixture
def page():
    app = Flask("page", static_folder=STATIC)

    @app.get("/")
    def show():
        policy = "default-src 'none'; script-src 'self'; img-src data:"
        return Response(PAGE, headers={"Content-Security-Policy": policy})

    with serve(app) as address:
        yield address


def test_morph_keeps_focus_text_and_open_details_under_a_policy_without_eval(chromium, page):
    chromium.open(page)
    chromium.click("summary")
    field = chromium.find("#field")
    field.send_keys("typed")
    row = chromium.find("#a")
    chromium.run("Idiomorph.morph(document.getElementById('jobs'), arguments[0], {ignoreActiveValue: true})", CHANGED)
    assert "new" in chromium.find("#d").text
    assert [each.text for each in chromium.find_all("td")] == ["3", "1"]
    assert row.text == "1"  # the same element as before, not a new one
    field.send_keys("!")
    assert chromium.run("return [document.activeElement.id, document.activeElement.value]") == ["field", "typed!"]
