"""Servers that are not Beanstalkd, at the broker's address."""

from __future__ import annotations

import re
import socket
import threading
from contextlib import suppress

import pytest
from flask import Flask
from support.waiting import wait_until
from support.workload import QUEUE

from flask_backend import Backend, BrokerConnectionError

# Their data, sent at once or in answer to our first command.
STRANGERS = {
    "redis": (b"", b"+OK\r\n-ERR unknown command 'ignore', with args beginning with: 'default'\r\n", "Redis"),
    "redis with a password": (b"", b"-NOAUTH Authentication required.\r\n" * 2, "Redis"),
    "a web server": (b"", b"HTTP/1.1 400 Bad Request\r\nServer: nginx\r\n\r\n", "a web server"),
    "a web server of HTTP/0.9": (b"", b"<html>\n<head><title>400 Bad Request</title>", "a web server"),
    "a mail server": (b"220 mail.example.com ESMTP\r\n", b"502 5.5.2 Error\r\n", "a mail or FTP server"),
    "ssh": (b"SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n", b"Invalid SSH identification string.\r\n", "an SSH server"),
    "tls": (b"", b"\x15\x03\x01\x00\x02\x02\x0a", "a TLS server"),
    "memcached": (b"", b"ERROR\r\nERROR\r\n", "memcached"),
    "mysql": (b"J\x00\x00\x00\x0a8.0.36\x00", b"", "'J\\x00"),
    "a chatty one": (b"", b"WATCHED\r\n" * 10_000, "'WATCHED'"),
}
# The one that closes may do so before or after our first command has arrived.
CLOSES, SILENT = (
    r"closed the connection without an answer|Connection reset by peer|Broken pipe",
    r"no answer within 0\.3 s",
)


class Stranger:
    """A server that sends a greeting and one answer to each client; without both it closes, or stays silent."""

    def __init__(self, greeting: bytes = b"", answer: bytes = b"", *, closes: bool = False) -> None:
        self._words = greeting, answer
        self._closes = closes
        self._is_stopped = False
        self.clients: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.uri = f"btq://127.0.0.1:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        greeting, answer = self._words
        while True:
            client, _ = self._listener.accept()
            self.clients.append(client)
            if self._is_stopped:
                return
            with suppress(OSError):
                client.sendall(greeting)
                if answer and client.recv(1000):
                    client.sendall(answer)
            if self._closes:
                client.close()

    def stop(self) -> None:
        self._is_stopped = True
        socket.create_connection(self._listener.getsockname()).close()  # wakes the accept
        self._thread.join()
        for each in (*self.clients, self._listener):
            each.close()


@pytest.fixture
def stranger(request):
    made = Stranger(*request.param[:2]) if isinstance(request.param, tuple) else Stranger(closes=request.param)
    yield made
    made.stop()


def scheduling(uri: str):
    app = Flask("app")
    app.config.update(BACKEND_CONNECTION_URI=uri, BACKEND_TIMEOUT=0.3)
    task = Backend(app).task(QUEUE)(lambda: None)
    with app.app_context(), pytest.raises(BrokerConnectionError) as caught:
        task()
    return str(caught.value)


@pytest.mark.parametrize(("stranger", "name"), [(each, each[2]) for each in STRANGERS.values()], indirect=["stranger"])
def test_a_server_that_is_not_beanstalkd_is_one_sentence_for_a_producer(stranger, name):
    error = scheduling(stranger.uri)
    assert error.startswith(f"the server at {stranger.uri} is not Beanstalkd: it answers ")
    assert name in error
    assert error.isprintable()
    assert len(error) < 250
    assert error.endswith("; check BACKEND_CONNECTION_URI")


@pytest.mark.parametrize(("stranger", "reason"), [(True, CLOSES), (False, SILENT)], indirect=["stranger"])
def test_a_server_that_does_not_answer_is_one_sentence_too(stranger, reason):
    error = scheduling(stranger.uri)
    assert error.startswith(f"cannot connect to Beanstalkd at {stranger.uri}: ")
    assert re.search(reason, error)


@pytest.mark.parametrize("stranger", [STRANGERS["redis"]], indirect=True)
def test_a_check_of_the_queues_fails_at_a_server_that_is_not_beanstalkd(stranger, broker, command):
    check = command("queues", "--check", BACKEND_CONNECTION_URI=stranger.uri)
    assert check.wait() == 1
    assert check.log == (
        f"Error: the server at {stranger.uri} is not Beanstalkd: it answers '+OK', like Redis; "
        "check BACKEND_CONNECTION_URI\n"
    )


@pytest.mark.parametrize("arguments", [("worker", QUEUE), ("supervise",), ("check",), ("queues",)], ids=lambda a: a[0])
def test_a_host_name_that_cannot_be_looked_up_is_an_error_of_configuration(arguments, broker, command):
    running = command(*arguments, BACKEND_CONNECTION_URI="btq://.internal")
    assert running.wait() == 3
    assert "BACKEND_CONNECTION_URI is 'btq://.internal'; expected a valid host name" in running.log


@pytest.mark.parametrize("stranger", [STRANGERS["redis"]], indirect=True)
def test_a_worker_logs_once_that_the_server_is_not_beanstalkd(stranger, broker, command):
    worker = command("worker", QUEUE, BACKEND_CONNECTION_URI=stranger.uri)
    wait_until(lambda: len(stranger.clients) >= 4, "it has tried again")
    assert worker.log.count("is not Beanstalkd") == 1
    assert len(worker.log.splitlines()) == 2, worker.log  # and that it is ready


def test_a_server_that_breaks_each_connection_causes_no_log_storm(broker, command):
    """It answers the first commands as Beanstalkd does, then closes."""
    stranger = Stranger(b"", b"WATCHING 2\r\nWATCHING 1\r\n", closes=True)
    try:
        worker = command("worker", QUEUE, BACKEND_CONNECTION_URI=stranger.uri)
        worker.wait_for_log("back at Beanstalkd")
        started = len(stranger.clients)
        wait_until(lambda: len(stranger.clients) >= started + 4, "it has tried again")
        assert len(worker.log.splitlines()) <= 2 * len(stranger.clients) + 1
        times = [line[:23] for line in worker.log.splitlines() if "lost the connection" in line]
        assert times == sorted(set(times))
    finally:
        stranger.stop()
