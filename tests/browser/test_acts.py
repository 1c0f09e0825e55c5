"""Each act by mouse, as a person does it: the question, the number in it, the result, the record."""

from __future__ import annotations

import re

import pytest
from support import dashboard_app
from support.dashboard_app import MAIL, REPORTS, welcome
from support.waiting import wait_until

from flask_backend.operations import heads
from flask_backend.system.procfs import PROC_IS_THERE

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


def test_waiting_job_is_cancelled(chromium, site):
    kept, cancelled = (job.id for job in welcome.map(["ann@example.com", "bob@example.com"]))
    chromium.open(site.url("/queue", queue=MAIL))
    chromium.follow("th a", str(cancelled))
    chromium.follow("a", "Cancel")
    assert chromium.find("h1").text == f"Cancel job {cancelled} of {MAIL}?"
    chromium.follow(".question a", "Cancel")  # the way back: nothing is done
    assert site.broker.count(MAIL, "ready") == 2
    chromium.follow("a", "Cancel")
    chromium.follow("button.danger", f"Cancel job {cancelled}")
    assert chromium.find(".notice").text == f"cancelled 1 job of {MAIL}"
    assert site.broker.job(cancelled) is None
    assert site.broker.job(kept)["state"] == "ready"
    assert [(each["action"], each["ids"]) for each in site.actions] == [("cancel", [cancelled])]


def test_large_act_goes_on_by_itself_to_its_final_count(chromium, site, monkeypatch):
    monkeypatch.setattr(heads, "STEP", 2)  # of the server, which runs in this process
    welcome.map(["ann@example.com"] * 5)
    chromium.open(site.url("/queue/delete-ready", queue=MAIL))
    chromium.find("#typed").send_keys(MAIL)
    chromium.click("button.danger")
    chromium.wait_for_text(f"deleted 5 ready jobs of {MAIL}", ".notice")
    assert site.broker.is_empty(MAIL)
    assert [each["count"] for each in site.actions] == [2, 2, 1]


def test_large_act_ends_at_its_button_stop(chromium, site, monkeypatch):
    monkeypatch.setattr(heads, "STEP", 2)
    welcome.map(["ann@example.com"] * 5)
    chromium.hasten(0.001)  # the page does not go on before the click
    chromium.open(site.url("/queue/delete-ready", queue=MAIL))
    chromium.find("#typed").send_keys(MAIL)
    chromium.follow("button.danger")
    assert chromium.find("h1").text == f"Deleted 2 of 5 ready jobs of {MAIL}"
    assert chromium.find("progress").get_attribute("value") == "2"
    chromium.follow("a", "Stop")
    assert chromium.url == site.url("/queue", queue=MAIL)
    assert site.broker.count(MAIL, "ready") == 3


@pytest.mark.skipif(not PROC_IS_THERE, reason="needs Linux")
def test_workers_are_controlled(chromium, site, supervise):
    supervised = supervise("--queue", f"{MAIL}=1", app=APP)
    supervised.wait_for_log("ready: ")
    [worker] = supervised.workers()
    section = f"#supervisor-{supervised.pid}"  # others may run on this machine
    chromium.open(site.url("/workers"))
    chromium.follow(f"{section} #worker-{worker} button", "Stack")
    assert chromium.find("h1").text == f"Stacks of worker {worker}"
    assert "/flask_backend/worker/" in chromium.find("pre").text
    chromium.follow("a", "Back to the workers")

    chromium.follow(f"{section} button", "Add a worker")
    assert f"let supervisor {supervised.pid} run a worker more" in chromium.find(".notice").text
    wait_until(lambda: len(supervised.workers()) == 2, "a second worker")
    chromium.follow(f"{section} button", "Remove a worker")
    wait_until(lambda: len(supervised.workers()) == 1, "one worker is left")

    [worker] = supervised.workers()
    chromium.open(site.url("/workers"))
    chromium.follow(f"{section} #worker-{worker} a", "Stop")
    assert chromium.find("h1").text == f"Stop worker {worker} after its task?"
    chromium.follow("button.danger", "Stop it")
    assert f"let worker {worker} stop after its task" in chromium.find(".notice").text
    wait_until(lambda: supervised.workers() not in ([], [worker]), "another worker in its place")

    chromium.hasten()
    chromium.open(site.url("/workers"))
    chromium.follow(f"{section} button", "Reload")
    chromium.wait(lambda: chromium.find_all(f"{section} p", "Last reload"), "the open page shows the reload")
    chromium.open(site.url())
    assert re.match(r"M\d+\.\d,0v18", chromium.find(f"tr[data-queue='{MAIL}'] path").get_attribute("d"))
    assert [(each["action"], each["outcome"]) for each in site.actions] == [("control", "done")] * 5
