"""A hundred queues, among them names that are valid and odd, on a phone and in a refresh."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.any_broker

ODD = ["..", "a//b", "a/../b", "+plus", "$(id);x", "queue.json", "()", "0", "n" * 200, "n/" * 95]


def test_hundred_queues_with_odd_names_fit_a_phone_and_open(chromium, site):
    names = ODD + [f"com.example/team-{number}/imports" for number in range(100 - len(ODD))]
    for name in names:
        site.broker.put(name, b"{}")
    chromium.hasten()
    chromium.resize(320, 640, 2, is_mobile=True)
    chromium.open(site.url())
    links = chromium.run("return [...document.querySelectorAll('th a')].map(each => [each.textContent, each.href])")
    assert {name for name, _ in links} == set(names)
    for name in names:
        site.broker.put(name, b"{}")
    ready = "return [...document.querySelectorAll('td[data-label=Ready]')].map(each => each.textContent)"
    chromium.wait(lambda: set(chromium.run(ready)) == {"2"}, "each row has its new number")
    assert chromium.run("return document.documentElement.scrollWidth") == 320
    for name, url in links:
        if name not in ODD:
            continue
        chromium.open(url)
        assert chromium.find("h1").text == name
        assert chromium.run("return document.documentElement.scrollWidth") == 320
        if name in ODD[:3]:
            chromium.follow("button", "Pause")
            assert site.broker.tube(name)["pause-time-left"] > 0
