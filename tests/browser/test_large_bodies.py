"""Bodies and stories of megabytes, as a broker with a large -z takes them: they are cut, and the pages stay quick."""

from __future__ import annotations

import json
import time

import pytest
from support.beanstalkd import Beanstalkd
from support.dashboard_app import MAIL
from support.stories import bury_many

from flask_backend.config import Settings, parse_broker

pytestmark = pytest.mark.any_broker

SIZE = 3_000_000
LARGE = {
    "string": b'"' + b"A" * SIZE + b'"',
    "arguments": json.dumps({"endpoint": "welcome", "args": ["B" * SIZE]}).encode(),
    "name": json.dumps({"endpoint": "C" * SIZE}).encode(),
    "numbers": b"[" + b"1," * (SIZE // 2) + b"1]",
    "nested": b"[" * SIZE,
    "lines": b"\n" * SIZE,
    "binary": b"\xff" * SIZE,
    "bidi": '"{}"'.format("\u202e" * (SIZE // 3)).encode(),
    "markup": b"<script>owned()</script>" * (SIZE // 24),
}
MOST = 250_000  # characters of a page


@pytest.fixture
def broker():
    server = Beanstalkd(max_job_size=2 * SIZE)
    yield server
    server.stop()


def test_bodies_of_megabytes_are_cut_and_quick(chromium, site):
    ids = {name: site.broker.put(MAIL, body) for name, body in LARGE.items()}
    endless = {"message": "M" * SIZE, "traceback": "T\n" * (SIZE // 4), "exception": "ValueError"}
    [buried] = bury_many(Settings(parse_broker(site.broker.uri)), "other", 1, LARGE["string"], **endless)
    urls = [site.url("/job", queue=MAIL, id=job_id) for job_id in ids.values()]
    urls += [site.url(), site.url("/queue", queue=MAIL), site.url("/failures"), site.url("/job", id=buried)]
    urls += [site.url("/failures/group", queue="other", task="", kind="ValueError")]
    began = time.process_time()
    wrong = []
    for url in urls:
        chromium.open(url)
        path, _, query = url.partition("?")
        json_url = f"{path}.json?{query}" if query else site.url("/queues.json")
        length = chromium.run(
            "return fetch(arguments[0]).then(each => each.text()).then(text => text.length)", json_url
        )
        wrong += [f"{url} is long"] if max(length, len(chromium.driver.page_source)) > MOST else []
        wrong += [f"{url} is wide"] if chromium.run("return document.documentElement.scrollWidth") > 1280 else []
        wrong += [f"{url} has markup"] if chromium.find_all("main script") else []
    assert not wrong
    # Of this process, with the server in it.
    assert time.process_time() - began < 8
    chromium.open(urls[0])
    assert f"{SIZE + 2:,} bytes, too large to show here" in chromium.text
    chromium.follow("a", "Cancel")
    chromium.follow("button.danger")
    assert site.broker.job(ids["string"]) is None
