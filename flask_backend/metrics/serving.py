"""A small HTTP server for one page, in one thread: slow, silent or hostile clients cost it neither time nor memory.

Each connection carries one request. Prometheus, curl and others send GET; no body is read.
"""

from __future__ import annotations

import errno
import selectors
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from http import HTTPStatus

from flask_backend.system.loggers import get_logger

logger = get_logger("flask_backend.metrics")

PATH = b"/metrics"
# The most bytes of a request: its line and its headers.
MAX_REQUEST = 16 << 10
# How many connections there are at most. A further one takes the place of the oldest that is still sending its request.
MAX_CONNECTIONS = 32
# How long a client may take to send a request, and to read the answer.
REQUEST_S = 5.0
ANSWER_S = 10.0
# How long answers that have begun may take once the server is to stop.
STOP_S = 1.0
# How long to wait when the system lacks descriptors or memory for a connection.
_SHORTAGE_S = 0.1
_READ_BYTES = 64 << 10

# Takes the request's Accept header; returns the page and its content type. It may raise PageMissingError.
Render = Callable[[str], tuple[bytes, str]]


class PageMissingError(Exception):
    """There is no page to show, for the reason given."""


@dataclass(slots=True, eq=False)
class _Client:
    """A connection. Once its answer is sent, it only waits for the client to close: an unread rest would reset it."""

    socket: socket.socket
    deadline: float
    request: bytearray = field(default_factory=bytearray)
    answer: memoryview | None = None
    is_answered: bool = False


class Server:
    """Serves the page until one of the descriptors ``stops`` is readable."""

    def __init__(self, listening: socket.socket, render: Render, stops: tuple[int, ...]) -> None:
        self._listening = listening
        self._render = render
        self._selector = selectors.DefaultSelector()
        self._selector.register(listening, selectors.EVENT_READ)
        self._stops = stops
        for fd in stops:
            self._selector.register(fd, selectors.EVENT_READ)
        self._clients: dict[int, _Client] = {}  # by descriptor, the oldest first

    def run(self) -> None:
        """Serve; on a stop finish the answers that have begun, without further connections."""
        until = float("inf")
        while time.monotonic() < until and (until == float("inf") or self._clients):
            for key, _ in self._selector.select(self._timeout_s(until)):
                if key.fd in self._stops:
                    if until == float("inf"):
                        until = time.monotonic() + STOP_S
                        self._stop_accepting()
                elif key.fileobj is self._listening:
                    self._accept()
                elif client := self._clients.get(key.fd):
                    self._go_on(client)
            self._drop_late()
        for client in list(self._clients.values()):
            self._close(client)
        self._selector.close()

    def _timeout_s(self, until: float) -> float | None:
        due = min([until, *(client.deadline for client in self._clients.values())])
        return None if due == float("inf") else max(0.0, due - time.monotonic())

    def _stop_accepting(self) -> None:
        for fd in self._stops:
            self._selector.unregister(fd)
        self._selector.unregister(self._listening)
        self._listening.close()
        for client in list(self._clients.values()):
            if client.answer is None:
                self._read(client)  # it may be complete
            if client.answer is None or client.is_answered:
                self._close(client)

    def _accept(self) -> None:
        try:
            connection, _ = self._listening.accept()
        except OSError as error:  # another helper was faster, the client has gone, or no descriptor is left
            if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                self._make_room()
                time.sleep(_SHORTAGE_S)
            return
        connection.setblocking(False)
        if len(self._clients) >= MAX_CONNECTIONS:
            self._make_room()
        client = _Client(connection, time.monotonic() + REQUEST_S)
        self._clients[connection.fileno()] = client
        self._selector.register(connection, selectors.EVENT_READ)

    def _make_room(self) -> None:
        """Close the oldest connection that is not being answered, or else the oldest."""
        clients = sorted(
            self._clients.values(), key=lambda client: client.answer is not None and not client.is_answered
        )
        for client in clients[:1]:
            self._close(client)

    def _go_on(self, client: _Client) -> None:
        if client.is_answered:
            self._discard(client)
        elif client.answer is None:
            self._read(client)
        else:
            self._write(client)

    def _read(self, client: _Client) -> None:
        try:
            data = client.socket.recv(_READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            self._close(client)
            return
        client.request += data
        if (end := _end_of(client.request)) is not None:
            self._answer(client, *self._respond(bytes(client.request[:end])))
        elif len(client.request) > MAX_REQUEST:
            self._answer(client, *_plain(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE))
        elif not data:
            self._close(client)

    def _respond(self, request: bytes) -> tuple[bytes, bytes]:
        """Return the head and the body of the answer."""
        line, *headers = request.replace(b"\r\n", b"\n").split(b"\n")
        match line.split():
            case [method, target, version] if version.startswith(b"HTTP/1."):
                pass
            case _:
                return _plain(HTTPStatus.BAD_REQUEST)
        path = target.partition(b"?")[0]
        if path.startswith(b"http://"):
            path = b"/" + path[7:].partition(b"/")[2]
        if path != PATH:
            return _plain(HTTPStatus.NOT_FOUND, f"the metrics are at {PATH.decode()}")
        if method not in (b"GET", b"HEAD"):
            return _plain(HTTPStatus.METHOD_NOT_ALLOWED, extra="Allow: GET, HEAD\r\n")
        accepted = [
            value for name, _, value in (header.partition(b":") for header in headers) if name.lower() == b"accept"
        ]
        try:
            body, content_type = self._render(b",".join(accepted).decode("latin-1").strip())
            head = _head(HTTPStatus.OK, content_type, len(body))
        except PageMissingError as error:
            return _plain(HTTPStatus.SERVICE_UNAVAILABLE, str(error))
        except Exception:  # a fault of ours must not end the server
            logger.exception("cannot show the metrics")
            return _plain(HTTPStatus.INTERNAL_SERVER_ERROR)
        return head, b"" if method == b"HEAD" else body

    def _answer(self, client: _Client, head: bytes, body: bytes) -> None:
        client.answer = memoryview(head + body)
        client.request.clear()
        client.deadline = time.monotonic() + ANSWER_S
        self._selector.modify(client.socket, selectors.EVENT_WRITE)
        self._write(client)

    def _write(self, client: _Client) -> None:
        assert client.answer is not None  # noqa: S101  # our own invariant
        try:
            sent = client.socket.send(client.answer)
        except BlockingIOError:
            return
        except OSError:
            self._close(client)
            return
        client.answer = client.answer[sent:]
        if not client.answer:
            client.is_answered = True
            client.deadline = min(client.deadline, time.monotonic() + STOP_S)
            with suppress(OSError):
                client.socket.shutdown(socket.SHUT_WR)
            self._selector.modify(client.socket, selectors.EVENT_READ)

    def _discard(self, client: _Client) -> None:
        try:
            if client.socket.recv(_READ_BYTES):
                return
        except BlockingIOError:
            return
        except OSError:
            pass
        self._close(client)

    def _drop_late(self) -> None:
        now = time.monotonic()
        for client in [client for client in self._clients.values() if now > client.deadline]:
            if client.answer is None and not self._has_data(client):
                self._answer(client, *_plain(HTTPStatus.REQUEST_TIMEOUT))
            elif client.answer is not None:
                self._close(client)

    @staticmethod
    def _has_data(client: _Client) -> bool:
        """Whether something was received that has not been read: then this process was late, and not the client."""
        try:
            return bool(client.socket.recv(1, socket.MSG_PEEK))
        except OSError:
            return False

    def _close(self, client: _Client) -> None:
        fd = client.socket.fileno()
        if fd < 0:
            return
        self._selector.unregister(client.socket)
        del self._clients[fd]
        client.socket.close()


def _end_of(request: bytearray) -> int | None:
    """Return where the headers of a request end, if they are complete."""
    ends = [at for end in (b"\r\n\r\n", b"\n\n") if (at := request.find(end)) >= 0]
    return min(ends) if ends else None


def _head(status: HTTPStatus, content_type: str, size: int, extra: str = "") -> bytes:
    return (
        f"HTTP/1.1 {status.value} {status.phrase}\r\nContent-Type: {content_type}\r\nContent-Length: {size}\r\n"
        f"{extra}Connection: close\r\n\r\n"
    ).encode("latin-1")


def _plain(status: HTTPStatus, text: str = "", extra: str = "") -> tuple[bytes, bytes]:
    body = f"{text or status.phrase}\n".encode()
    return _head(status, "text/plain; charset=utf-8", len(body), extra), body
