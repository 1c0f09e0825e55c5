"""A server that knows Beanstalkd's replies, and lies wherever its script says so."""

from __future__ import annotations

import re
import socket
import struct
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from typing import BinaryIO

from hypothesis import strategies as st

from flask_backend.config import Address

JOB_STATS = b"""---
id: 1
tube: q
state: ready
pri: 1
age: 2
delay: 0
ttr: 60
time-left: -1
file: 0
reserves: 1
timeouts: 0
releases: 0
buries: 0
kicks: 0
"""
TUBE_STATS = b"""---
name: q
current-jobs-ready: 1
current-jobs-reserved: 0
current-jobs-delayed: 0
current-jobs-buried: 0
total-jobs: 1
current-waiting: 0
current-watching: 1
cmd-delete: 0
pause-time-left: 0
"""
SERVER_STATS = b"---\ntotal-jobs: 5\nmax-job-size: 65535\nuptime: 3\n"


def ok(data: bytes) -> bytes:
    return b"OK %d\r\n%b\r\n" % (len(data), data)


def body_of(job_id: int) -> bytes:
    """The body of each job at this server that can be looked at."""
    return b'{"endpoint": "note", "args": [%d], "headers": {"id": "%d"}}' % (job_id, job_id)


@dataclass(frozen=True)
class Lie:
    """What the server does to one true reply: ``how`` is the name of a function here."""

    how: str
    data: bytes = b""
    at: int = 0
    then: str = ""

    def told(self, truth: bytes) -> bytes:
        return _WAYS[self.how](truth, self)


def _instead(_truth: bytes, lie: Lie) -> bytes:
    return lie.data


def _and_more(truth: bytes, lie: Lie) -> bytes:
    return truth + lie.data


def _twice(truth: bytes, _lie: Lie) -> bytes:
    return truth * 2


def _cut(truth: bytes, lie: Lie) -> bytes:
    return truth[: lie.at % (len(truth) + 1)]


def _changed(truth: bytes, lie: Lie) -> bytes:
    """Another text in place of one of the numbers or words."""
    found = list(re.finditer(rb"[\w.-]+", truth))
    part = found[lie.at % len(found)]
    return truth[: part.start()] + lie.data + truth[part.end() :]


def _without(truth: bytes, lie: Lie) -> bytes:
    """One line is missing, the announced size is right."""
    head, _, data = truth.partition(b"\r\n")
    lines = data.split(b"\n")
    del lines[lie.at % len(lines)]
    data = b"\n".join(lines)
    return ok(data) if head.startswith(b"OK") else head + data


_WAYS: dict[str, Callable[[bytes, Lie], bytes]] = {
    "says nothing": lambda _truth, _lie: b"",
    "drips": lambda truth, _lie: truth,
    "instead": _instead,
    "and more": _and_more,
    "twice": _twice,
    "cut": _cut,
    "changed": _changed,
    "without a line": _without,
}
_STATUSES = [
    *(b"OK", b"FOUND", b"RESERVED", b"INSERTED", b"BURIED", b"USING", b"WATCHING", b"DELETED", b"RELEASED", b"KICKED"),
    *(b"TOUCHED", b"PAUSED", b"NOT_FOUND", b"NOT_IGNORED", b"TIMED_OUT", b"DEADLINE_SOON", b"JOB_TOO_BIG", b"DRAINING"),
    *(b"OUT_OF_MEMORY", b"INTERNAL_ERROR", b"BAD_FORMAT", b"UNKNOWN_COMMAND", b"EXPECTED_CRLF", b"HTTP/1.1", b"ok"),
]
_WORDS = [
    *(b"0", b"1", b"7", b"-1", b"65535", b"%d" % 2**31, b"%d" % 2**32, b"%d" % 2**63, b"%d" % 2**64, b"9" * 500),
    *(
        b"9" * 5000,
        b"",
        b"x",
        b"1.5",
        b"1e9",
        b"0x10",
        b"+1",
        b"1_0",
        b"\xb2",
        "\u0661".encode(),
        b"\xff",
        b"\x00",
        b"q",
    ),
    *(b"\x1b[2J", b"ready", b"buried", b'"q"', b"a b", b"- q", b"{}", b"---", b": ", b"\n", b"\r\n"),
]
_ENDS = [b"\r\n", b"\r\n", b"\r\n", b"\n", b"\r", b""]
_lines = st.builds(
    lambda status, words, end, data: b" ".join([status, *words]) + end + data,
    st.sampled_from(_STATUSES),
    st.lists(st.sampled_from(_WORDS), max_size=3),
    st.sampled_from(_ENDS),
    st.sampled_from([b"", b"", b"\r\n", b"{}\r\n", b"---\r\n", b"---\nid: 1\n\r\n", b"- q\n" * 9]),
)
_floods = st.sampled_from([b"A" * 3_000_000, b"OK 1000000000\r\n" + b"x" * 3_000_000, b"DELETED\r\n" * 100_000])
_datas = st.one_of(_lines, _lines, st.binary(max_size=80), st.builds(ok, st.binary(max_size=80)), _floods)
_positions = st.integers(0, 60)
_ends = st.sampled_from(["", "", "", "close", "reset"])

lies = st.one_of(
    st.builds(Lie, st.just("instead"), _datas, then=_ends),
    st.builds(Lie, st.just("and more"), _datas, then=_ends),
    st.builds(Lie, st.just("changed"), st.sampled_from(_WORDS), _positions),
    st.builds(Lie, st.just("cut"), at=_positions, then=_ends),
    st.builds(Lie, st.just("without a line"), at=_positions),
    st.builds(Lie, st.sampled_from(["says nothing", "drips", "twice"]), then=_ends),
)
# For each command a lie, or the truth; after the last one only the truth. The first two commands open a connection.
scripts = st.builds(
    lambda honest, rest: [None] * honest + rest,
    st.sampled_from([0, 2, 2, 3, 4, 6]),
    st.lists(st.one_of(st.none(), lies), max_size=8),
)
greetings = st.one_of(st.just(b""), st.just(b""), st.just(b""), _lines)


@dataclass
class Script:
    """The lies of one example. ``is_over`` is set when a job is deleted after the last of them.

    ``state`` is that of the jobs that can be looked at.
    """

    lies: deque[Lie | None]
    greeting: bytes = b""  # of the first connection
    bodies: Sequence[bytes] = ()  # of the jobs that can be reserved, in turns
    jobs_left: float = 0
    state: bytes = b"buried"
    has_ended: bool = False
    commands: int = 0
    is_over: threading.Event = field(default_factory=threading.Event)


class Liar:
    """The server; each connection follows the script that was the latest when it was opened."""

    def __init__(self, drip_s: float) -> None:
        self.told: Counter[str] = Counter()
        self.commands = 0
        self._drip_s = drip_s
        self._ids = count(100)
        self._script = Script(deque())
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = Address("127.0.0.1", self._listener.getsockname()[1])
        self._clients: set[socket.socket] = set()
        self._is_stopped = False
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def tell(
        self,
        lies: Sequence[Lie | None],
        greeting: bytes = b"",
        bodies: Sequence[bytes] = (),
        jobs: float = 0,
        state: bytes = b"buried",
    ) -> Script:
        """Begin a new script, and close all connections of the last one."""
        self._script.has_ended = True
        for client in list(self._clients):
            with suppress(OSError):
                client.shutdown(socket.SHUT_RDWR)
        self._script = Script(deque(lies), greeting, bodies, jobs, state)
        return self._script

    def stop(self) -> None:
        self.tell(())
        self._is_stopped = True
        socket.create_connection((self.address.host, self.address.port)).close()  # wakes the accept
        self._thread.join()
        self._listener.close()

    def _accept(self) -> None:
        while True:
            client, _ = self._listener.accept()
            if self._is_stopped:
                client.close()
                return
            threading.Thread(target=self._serve, args=(client, self._script), daemon=True).start()

    def _serve(self, client: socket.socket, script: Script) -> None:
        self._clients.add(client)
        with client, client.makefile("rb") as lines, suppress(OSError):
            client.settimeout(20)
            greeting, script.greeting = script.greeting, b""
            client.sendall(greeting)
            while not script.has_ended and (line := lines.readline()):
                words = line.split()
                truth = self._truth(script, words, lines)
                self.commands += 1
                script.commands += 1
                lie = script.lies.popleft() if script.lies else None
                if lie is None:
                    client.sendall(truth)
                    if words[0] == b"delete" and not script.lies:
                        script.is_over.set()
                    continue
                self.told[lie.how] += 1
                self._send(client, lie, lie.told(truth))
                if lie.then == "reset":
                    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                if lie.then:
                    break
        self._clients.discard(client)

    def _send(self, client: socket.socket, lie: Lie, data: bytes) -> None:
        if lie.how != "drips":
            client.sendall(data)
            return
        for begin in range(min(len(data), 20)):
            client.sendall(data[begin : begin + 1])
            time.sleep(self._drip_s)

    def _truth(self, script: Script, words: list[bytes], lines: BinaryIO) -> bytes:
        match words:
            case [b"put", *_, size]:
                lines.read(int(size) + 2)
                return b"INSERTED %d\r\n" % next(self._ids)
            case [b"reserve-with-timeout", _] if script.jobs_left > 0:
                script.jobs_left -= 1
                job_id = next(self._ids)
                return _job(b"RESERVED", job_id, script.bodies[job_id % len(script.bodies)])
            case [b"stats-job", job_id]:
                return ok(JOB_STATS.replace(b"id: 1", b"id: " + job_id).replace(b"ready", script.state))
            case [command]:
                return _TRUTHS[command]
            case [command, argument, *_]:
                return _TRUTHS[command] if command in _TRUTHS else _TRUTHS_ABOUT[command](argument)
            case _:
                raise AssertionError(words)


def _job(status: bytes, job_id: int, body: bytes) -> bytes:
    return b"%b %d %d\r\n%b\r\n" % (status, job_id, len(body), body)


_TRUTHS = {
    b"reserve-with-timeout": b"TIMED_OUT\r\n",
    b"watch": b"WATCHING 1\r\n",
    b"ignore": b"WATCHING 1\r\n",
    b"delete": b"DELETED\r\n",
    b"release": b"RELEASED\r\n",
    b"bury": b"BURIED\r\n",
    b"touch": b"TOUCHED\r\n",
    b"kick-job": b"KICKED\r\n",
    b"pause-tube": b"PAUSED\r\n",
    b"stats": ok(SERVER_STATS),
    b"list-tubes": ok(b"---\n- default\n- q\n- q.failures\n"),
    b"list-tubes-watched": ok(b"---\n- q\n"),
    b"peek-ready": _job(b"FOUND", 7, body_of(7)),
    b"peek-buried": _job(b"FOUND", 7, body_of(7)),
    b"quit": b"",
}
_TRUTHS_ABOUT: dict[bytes, Callable[[bytes], bytes]] = {
    b"use": lambda tube: b"USING %b\r\n" % tube,
    b"stats-tube": lambda tube: ok(
        TUBE_STATS.replace(b"name: q", b"name: " + tube).replace(b"buried: 0", b"buried: 1")
    ),
    b"peek": lambda job_id: _job(b"FOUND", int(job_id), body_of(int(job_id))),
    b"reserve-job": lambda job_id: _job(b"RESERVED", int(job_id), body_of(int(job_id))),
}
