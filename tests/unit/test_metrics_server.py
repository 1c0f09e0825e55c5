"""The HTTP server of the metrics, and clients that are slow, many, hostile or confused."""

from __future__ import annotations

import contextlib
import http.client
import os
import socket
import threading
import time

import pytest
from support.waiting import wait_until

from flask_backend.metrics import serving
from flask_backend.metrics.endpoint import Endpoint
from flask_backend.metrics.serving import MAX_CONNECTIONS, MAX_REQUEST, PageMissingError, Server

PAGE = b"some_metric 1\n"


class Served:
    """A server in a thread of this process."""

    def __init__(self) -> None:
        self.accepted: list[str] = []
        self.body = PAGE
        self.gate = threading.Event()
        self.gate.set()
        self.is_missing = False
        self.listener = Endpoint.parse("127.0.0.1:0").listen()
        self.port = self.listener.socket.getsockname()[1]
        self._stop_r, self._stop_w = os.pipe()
        self.server = Server(self.listener.socket, self._render, (self._stop_r,))
        self.thread = threading.Thread(target=self.server.run)
        self.thread.start()

    def _render(self, accept):
        self.accepted.append(accept)
        self.gate.wait(20)
        if self.is_missing:
            raise PageMissingError("there is no page")
        return self.body, "text/plain"

    def stop(self):
        os.write(self._stop_w, b"\0")

    def end(self):
        self.gate.set()
        self.stop()
        self.thread.join(20)
        assert not self.thread.is_alive()
        for fd in (self._stop_r, self._stop_w):
            os.close(fd)

    def connect(self):
        return socket.create_connection(("127.0.0.1", self.port), timeout=20)

    def send(self, request: bytes) -> bytes:
        """Send a request, and return the whole answer."""
        with self.connect() as client:
            client.sendall(request)
            return read_all(client)

    def get(self, **headers):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            connection.request("GET", "/metrics", headers=headers)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()


def read_all(client: socket.socket) -> bytes:
    data = b""
    with contextlib.suppress(ConnectionResetError):
        while got := client.recv(1 << 20):
            data += got
    return data


@pytest.fixture
def served():
    served = Served()
    yield served
    served.end()


def test_get_returns_the_page_and_head_only_its_size(served):
    assert served.get(Accept="text/plain") == (200, PAGE)
    head, _, body = served.send(b"HEAD /metrics HTTP/1.1\r\nHost: x\r\n\r\n").partition(b"\r\n\r\n")
    assert (head.splitlines()[0], body) == (b"HTTP/1.1 200 OK", b"")
    assert b"Content-Length: %d" % len(PAGE) in head.splitlines()
    assert served.accepted == ["text/plain", ""]


@pytest.mark.parametrize(
    "request_",
    [
        b"GET /metrics?name[]=x HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET http://host:9464/metrics HTTP/1.1\r\n\r\n",
        b"GET /metrics HTTP/1.0\r\n\r\n",
        b"GET /metrics HTTP/1.1\nHost: x\n\n",
        b"GET /metrics HTTP/1.1\r\nContent-Length: 4\r\n\r\nbody",
        b"GET /metrics HTTP/1.1\r\n\r\nGET /metrics HTTP/1.1\r\n\r\n",
    ],
)
def test_other_ways_to_ask_are_understood_and_one_answer_is_given(served, request_):
    answer = served.send(request_)
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert answer.count(b"HTTP/1.1") == 1


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", 404),
        (b"GET /metrics/ HTTP/1.1\r\n\r\n", 404),
        (b"POST /metrics HTTP/1.1\r\nContent-Length: 1\r\n\r\nx", 405),
        (b"DELETE /metrics HTTP/1.1\r\n\r\n", 405),
        (b"PRI * HTTP/2.0\r\n\r\n", 400),
        (b"GET /metrics\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", 400),
        (b"\r\n\r\n", 400),
        (b"x" * (MAX_REQUEST + 1), 431),
        (b"GET /metrics HTTP/1.1\r\n" + b"A: b\r\n" * (MAX_REQUEST // 4), 431),
    ],
)
def test_all_else_is_refused_and_the_server_goes_on(served, request_, status):
    assert served.send(request_).startswith(b"HTTP/1.1 %d " % status)
    assert served.accepted == []
    assert served.get() == (200, PAGE)


def test_several_accept_headers_are_one(served):
    served.send(b"GET /metrics HTTP/1.1\r\naccept: a/b\r\nACCEPT: c/d;q=0.5\r\n\r\n")
    assert served.accepted == ["a/b, c/d;q=0.5"]


def test_a_page_that_is_missing_is_an_answer_too(served):
    served.is_missing = True
    assert served.get() == (503, b"there is no page\n")


def test_a_fault_of_ours_is_logged_and_the_server_goes_on(served, monkeypatch, caplog):
    monkeypatch.setattr(served, "body", property(lambda _self: None))  # no page has such a size
    assert served.get() == (500, b"Internal Server Error\n")
    assert [record.message for record in caplog.records] == ["cannot show the metrics"]
    served.body = PAGE
    assert served.get() == (200, PAGE)


def test_a_request_may_come_byte_by_byte_and_others_do_not_wait_for_it(served):
    with served.connect() as slow:
        for byte in b"GET /metrics HTTP/1.1\r\n\r":
            slow.sendall(bytes([byte]))
            if byte in b"/\r":
                assert served.get() == (200, PAGE)
        slow.sendall(b"\n")
        assert read_all(slow).endswith(PAGE)


def test_a_client_that_never_ends_its_request_is_dropped(served, monkeypatch):
    monkeypatch.setattr(serving, "REQUEST_S", 0.05)
    with served.connect() as slow:
        slow.sendall(b"GET /metrics HTTP/1.1\r\n")
        assert read_all(slow).startswith(b"HTTP/1.1 408 ")
    with served.connect() as silent:
        assert read_all(silent).startswith(b"HTTP/1.1 408 ")


def test_a_client_that_does_not_read_its_answer_is_dropped_and_others_do_not_wait_for_it(served, monkeypatch):
    monkeypatch.setattr(serving, "ANSWER_S", 0.3)
    served.body = b"x" * (64 << 20)  # more than the buffers of both sides
    with served.connect() as deaf:
        deaf.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
        wait_until(lambda: served.accepted, "it is being answered")
        served.body = PAGE
        assert served.get() == (200, PAGE)
        wait_until(lambda: not served.server._clients, "the server has dropped it")


def test_a_large_page_arrives_whole(served):
    served.body = bytes(range(256)) * (32 << 10)
    assert served.get() == (200, served.body)


def test_more_clients_than_it_takes_do_not_keep_others_out(served):
    """The oldest that has not sent its request makes room."""
    with contextlib.ExitStack() as stack:
        idle = [stack.enter_context(served.connect()) for _ in range(2 * MAX_CONNECTIONS)]
        assert served.get() == (200, PAGE)
        assert len(served.server._clients) <= MAX_CONNECTIONS
        assert idle[0].recv(1) == b""


def test_many_clients_at_once_are_all_answered(served):
    found = []
    clients = [threading.Thread(target=lambda: found.append(served.get())) for _ in range(MAX_CONNECTIONS)]
    served.gate.clear()
    for client in clients:
        client.start()
    wait_until(lambda: served.accepted, "the first one is being answered")
    served.gate.set()
    for client in clients:
        client.join()
    assert found == [(200, PAGE)] * MAX_CONNECTIONS


def test_clients_that_go_away_leave_nothing(served):
    for request in (b"", b"GET /met", b"GET /metrics HTTP/1.1\r\n\r\n"):
        with served.connect() as client:
            client.sendall(request)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # a reset
    assert served.get() == (200, PAGE)
    wait_until(lambda: not served.server._clients, "all are gone")


def test_a_stop_finishes_the_answer_that_has_begun_and_drops_those_that_have_not_asked(served):
    with served.connect() as idle, served.connect() as asking:
        wait_until(lambda: len(served.server._clients) == 2, "both are connected")
        served.gate.clear()
        asking.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
        wait_until(lambda: served.accepted, "one is being answered")
        served.stop()
        served.gate.set()
        assert read_all(asking).endswith(PAGE)
        assert read_all(idle) == b""
    began = time.monotonic()
    served.thread.join(20)
    assert time.monotonic() - began < serving.STOP_S + 5
    with pytest.raises(ConnectionRefusedError):
        served.connect()
