"""A proxy to the broker that breaks where the test wants it to break."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress


class Proxy:
    """Forward connections to a server; each is cut after `budget` bytes of the server's replies.

    `budget()` is called once for each connection; None means never. Replies travel in pieces of `piece()` bytes.
    """

    def __init__(self, port: int, budget, piece=lambda: 4096) -> None:
        self._target = ("127.0.0.1", port)
        self._budget = budget
        self._piece = piece
        self.cuts = 0
        self.requests: list[bytearray] = []  # what each client has sent
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.uri = f"btq://127.0.0.1:{self._listener.getsockname()[1]}"
        self._is_closed = False
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def close(self) -> None:
        self._is_closed = True
        with socket.create_connection(self._listener.getsockname()):
            pass  # wakes the accept
        for thread in self._threads:
            thread.join()
        self._listener.close()

    def _accept(self) -> None:
        while True:
            client, _ = self._listener.accept()
            if self._is_closed:
                client.close()
                return
            server = socket.create_connection(self._target)
            for sock in (client, server):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.requests.append(bytearray())
            for source, sink, budget in ((client, server, None), (server, client, self._budget())):
                heard = self.requests[-1] if source is client else None
                thread = threading.Thread(target=self._forward, args=(source, sink, budget, heard))
                self._threads.append(thread)
                thread.start()

    def _forward(self, source: socket.socket, sink: socket.socket, budget: int | None, heard: bytearray | None) -> None:
        try:
            while data := source.recv(4096 if source is sink else self._piece()):
                if heard is not None:
                    heard += data
                if budget is not None and len(data) >= budget:
                    sink.sendall(data[:budget])
                    self.cuts += 1
                    return
                sink.sendall(data)
                budget = None if budget is None else budget - len(data)
        except OSError:
            pass
        finally:
            for sock in (source, sink):
                with suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)
                if sock is source:
                    sock.close()
