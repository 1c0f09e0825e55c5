"""The asynchronous part of the broker: sockets, timers and signals.

All replies go through :meth:`_Server.flush`, so that a client never sees a change before it is in the journal.
"""

from __future__ import annotations

import asyncio
import resource
import signal
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple, cast

from .commands import Dispatcher, reserved
from .journal import Journal, JournalError
from .protocol import Command, Reader
from .store import Client, Store

# The limits of one client, in bytes of unread replies and of commands that cannot run yet. Beyond them the broker stops
# reading from it until it reads, or gets the job that it waits for.
_MAX_UNSENT = 64 * 1024
_MAX_UNREAD = 64 * 1024
_BACKLOG = 1024  # connections that arrive at the same moment

# SQLite stores at most a gigabyte per value, and a job takes up several times its size in transit.
MAX_JOB_SIZE = 512 * 1024**2


class Listen(NamedTuple):
    """The address to listen on, and the largest body to accept."""

    host: str
    port: int  # 0 for any free port
    max_job_size: int


async def serve(listen: Listen, journal: Journal | None, announce: Callable[[str], None]) -> None:
    """Serve until TERM or INT; call ``announce`` with the address as soon as clients can connect.

    Raise :exc:`OSError` if the address is not available, :exc:`JournalError` if the journal cannot be written.
    """
    _raise_file_limit()
    loop = asyncio.get_running_loop()
    server = _Server(listen.max_job_size, journal)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, server.stop)
    loop.add_signal_handler(signal.SIGUSR1, server.drain)
    listener = await loop.create_server(lambda: _Connection(server), listen.host, listen.port, backlog=_BACKLOG)
    announce(", ".join(_show_address(sock) for sock in listener.sockets))
    try:
        await server.stopped
    finally:
        listener.close()
        server.close()
        await asyncio.sleep(0)  # lets the transports close their sockets


class _Server:
    """The state shared by all connections."""

    def __init__(self, max_job_size: int, journal: Journal | None) -> None:
        self.max_job_size = max_job_size
        self.store = Store()
        if journal:
            journal.load(self.store)
        self.commands = Dispatcher(self.store, max_job_size, time.monotonic(), journal.has_room if journal else None)
        self.stopped: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._connections: dict[Client, _Connection] = {}
        self._journal = journal
        self._timer: asyncio.TimerHandle | None = None
        self._unflushed: dict[_Connection, None] = {}

    def stop(self) -> None:
        if not self.stopped.done():
            self.stopped.set_result(None)

    def drain(self) -> None:
        """Refuse new jobs until the process ends."""
        self.commands.is_draining = True

    def close(self) -> None:
        for connection in self._connections.values():
            connection.abort()

    def connect(self, connection: _Connection) -> Client:
        client = self.commands.connect()
        self._connections[client] = connection
        return client

    def disconnect(self, client: Client) -> None:
        self.store.disconnect(client, time.monotonic())
        del self._connections[client]
        self.flush()

    def advance(self) -> None:
        """Run everything that is due."""
        self.store.advance(time.monotonic())
        if self.store.answers:  # before any other reply to the clients that waited
            self.flush()

    def reply(self, connection: _Connection, reply: bytes) -> None:
        connection.replies.append(reply)
        self._unflushed[connection] = None

    def flush(self) -> None:
        """Write the changes to the journal, then send all replies."""
        store = self.store
        for client, answer in store.answers:
            connection = self._connections[client]
            self.reply(connection, reserved(answer))
            asyncio.get_running_loop().call_soon(connection.work)  # on the commands received during its wait
        store.answers.clear()
        if self._journal and store.changed:
            try:
                self._journal.write(store.changed, store.next_id)
            except JournalError as error:
                self._fail(error)
                return
        store.changed.clear()
        unflushed, self._unflushed = self._unflushed, {}
        for connection in unflushed:
            connection.send()
        self._set_timer()

    def _fail(self, error: JournalError) -> None:
        """End without replies to the clients: a reply must not report a change that is not in the journal."""
        self.close()
        self._unflushed.clear()
        if not self.stopped.done():
            self.stopped.set_exception(error)

    def _set_timer(self) -> None:
        at = self.store.next_at()
        if at is None or (self._timer and self._timer.when() <= at):
            return  # an idle wake-up costs less than moving the timer at each command
        if self._timer:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_at(at, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self.store.advance(time.monotonic())
        self.flush()


class _Connection(asyncio.Protocol):
    """One client."""

    _transport: asyncio.Transport
    _client: Client

    def __init__(self, server: _Server) -> None:
        self.replies: list[bytes] = []
        self._server = server
        self._reader = Reader(server.max_job_size)
        self._is_choked = False  # the client does not read our replies
        self._is_over = False

    # -- called by asyncio -----------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(_MAX_UNSENT)
        with suppress(OSError):  # the peer may be gone already
            transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self._client = self._server.connect(self)

    def data_received(self, data: bytes) -> None:
        self._reader.feed(data)
        self.work()

    def eof_received(self) -> bool:
        """Keep the connection: a client that has stopped sending may still read its replies."""
        self._server.store.half_close(self._client)
        self.work()
        return True

    def pause_writing(self) -> None:
        self._is_choked = True

    def resume_writing(self) -> None:
        self._is_choked = False
        self.work()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  # asyncio's own name
        self._leave()

    # -- called by the server --------------------------------------------------------------------------------

    def work(self) -> None:
        """Run commands until all are done, one has to wait, or the client does not read."""
        server, unsent = self._server, 0
        server.advance()
        while self._may_run:
            command = self._reader.next()
            if command is None:
                if self._client.is_half_closed:
                    self._end()
                break
            reply = command if isinstance(command, bytes) else self._run(command)
            if reply:
                server.reply(self, reply)
                unsent += len(reply)
            if unsent > _MAX_UNSENT:
                server.flush()
                unsent = 0
        server.flush()
        if self._may_run or len(self._reader) < _MAX_UNREAD:
            self._transport.resume_reading()
        else:
            self._transport.pause_reading()

    def send(self) -> None:
        """Send the pending replies."""
        if not self._is_over:
            self._transport.write(b"".join(self.replies))
        self.replies.clear()

    def abort(self) -> None:
        self._is_over = True
        self._transport.abort()

    # -- inner workings --------------------------------------------------------------------------------------

    @property
    def _may_run(self) -> bool:
        return not (self._client.is_waiting or self._is_choked or self._is_over)

    def _run(self, command: Command) -> bytes | None:
        if command.name == "quit":
            self._end()
            return None
        return self._server.commands.run(self._client, command, time.monotonic())

    def _end(self) -> None:
        self._server.flush()
        self._leave()
        self._transport.close()

    def _leave(self) -> None:
        if not self._is_over:
            self._is_over = True
            self._server.disconnect(self._client)


def _raise_file_limit() -> None:
    """Allow as many connections as the system does: each uses a file descriptor."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _show_address(sock: socket.socket) -> str:
    host, port = sock.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
