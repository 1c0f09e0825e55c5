"""Chromium, one for each process of the tests: its start takes a second."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING
from urllib.parse import urlencode

import pytest
from flask import Flask, request
from support import dashboard_app
from support.beanstalkd import Beanstalkd
from support.sites import FOREIGN, serve

from flask_backend.signals import dashboard_action

if TYPE_CHECKING:
    from support.chromium import Chromium


@pytest.fixture(scope="session")
def shared_chromium():
    # Selenium is not imported where the tests are skipped: it may be missing there too.
    chromium = pytest.importorskip("support.chromium", exc_type=ImportError)
    if why := chromium.why_missing():
        if os.environ.get("REQUIRE_BROWSER"):
            pytest.fail(f"{why}, and REQUIRE_BROWSER is set")
        pytest.skip(why)
    browser = chromium.Chromium({FOREIGN: "127.0.0.1"})
    yield browser
    browser.quit()


@pytest.fixture
def chromium(shared_chromium):
    """Give a browser that has forgotten earlier tests. A test fails if the browser has logged an error."""
    shared_chromium.reset()
    yield shared_chromium
    assert shared_chromium.problems() == []


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_teardown(item):
    """Leave the page before its server ends: a refresh in between would be an error in the browser's log."""
    if chromium := getattr(item, "funcargs", {}).get("chromium"):
        chromium.open("about:blank")


class Site:
    """The dashboard of an app, on a server with threads, and the app's broker."""

    def __init__(self, app: Flask, root: str, broker: Beanstalkd) -> None:
        self.app = app
        self.root = root
        self.broker = broker
        self.refreshes = 0  # of open pages, by the script
        self.actions: list[dict] = []  # as the signal has named them

        @app.before_request
        def count():
            self.refreshes += "fragment" in request.headers.get("Accept", "")

        dashboard_action.connect(lambda _app, **facts: self.actions.append(facts), app, weak=False)

    def url(self, path: str = "/", **query: object) -> str:
        return f"{self.root}/backend{path}" + (f"?{urlencode(query, safe='/')}" if query else "")

    def log_in(self, chromium: Chromium, role: str) -> None:
        chromium.devtools("Network.setCookie", name="role", value=role, url=self.root)


@pytest.fixture
def site(broker):
    app = dashboard_app.create_app(broker.uri)
    with serve(app) as root, app.app_context():
        yield Site(app, root, broker)
