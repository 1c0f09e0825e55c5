"""Failures by mouse: the groups, the ticks, the questions, and ids that mean another job by now."""

from __future__ import annotations

import json

import pytest
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.keys import Keys
from support import dashboard_app
from support.dashboard_app import CARD, MAIL, invoice, welcome
from support.waiting import wait_until

from flask_backend.dashboard.pages import failures as pages

pytestmark = pytest.mark.any_broker

APP = f"{dashboard_app.__file__}:create_app"


@pytest.fixture
def failed(site, supervise, tmp_path):
    """A site with seven failures of two kinds; invoices work once the file REPAIRED is there."""
    supervisor = supervise("--queue", f"{MAIL}=1", app=APP, REPAIRED=str(tmp_path / "repaired"))
    supervisor.wait_for_log("ready: ")
    welcome.map([f"nobody{number}" for number in range(4)])
    invoice.map(range(3))
    wait_until(lambda: site.broker.count(MAIL, "buried") == 7, "seven failures")
    return site


def open_group(chromium, site, kind):
    chromium.open(site.url("/failures"))
    row = chromium.find("tbody tr", kind)
    chromium.run("document.isLeft = true; arguments[0].querySelector('th a').click()", row)
    chromium.wait(lambda: chromium.run("return !document.isLeft") and chromium.find("td input"), "the group")


def test_ticked_jobs_are_retried_and_deleted_and_no_others(chromium, failed, tmp_path):
    chromium.hasten()
    open_group(chromium, failed, "ValueError")
    boxes = chromium.find_all("td input[type=checkbox]")
    assert len(boxes) == 4
    boxes[0].click()
    ActionChains(chromium.driver).key_down(Keys.SHIFT).click(boxes[3]).key_up(Keys.SHIFT).perform()
    assert all(box.is_selected() for box in boxes)
    for box in (boxes[0], boxes[2], boxes[3]):
        box.click()
    before = failed.refreshes
    chromium.wait(lambda: chromium.run("return window.turns") > 5, "some turns")
    assert failed.refreshes <= before + 1  # it pauses, and the tick stays
    chromium.follow("button", "Retry the ticked")
    assert "retried 1 job" in chromium.find(".notice").text
    wait_until(lambda: failed.broker.count(MAIL, "buried") == 7, "it has failed again")
    open_group(chromium, failed, "ValueError")
    for box in chromium.find_all("td input[type=checkbox]")[:2]:
        box.click()
    chromium.click("summary", "Delete the ticked")
    chromium.follow("button.danger")
    assert "deleted 2 jobs" in chromium.find(".notice").text
    assert failed.broker.count(MAIL, "buried") == 5


def test_all_that_match_are_retried_after_a_question_with_their_number(chromium, failed, tmp_path):
    chromium.open(failed.url("/failures"))
    chromium.find("input[type=search]").send_keys("invoice")
    chromium.follow("button", "Filter")
    assert len(chromium.find_all("tbody tr")) == 1
    (tmp_path / "repaired").touch()
    chromium.follow("a", "Retry all that match")
    assert "Retry 3 jobs of all queues that failed with invoice?" in chromium.find("h1").text
    chromium.follow(".question button")
    assert "retried 3 jobs" in chromium.find(".notice").text
    wait_until(lambda: failed.broker.count(MAIL, "buried") == 4, "they have run")
    assert [action["count"] for action in failed.actions if action["action"] == "retry"] == [3]


def test_all_that_match_are_deleted_in_steps_and_no_others(chromium, failed, monkeypatch):
    monkeypatch.setattr(pages, "CHUNK", 3)  # of the server, which runs in this process
    chromium.open(failed.url("/failures", pattern="welcome"))
    chromium.follow("a", "Delete all that match")
    assert chromium.find("h1").text == "Delete 4 jobs of all queues that failed with welcome?"
    chromium.click("button.danger", "Delete 4 jobs")
    chromium.wait_for_text("deleted 4 jobs", ".notice")
    assert failed.broker.count(MAIL, "buried") == 3
    assert [each["count"] for each in failed.actions] == [3, 1]
    chromium.hasten(0.001)  # the page does not go on by itself
    monkeypatch.setattr(pages, "CHUNK", 2)
    open_group(chromium, failed, "Bury")
    chromium.follow("a", "Delete all (3)")
    chromium.follow("button.danger", "Delete 3 jobs")
    assert chromium.find("h1").text == "Deleted 2 of 3 buried jobs of com.example/mail"
    chromium.follow("a", "Stop")
    assert chromium.find("h1").text == "invoice: Bury"
    assert failed.broker.count(MAIL, "buried") == 1


def test_id_of_another_job_after_a_restart_is_refused(chromium, site, supervise):
    supervise("--queue", f"{MAIL}=1", app=APP).wait_for_log("ready: ")
    welcome("nobody")
    wait_until(lambda: site.broker.count(MAIL, "buried") == 1, "a failure")
    chromium.open(site.url("/failures"))
    chromium.follow("td a", "job")
    assert chromium.find_all("button", "Retry")
    site.broker.kill()  # without a log: its ids begin again
    site.broker.start()
    with site.broker.client("other") as client:
        for number in range(5):
            client.put(json.dumps({"number": number}).encode())
        for _ in range(5):
            client.bury(client.reserve(timeout=5))
    chromium.follow("button", "Retry")
    assert site.broker.count("other", "buried") == 5
    assert "this id is another job" in chromium.text or "another job now" in chromium.text, chromium.text
    chromium.problems()


def test_who_may_not_see_arguments_sees_none(chromium, failed, tmp_path):
    failed.log_in(chromium, "blind")
    secrets = (CARD, "nobody1", "nobody2", "no @ in")
    chromium.open(failed.url("/failures"))
    urls = [link for link in chromium.run("return [...document.links].map(link => link.href)") if "/backend/" in link]
    open_group(chromium, failed, "ValueError")
    urls += [link for link in chromium.run("return [...document.links].map(link => link.href)") if "/backend/" in link]
    seen = 0
    for url in dict.fromkeys(urls):
        if "/retry" in url or "/delete" in url:
            continue
        path, _, query = url.partition("?")
        chromium.open(url)
        for shown in (chromium.driver.page_source, read_json(chromium, path, query)):
            assert not [secret for secret in secrets if secret in shown], url
            seen += 1
    assert seen > 20
    printed = tmp_path / "printed.pdf"
    chromium.print(printed)
    assert printed.stat().st_size > 1000
    failed.log_in(chromium, "operator")
    chromium.open(next(url for url in urls if "/job?" in url))
    assert any(secret in chromium.driver.page_source for secret in secrets)


def read_json(chromium, path, query) -> str:
    path = "/backend/queues" if path.endswith("/backend/") else path
    return chromium.run("return fetch(arguments[0]).then(answer => answer.text())", f"{path}.json?{query}")


HOSTILE = [
    b'{"endpoint": "<script>owned()</script>", "args": ["<img src=x onerror=owned()>", "\\u202egnp.exe \\u001b[31m"]}',
    "\u202e<svg onload=owned()>\x1b[2J\x07".encode(),
    b"\xff\xfe" + b"<script>owned()</script>" * 2,
    b'"' + b"A" * 60_000 + b'<script>owned()</script>"',
    b"[" * 5000,
    ("{" + '"' + "\U0001f4a3\u2066" * 500 + '": 1}').encode(),
]


def test_hostile_bodies_stay_text_and_keep_the_layout(chromium, site):
    ids = [site.broker.put("com.example/other", body) for body in HOSTILE]
    wrong = []
    for job_id in ids:
        chromium.open(site.url("/job", queue="com.example/other", id=job_id))
        source = chromium.run("return document.body.textContent")
        wrong += [f"{job_id}: {each!r}" for each in "\u202e\u2066\x1b\x07" if each in source]
        wrong += [f"{job_id} has markup"] if chromium.find_all("main :is(img, svg, script)") else []
        wrong += [f"{job_id} is wider than the page"] if chromium.run("return document.body.scrollWidth") > 1280 else []
    assert not wrong
