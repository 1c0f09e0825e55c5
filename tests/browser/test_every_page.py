"""What holds for every page, which a walk along the links finds: one page of each path."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest
from support import dashboard_app
from support.dashboard_app import IMAGES, MAIL, REPORTS, resize, welcome
from support.waiting import wait_until

pytestmark = pytest.mark.any_broker

APP = f"{dashboard_app.__file__}:create_app"
# What the walk must have found; it checks further pages too.
LOOKS = 4  # the queues differ in what they offer
LEAST = {"/", "/queue", "/workers", "/actions", "/queue/retry-buried", "/queue/delete-ready", "/workers/stop"}
LEAST |= {"/schedules", "/batches"}


@pytest.fixture
def busy_site(site, supervise):
    """A site with workers, jobs in each state, and failures."""
    queues = [part for queue in (MAIL, IMAGES, REPORTS) for part in ("--queue", f"{queue}=1")]
    supervisor = supervise(*queues, app=APP)
    supervisor.wait_for_log("ready: ")
    welcome.map(["ann@example.com", "nobody", "<script>document.title = 'owned'</script>"])
    with dashboard_app.backend.batch() as batch:
        batch.on_complete(dashboard_app.tidy)
        batch.add(welcome, "nobody either")
    resize("huge.png")
    resize("slow.png")
    dashboard_app.report.options(delay=3600)(2026)
    site.broker.put("com.example/a-queue-that-nobody-serves-with-a-very-long-name", b"<script>")
    wait_until(lambda: site.broker.count(MAIL, "buried") == 3, "three failures", 30)
    wait_until(lambda: site.broker.count(IMAGES, "buried") == 1, "a worker was killed three times", 30)
    return site


def walk(chromium, site) -> Iterator[str]:
    """Open some pages of each path that a link leads to; yield the URL of the first of each while it is open."""
    found: dict[str, list[str]] = defaultdict(list)
    queue = [site.url()]
    while queue:
        url = queue.pop(0)
        path = urlsplit(url).path
        seen = found[path]
        if url in seen or len(seen) == LOOKS or not url.startswith(site.url("")) or path.endswith(".json"):
            continue
        seen.append(url)
        chromium.open(url)
        queue += chromium.run("return [...document.links].map(link => link.href.replace(/#.*/, ''))")
        if len(seen) == 1:
            yield url


def test_every_page_in_both_themes_and_in_all_sizes(chromium, busy_site):
    seen: set[str] = set()
    wrong: list[str] = []
    for url in walk(chromium, busy_site):
        path = urlsplit(url).path
        seen.add(path.removeprefix("/backend"))
        for theme in ("light", "dark"):
            chromium.prefer(theme, reduced_motion=True)
            wrong += [f"{path} in {theme}: {each}" for each in chromium.violations()]
        for width in (320, 1280, 3840):
            chromium.resize(width, 800)
            needed = chromium.run("return document.documentElement.scrollWidth")
            wrong += [f"{path} is {needed} wide on a screen of {width}"] if needed > width else []
        chromium.resize()
        wrong += [f"{path}: {each}" for each in chromium.problems()]
        assert chromium.run("return document.title") != "owned"
        assert chromium.run("return document.querySelectorAll('main h1').length") == 1
    assert not wrong, "\n".join(wrong)
    assert seen >= LEAST
