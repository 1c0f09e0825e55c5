"""`flask-backend dashboard` in a browser: its link works once, and no other site gets its pages."""

from __future__ import annotations

import re

import pytest
from support.sites import FOREIGN

pytestmark = pytest.mark.any_broker


def test_link_works_once_and_leaves_no_token_behind(chromium, broker, command):
    broker.put("mail", b"{}")
    server = command("dashboard", "--broker", broker.uri)
    server.wait_for_log("/?token=")
    link = re.findall(r"http://\S+", server.log)[0]
    chromium.open(link)
    assert chromium.url == link.partition("?")[0]
    assert chromium.find("tbody th").text == "mail"
    chromium.follow("tbody th a")
    chromium.follow("button", "Pause")
    assert broker.tube("mail")["pause-time-left"] > 0
    assert chromium.run("return document.cookie") == ""  # it is HttpOnly
    chromium.reset()
    chromium.open(link)
    assert "This link was used already" in chromium.text
    assert chromium.problems()  # the browser logs the status


def test_name_of_another_site_that_means_this_machine_gets_no_page(chromium, broker, command):
    server = command("dashboard", "--broker", broker.uri)
    server.wait_for_log("/?token=")
    link = re.findall(r"http://\S+", server.log)[0]
    chromium.open(link)
    port = re.search(r":(\d+)/", link)[1]
    chromium.open(f"http://{FOREIGN}:{port}/")
    assert "the Host header names another one" in chromium.text
    assert chromium.run("return fetch('/queues.json').then(answer => answer.status)") == 421
    again = re.findall(r"http://\S+", server.log)[-1].partition("?")[2]
    assert chromium.run("return fetch(arguments[0]).then(answer => answer.status)", f"/?{again}") == 421
    assert chromium.problems()
