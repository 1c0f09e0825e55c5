"""The dashboard as a server of its own: whom it lets in, and what its answers have. No broker is asked."""

from __future__ import annotations

import socket
import threading

import pytest

from flask_backend import Backend
from flask_backend.dashboard import standalone
from flask_backend.dashboard.blueprint import HEADERS
from flask_backend.dashboard.standalone import Links, make_app, make_wsgi_server

URL = "http://127.0.0.1:8000"


@pytest.fixture
def links():
    printed = []
    links = Links(URL, printed.append)
    links.renew()
    links.printed = printed
    return links


@pytest.fixture
def app(links):
    return make_app(Backend(), {"BACKEND_CONNECTION_URI": "btq://127.0.0.1:1"}, links, "ann")


@pytest.fixture
def client(app, links):
    client = app.test_client()
    assert client.get(links.printed[-1].removeprefix(URL), base_url=URL).status_code == 302
    return client


@pytest.mark.parametrize("host", ["127.0.0.1:8000", "LOCALHOST", "localhost:1", "[::1]", "[::1]:8000"])
def test_a_loopback_name_is_admitted_and_asked_for_the_link(app, host):
    assert app.test_client().get("/", headers={"Host": host}).status_code == 403


@pytest.mark.parametrize(
    "host",
    [
        *("localhost.", "127.1", "0x7f.1", "2130706433", "127.0.0.2", "::1", "[::1", "[::ffff:127.0.0.1]"),
        *("127.0.0.1.evil.example", "127.0.0.1@evil.example", "127.0.0.1:80@evil.example", "evil.example#127.0.0.1"),
        *(
            "user:word@127.0.0.1",
            "127.0.0.1:99999",
            "127.0.0.1:x",
            "127.0.0.1 ",
            "localhost\xff",
            "127.0.0.1:8\xb9",
            "",
        ),
    ],
)
def test_any_other_host_is_refused_even_with_the_link(app, links, host):
    link = links.printed[-1]
    for path in ("/", link.removeprefix(URL), "/assets/dashboard.js"):
        answer = app.test_client().get(path, headers={"Host": host, "X-Forwarded-Host": "127.0.0.1"})
        assert (answer.status_code, "Set-Cookie" in answer.headers) == (421, False)
    assert links.printed[-1] == link


def test_a_link_is_used_up_by_a_browser_that_is_known_too(client, links):
    link = links.printed[-1].removeprefix(URL)
    assert client.get(link, base_url=URL).status_code == 302
    assert client.get(link, base_url=URL).status_code == 302  # a reload
    assert client.application.test_client().get(link, base_url=URL).status_code == 403
    assert len(links.printed) == 3


@pytest.mark.parametrize("token", ["", "%ff", "%ed%a0%80", "x" * 60_000, "a&token=b", "%00"])
def test_a_wrong_token_uses_up_nothing(app, links, token):
    assert app.test_client().get(f"/?token={token}", base_url=URL).status_code == 403
    assert len(links.printed) == 1


def test_neither_head_nor_post_nor_an_icon_uses_up_a_link(app, links):
    link, client = links.printed[-1].removeprefix(URL), app.test_client()
    assert client.head(link, base_url=URL).status_code == 403
    assert client.post(link, base_url=URL).status_code == 403
    assert client.get("/favicon.ico", base_url=URL).status_code == 403
    assert client.get(link, base_url=URL).status_code == 302


def test_the_cookie_of_another_port_or_run_is_not_taken(app, links):
    for cookie in (f"flask_backend_8001={links.cookie}", "flask_backend_8000=", "flask_backend_8000=\xff\xfe"):
        assert app.test_client().get("/", base_url=URL, headers={"Cookie": cookie}).status_code == 403


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nothing", 404),
        ("GET", "/favicon.ico", 404),
        ("GET", "/queue/pause", 405),
        ("TRACE", "/", 405),
        ("POST", "/job", 405),
        ("GET", "//evil.example", 308),
        ("GET", "/assets/%2e%2e/blueprint.py", 404),
        ("GET", "/", 503),
    ],
)
def test_each_answer_has_the_headers(client, method, path, status):
    answer = client.open(path, method=method, base_url=URL)
    assert answer.status_code == status
    assert {name: answer.headers.get(name) for name in HEADERS} == HEADERS
    assert "evil.example" not in answer.headers.get("Location", "")


def test_a_slow_client_neither_stops_others_nor_stays(app, monkeypatch):
    monkeypatch.setattr(standalone._Handler, "timeout", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = make_wsgi_server(listener, app)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            slow = [socket.create_connection(listener.getsockname(), timeout=20) for _ in range(20)]
            for each in slow:
                each.sendall(b"GET / HTTP/1.1\r\nHost: 127")
            with socket.create_connection(listener.getsockname(), timeout=20) as other:
                other.sendall(b"GET / HTTP/1.0\r\n\r\n")
                assert b" 403 " in other.recv(100)
            for each in slow:
                assert each.recv(100) == b""
                each.close()
        finally:
            server.shutdown()
            server.server_close()
            thread.join()
