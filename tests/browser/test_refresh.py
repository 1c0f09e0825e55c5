"""Open pages stay up to date, and say so when they are not."""

from __future__ import annotations

import re

import pytest
from support.dashboard_app import IMAGES, MAIL, resize, welcome

pytestmark = pytest.mark.any_broker

ESCAPE = "\ue00c"


@pytest.fixture
def page(chromium, site):
    """The page of the queues, with one queue, and timers ten times as fast."""
    welcome("ann@example.com")
    chromium.hasten()
    chromium.open(site.url())
    return chromium


def cell(page, queue, label):
    return page.find(f"tr[data-queue='{queue}'] td[data-label='{label}']").text


def test_numbers_rows_and_rates_change_while_focus_and_scripts_errors_do_not(page, site):
    page.find("th a", MAIL).send_keys("")  # the focus
    welcome.map(["bob@example.com"] * 1200)
    resize("a.png")
    page.wait(lambda: cell(page, MAIL, "Ready") == "1,201", "the number has changed")
    assert cell(page, IMAGES, "Workers") == "no worker"
    assert page.run("return document.activeElement.textContent") == MAIL
    page.wait(lambda: re.fullmatch(r"[\d.]+", cell(page, MAIL, "In/s")), "a rate")
    page.wait(lambda: page.find(f"tr[data-queue='{MAIL}'] polyline").get_attribute("points"), "a line")
    page.open(site.url("/queue", queue=MAIL))
    page.open(site.url())
    assert page.find(f"tr[data-queue='{MAIL}'] polyline").get_attribute("points")  # the tab has kept the samples


def turns_without_refresh(page, site):
    """Return whether three turns of the clock pass without a request."""
    begun, refreshes = page.run("return window.turns"), site.refreshes
    page.wait(lambda: page.run("return window.turns") >= begun + 3, "three turns")
    return site.refreshes == refreshes


def test_refresh_pauses_while_a_dialog_is_open_or_a_field_is_in_use(page, site):
    page.wait(lambda: site.refreshes, "a refresh")
    page.press("?")
    assert turns_without_refresh(page, site)
    page.press(ESCAPE)
    before = site.refreshes
    page.wait(lambda: site.refreshes > before, "a refresh")
    page.open(site.url("/queue", queue=MAIL))
    page.find("main select").send_keys("")
    assert turns_without_refresh(page, site)


def test_refresh_pauses_while_the_page_is_hidden_and_goes_on_at_once(page, site):
    page.wait(lambda: site.refreshes, "a refresh")
    page.driver.minimize_window()
    try:
        assert page.run("return document.hidden")
        assert turns_without_refresh(page, site)
        assert page.find("#status").get_property("textContent") == ""
        before = site.refreshes
    finally:
        page.driver.set_window_rect(0, 0, 1280, 800)
    page.wait(lambda: site.refreshes > before, "a refresh")


def test_choices_of_refresh_theme_and_keys_are_remembered(page, site):
    page.press("r", "t", "t")
    assert page.find("#refresh").get_attribute("value") == "off"
    page.open(site.url("/queue", queue=MAIL))
    assert page.find("#refresh").get_attribute("value") == "off"
    assert page.run("return getComputedStyle(document.documentElement).colorScheme") == "dark"
    assert page.find("#theme").is_displayed()
    page.press("?")
    page.click("#has-keys")
    page.press(ESCAPE)
    page.open(site.url())
    page.press("t")
    assert page.run("return document.documentElement.dataset.theme") == "dark"


def test_keys_move_among_rows_and_pages(page, site):
    resize("a.png")
    page.open(site.url())
    page.press("j", "j", "j", "k")
    assert page.run("return document.activeElement.textContent") == IMAGES
    page.press("j", "\ue007")
    page.wait(lambda: page.url == site.url("/queue", queue=MAIL), "the row is open")
    page.press("q")
    page.wait(lambda: page.url == site.url(), "the queues")


def test_page_is_stale_while_the_broker_is_away_and_recovers(page, site):
    page.wait(lambda: site.refreshes, "a refresh")
    site.broker.stop()
    page.wait_for_text("Stale since", "#status")
    assert "The broker does not answer" in page.find("#status").text
    assert cell(page, MAIL, "Ready") == "1"  # as it was
    page.open(site.url())
    assert page.find("h1").text == "The broker does not answer"
    site.broker.start()
    welcome("ann@example.com")
    page.wait(lambda: cell(page, MAIL, "Ready") == "1", "the page has come back by itself")
    assert any("503" in each for each in page.problems())  # the browser logs the answers of the outage


def test_page_says_that_the_login_has_ended(page, site):
    site.log_in(page, "stranger")
    page.wait_for_text("Stale since", "#status")
    assert "Not allowed" in page.find("#status").text
    assert page.problems()


def test_everything_is_there_without_scripts(chromium, site):
    welcome("ann@example.com")
    with chromium.without_scripts():
        chromium.open(site.url())
        assert not chromium.find("#refresh").is_displayed()
        chromium.follow("a", "Measure the rates")
        assert re.fullmatch(r"[\d.]+", cell(chromium, MAIL, "In/s"))
        chromium.follow("a", MAIL)
        chromium.follow("button", "Pause")
        assert "paused" in chromium.find(".notice").text
        chromium.follow("button", "Resume")
        assert site.broker.tube(MAIL)["pause-time-left"] == 0
    assert site.refreshes == 0


def test_two_people_see_what_the_other_one_does(page, site):
    other = type(page)()
    try:
        other.hasten()
        other.open(site.url("/queue", queue=MAIL))
        other.follow("button", "Pause")
        page.wait(lambda: cell(page, MAIL, "Paused").startswith("for "), "the first one sees the pause")
        page.open(site.url("/queue", queue=MAIL))
        page.follow("button", "Resume")
        other.wait(lambda: not other.find_all("button", "Resume"), "the second one sees its end")
    finally:
        other.quit()


def test_choice_that_is_not_sent_yet_survives_a_refresh(page, site):
    page.open(site.url("/queue", queue=MAIL))
    page.find("main select").send_keys("until resumed")
    page.run("document.activeElement.blur()")
    before = site.refreshes
    page.wait(lambda: site.refreshes >= before + 2, "two refreshes")
    assert page.run("return document.querySelector('main select').selectedOptions[0].text") == "until resumed"
