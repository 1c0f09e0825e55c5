"""`flask-backend dashboard`: a server on the loopback interface for one person."""

from __future__ import annotations

import http.client
import re
import signal
import socket
import sys
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from click.testing import CliRunner
from helpers import Program
from support.beanstalkd import free_port
from support.dashboards import Form

from flask_backend.cli import main

pytestmark = pytest.mark.any_broker

PROGRAM = Path(sys.executable).parent / "flask-backend"
APP = """
from flask import Flask
from flask_backend import Backend
app = Flask("shop")
backend = Backend(app)
@backend.task("mail")
def welcome(user): ...
"""


@pytest.fixture
def start(tmp_path):
    started = []

    def start(*args, under=(), **env):
        log = tmp_path / f"log{len(started)}"
        program = Program(*under, PROGRAM, *args, log=log, cwd=tmp_path, env={"PYTHONWARNINGS": "error", **env})
        started.append(program)
        return program

    yield start
    for program in started:
        program.end()


class Tab:
    """A browser without redirects: it shows what it is sent, and keeps its cookies."""

    def __init__(self, link: str) -> None:
        self.place = urlsplit(link)
        self.cookie = ""

    def ask(self, path, method="GET", body=None, **headers):
        sent = {"Cookie": self.cookie} if self.cookie else {}
        connection = http.client.HTTPConnection(self.place.hostname, self.place.port, timeout=20)
        try:
            connection.request(method, path, body, {**sent, **{k.replace("_", "-"): v for k, v in headers.items()}})
            answer = connection.getresponse()
            text = answer.read().decode()
        finally:
            connection.close()
        if cookie := answer.headers.get("Set-Cookie"):
            self.cookie = cookie.partition(";")[0]
            self.attributes = cookie
        return answer.status, answer.headers, text


def link_of(program, number=0):
    program.wait_for(rf"(?s)(?:http://\S+\?token=\S+\n.*){{{number + 1}}}")
    return re.findall(r"http://\S+\?token=\S+", program.output)[number]


def open_tab(program, number=0):
    tab = Tab(link_of(program, number))
    status, headers, _ = tab.ask(f"/?{tab.place.query}")
    assert (status, headers["Location"]) == (302, "/")
    return tab


def test_the_link_works_once_and_becomes_a_cookie(start, broker):
    program = start("dashboard", "--broker", broker.uri)
    link = link_of(program)
    stranger = Tab(link)
    assert stranger.ask("/")[0] == 403
    tab = open_tab(program)
    assert tab.cookie.startswith(f"flask_backend_{tab.place.port}=")
    assert "HttpOnly" in tab.attributes
    assert "SameSite=Strict" in tab.attributes
    status, headers, page = tab.ask("/")
    assert (status, broker.uri in page) == (200, True)
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    token = urlsplit(link).query.removeprefix("token=")
    assert token not in page
    status, _, text = stranger.ask(f"/?token={token}")
    assert (status, "used already" in text) == (403, True)
    assert stranger.ask("/")[0] == 403
    assert tab.ask(f"/?token={token}")[0] == 302  # the browser that has the cookie may open the old link again
    other = open_tab(program, 1)  # the terminal shows a link for another browser
    assert (other.ask("/workers")[0], tab.ask("/workers")[0]) == (200, 200)
    assert program.output.count(token) == 1  # where it was printed: no log has it
    assert program.stop() == 0


def test_a_name_that_another_site_resolves_to_loopback_is_refused(start, broker):
    program = start("dashboard", "--broker", broker.uri)
    tab = open_tab(program)
    port = tab.place.port
    for host in ("evil.example", f"evil.example:{port}", "127.0.0.1.evil.example", "10.0.0.1", "[::2]", "["):
        assert tab.ask("/", Host=host)[0] == 421
    assert tab.ask("/", Host="localhost:1234")[0] == 403  # a forwarded port: that browser has no cookie yet
    assert tab.ask("/", Host=f"localhost:{port}")[0] == 200


def test_a_form_of_another_origin_is_refused(start, broker):
    broker.put("mail", b"{}")
    program = start("dashboard", "--broker", broker.uri)
    tab = open_tab(program)
    form = {"Content_Type": "application/x-www-form-urlencoded"}
    for headers in ({}, {"Origin": "http://127.0.0.1:1"}, {"Sec_Fetch_Site": "same-site"}):
        assert tab.ask("/queue/pause", "POST", "queue=mail&seconds=60", **form, **headers)[0] == 403
    own = {"Origin": f"http://127.0.0.1:{tab.place.port}"}
    assert tab.ask("/queue/pause", "POST", "queue=mail&seconds=60", **form, **own)[0] == 303
    assert broker.tube("mail")["pause"] == 60
    program.wait_for(r"flask_backend\.audit: \S+: paused mail for 1m: done")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_it_ends_with_0_while_a_page_waits(start, number):
    with socket.create_server(("127.0.0.1", 0)) as silent:  # a broker that never answers
        program = start("dashboard", "--broker", f"btq://127.0.0.1:{silent.getsockname()[1]}")
        tab = open_tab(program)
        connection = http.client.HTTPConnection("127.0.0.1", tab.place.port, timeout=20)
        connection.request("GET", "/", headers={"Cookie": tab.cookie})
        silent.accept()[0].close()
        program.process.send_signal(number)
        assert program.process.wait(20) == 0
        connection.close()
    assert "Traceback" not in program.output


def test_it_needs_no_app_and_no_broker(start):
    program = start("dashboard", "--broker", f"btq://127.0.0.1:{free_port()}")
    tab = open_tab(program)
    status, _, page = tab.ask("/")
    assert (status, "The broker does not answer" in page) == (503, True)
    assert tab.ask("/workers")[0] == 200


def test_with_an_app_it_uses_that_apps_broker(start, broker, tmp_path):
    (tmp_path / "shop.py").write_text(APP)
    program = start("--app", "shop", "dashboard", BACKEND_CONNECTION_URI=broker.uri)
    tab = open_tab(program)
    assert broker.uri in tab.ask("/")[2]


def test_an_app_that_does_not_load_is_reported_unless_it_is_not_needed(start, broker, tmp_path):
    (tmp_path / "app.py").write_text("1/0")
    program = start("dashboard")
    assert program.process.wait(20) == 3
    assert "ZeroDivisionError" in program.output
    program = start("dashboard", "--broker", broker.uri)
    assert open_tab(program).ask("/")[0] == 200


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "example.com", "127.0.0.2"])  # noqa: S104  # they are refused
def test_it_listens_on_the_loopback_interface_only(host):
    result = CliRunner().invoke(main, ["dashboard", "--host", host, "--broker", "btq://127.0.0.1:1"])
    assert result.exit_code == 2
    assert "expected 127.0.0.1 or ::1 or localhost" in " ".join(result.output.split())


def test_it_listens_on_ipv6_too(start, broker):
    if not socket.has_ipv6:
        pytest.skip("no IPv6 here")
    program = start("dashboard", "--host", "::1", "--broker", broker.uri)
    tab = open_tab(program)
    assert tab.place.netloc.startswith("[::1]:")
    assert tab.ask("/")[0] == 200


def test_a_port_that_is_taken_is_one_sentence(start, broker):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        program = start("dashboard", "--port", str(port), "--broker", broker.uri)
        assert program.process.wait(20) == 1
    assert f"cannot listen on 127.0.0.1, port {port}: Address already in use" in program.output
    assert "Traceback" not in program.output


def test_read_only_shows_and_changes_nothing(start, broker):
    broker.put("mail", b"{}")
    program = start("dashboard", "--read-only", "--broker", broker.uri)
    tab = open_tab(program)
    _, _, page = tab.ask("/queue?queue=mail")
    assert Form(page, "/queue/pause").action is None
    headers = {"Content_Type": "application/x-www-form-urlencoded", "Sec_Fetch_Site": "same-origin"}
    assert tab.ask("/queue/pause", "POST", "queue=mail&seconds=60", **headers)[0] == 403
    assert broker.tube("mail")["pause"] == 0
