"""Chromium, one for each process of the tests: its start takes a second."""

from __future__ import annotations

import os

import pytest

# The name that an attacker's site has first, and then the address of this machine.
REBOUND = "rebound.example"


@pytest.fixture(scope="session")
def shared_chromium():
    # Selenium is not imported where the tests are skipped: it may be missing there too.
    chromium = pytest.importorskip("support.chromium", exc_type=ImportError)
    if why := chromium.why_missing():
        if os.environ.get("REQUIRE_BROWSER"):
            pytest.fail(f"{why}, and REQUIRE_BROWSER is set")
        pytest.skip(why)
    browser = chromium.Chromium({REBOUND: "127.0.0.1"})
    yield browser
    browser.quit()


@pytest.fixture
def chromium(shared_chromium):
    """Give a browser that has forgotten earlier tests. A test fails if the browser has logged an error."""
    shared_chromium.reset()
    yield shared_chromium
    assert shared_chromium.problems() == []
