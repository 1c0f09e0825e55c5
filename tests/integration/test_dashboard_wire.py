"""What a GET sends to the broker: only commands that read, and reserves of stories that end at once."""

from __future__ import annotations

import pytest
from support.dashboards import make_app
from support.proxy import Proxy
from support.stories import bury_many

from flask_backend.config import Address, Settings
from flask_backend.dashboard.pages import ALL
from flask_backend.names import failures_tube, schedule_tube
from flask_backend.periodic.definition import Definition
from flask_backend.periodic.token import Entry, Release, Token
from flask_backend.periodic.when import Every

# `use` and `watch` are of the connection itself; reserved stories are given back by `quit`.
READING = {
    *("list-tubes", "stats", "stats-tube", "stats-job", "peek", "peek-ready", "peek-delayed", "peek-buried"),
    *("use", "watch", "ignore", "reserve-with-timeout", "quit"),
}


@pytest.fixture
def proxy(broker):
    proxy = Proxy(broker.port, lambda: None)
    yield proxy
    proxy.close()


def test_a_get_of_each_page_and_question_sends_nothing_that_writes(broker, proxy):
    settings = Settings(Address("127.0.0.1", broker.port))
    [job_id, *_] = bury_many(settings, "mail", 30, endpoint="welcome", exception="E", traceback="x")
    broker.put("mail", b'{"endpoint": "welcome", "args": ["ann"]}')
    waits = broker.put("mail", b"\xff", delay=100)
    definition = Definition("daily", "mail", "welcome", Every(86400))
    broker.put(schedule_tube("mail"), Token("mail", 1, Release(), {"daily": Entry(definition, 1)}).encode())
    app = make_app(proxy.uri)
    client = app.test_client()
    query = f"queue=mail&task=welcome&kind=E&mark=x&newest=999&until=9e9&pattern=*&note=2&id={job_id}"
    paths = [path for pages in ALL for page in pages.pages for path in (page.path, page.json_path)]
    paths += [act.path for pages in ALL for act in pages.acts if act.ask and not act.path.startswith("/workers/")]
    more = [
        "/?measure=1",
        "/failures",
        f"/job?id={waits}",
        f"/job.json?id={waits}",
        "/failures/group?queue=mail&before=9",
    ]
    more += ["/queue?queue=mail&state=buried&before=9999999999999999999", "/failures?queue=mail", "/job?id=1&note=99"]
    for path in [f"{path}?{query}" for path in paths] + more:
        for method in ("GET", "HEAD", "OPTIONS"):
            answer = client.open(f"/backend{path}", method=method)
            assert answer.status_code in ((200,) if method != "GET" else (200, 404)), path
    broker.put("mail", b"{}")
    proxy_lines = [line for heard in proxy.requests for line in bytes(heard).decode().split("\r\n") if line]
    assert {line.partition(" ")[0] for line in proxy_lines} <= READING
    # Stories are reserved on connections that watch nothing else, and that quit.
    reserving = [bytes(heard) for heard in proxy.requests if b"reserve" in heard]
    assert reserving
    for heard in reserving:
        assert f"watch {failures_tube('mail')}\r\n".encode() in heard
        assert heard.endswith(b"quit\r\n")
    assert broker.count(failures_tube("mail"), "ready") == 30
    assert broker.count("mail", "reserved") == 0
