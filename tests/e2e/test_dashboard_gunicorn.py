"""The dashboard in an app under gunicorn: several processes, threads and greenlets."""

from __future__ import annotations

import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from http.cookiejar import CookieJar
from urllib.parse import urlencode
from urllib.request import HTTPCookieProcessor, ProxyHandler, Request, build_opener

import pytest
from helpers import Program
from support.waiting import wait_until

APP = """
from flask import Flask
from flask_backend import Backend
from flask_backend.dashboard import Dashboard

app = Flask("shop")
backend = Backend(app)

@backend.task("mail")
def welcome(user): ...

app.register_blueprint(Dashboard(lambda action, what: True), url_prefix="/backend")
"""
PAGES = ("", "queue?queue=mail", "workers", "actions", "queue/delete-ready?queue=mail", "assets/dashboard.css")


@pytest.fixture
def serve(broker, tmp_path):
    """Start gunicorn; return a function that opens a URL of the dashboard."""
    programs = []

    def serve(*options):
        (tmp_path / "shop.py").write_text(APP)
        command = (sys.executable, "-m", "gunicorn", "--bind", "127.0.0.1:0", *options, "shop:app")
        env = {**broker.env, "PYTHONPATH": str(tmp_path)}
        program = Program(*command, log=tmp_path / "log", cwd=tmp_path, env=env)
        programs.append(program)
        address = program.wait_for(r"Listening at: (http://127\.0\.0\.1:\d+)")[1]
        opener = build_opener(ProxyHandler({}), HTTPCookieProcessor(CookieJar()))

        def ask(path, **form):
            data = urlencode(form).encode() if form else None
            request = Request(f"{address}/backend/{path}", data, {"Origin": address})  # noqa: S310  # of the server above
            with opener.open(request, timeout=20) as answer:
                return answer.read().decode()

        return ask

    yield serve
    for program in programs:
        program.end()


@pytest.mark.any_broker
@pytest.mark.parametrize(
    "options",
    [("--workers", "2", "--preload"), ("--threads", "4"), ("--worker-class", "gevent")],
    ids=["processes", "threads", "gevent"],
)
def test_each_page_is_served_to_many_at_once(serve, broker, options):
    broker.put("mail", b'{"endpoint": "welcome", "args": ["ann"]}')
    ask = serve(*options)
    with ThreadPoolExecutor(8) as threads:
        shown = list(threads.map(ask, PAGES * 8))
    assert all(shown)
    assert "paused mail for 1m" in ask("queue/pause", queue="mail", seconds="60")
    assert broker.tube("mail")["pause"] == 60


def test_each_process_has_the_actions_that_it_has_seen(serve, broker):
    broker.put("mail", b"{}")
    ask = serve("--workers", "2", "--preload")
    found = {}

    def see_both():
        ask("queue/pause", queue="mail", seconds="60")
        told = json.loads(ask("actions.json"))
        found[told["pid"]] = told["actions"]
        return len(found) == 2 and all(found.values())

    wait_until(see_both, "both processes have seen an action")
    assert os.getpid() not in found
    # No action is in both: nothing is shared.
    first, second = ({action["at"] for action in actions} for actions in found.values())
    assert first.isdisjoint(second)
