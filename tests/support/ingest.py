"""A local ingest: a small HTTP server that keeps what the SDKs of Sentry and OpenTelemetry send to it."""

from __future__ import annotations

import gzip
import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread


class Ingest:
    """``items`` has the items of Sentry's envelopes, by type, and ``spans`` those that ``traced.py`` exports."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.items: list[tuple[str, dict]] = []
        self.spans: list[dict] = []

    @property
    def dsn(self) -> str:
        return f"http://key@127.0.0.1:{self.port}/1"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/spans"

    def of_type(self, kind: str) -> list[dict]:
        return [item for found, item in self.items if found == kind]

    def take(self, path: str, body: bytes) -> None:
        if path == "/spans":
            self.spans += json.loads(body)
            return
        lines = iter(body.split(b"\n"))
        next(lines)  # the header of the envelope
        for header in lines:
            if header:
                kind, payload = json.loads(header)["type"], next(lines)
                if kind in ("event", "transaction"):
                    self.items.append((kind, json.loads(payload)))


@contextmanager
def ingesting() -> Iterator[Ingest]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            ingest.take(self.path, gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body)
            self.send_response(200)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *_args):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        ingest = Ingest(server.server_port)
        Thread(target=server.serve_forever, daemon=True).start()
        yield ingest
        server.shutdown()


@contextmanager
def silent_ingest() -> Iterator[Ingest]:
    """An ingest that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=128) as server:
        yield Ingest(server.getsockname()[1])
