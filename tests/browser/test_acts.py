"""Each act by mouse, as a person does it: the question, the number in it, the result, the record."""

from __future__ import annotations

import pytest
from support import dashboard_app
from support.dashboard_app import MAIL, REPORTS, welcome
from support.waiting import wait_until

pytestmark = pytest.mark.any_broker

APP = f"{dashboard_app.__file__}:create_app"


def test_queue_is_paused_resumed_and_emptied(chromium, site):
    welcome.map(["ann@example.com"] * 3)
    chromium.open(site.url("/queue", queue=MAIL))
    chromium.find("main select").send_keys("until resumed")
    chromium.follow("button", "Pause")
    assert f"paused {MAIL} until it is resumed" in chromium.find(".notice").text
    chromium.follow("button", "Resume")
    assert site.broker.tube(MAIL)["pause-time-left"] == 0
    chromium.follow("a", "Delete all ready")
    assert chromium.find("h1").text == f"Delete 3 ready jobs of {MAIL}?"
    chromium.click("button.danger")  # the browser asks for the name first
    assert site.broker.count(MAIL, "ready") == 3
    chromium.find("#typed").send_keys("something else")
    chromium.follow("button.danger")
    assert chromium.find("h1").text == "Not confirmed"
    assert site.broker.count(MAIL, "ready") == 3
    chromium.driver.back()
    chromium.find("#typed").clear()
    chromium.find("#typed").send_keys(MAIL)
    chromium.follow("button.danger")
    chromium.wait_for_text(f"deleted 3 ready jobs of {MAIL}", ".notice")
    assert site.broker.is_empty(MAIL)
    chromium.follow("nav a", "Actions")
    assert chromium.find("td[data-label='Outcome']").text == "done"
    assert {row.text for row in chromium.find_all("td[data-label='Who']")} == {"operator"}
    assert len(chromium.problems()) == 1  # the 400 of the wrong name


def test_periodic_task_is_run_and_paused(chromium, site, supervise):
    supervise("--queue", f"{REPORTS}=1", app=APP).wait_for_log("ready: ")
    chromium.hasten()
    chromium.open(site.url("/schedules"))
    chromium.wait(lambda: chromium.find_all("button", "Run now"), "the refresh shows the periodic tasks")
    chromium.follow("button", "Run now")
    assert "as job" in chromium.find(".notice").text
    wait_until(lambda: site.broker.tube(REPORTS)["cmd-delete"] == 1, "the call has run")
    chromium.follow("button", "Pause")
    assert chromium.find_all("td[data-label='Next'] strong", "paused")
    chromium.follow("button", "Resume")
    assert not chromium.find_all("td[data-label='Next'] strong", "paused")
