"""The minimum that a worker or a caller can do over Beanstalkd: loops without a supervisor, limits, errors or a log.

Usage of a worker: python -m contenders.bare loop|pipelined|eight
"""

from __future__ import annotations

import json
import logging
import socket
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from functools import cache, partial

import greenstalk
from flask import Flask
from stamps import stamp

from contenders import Contender, Server, broker_address

TUBE = "com.example/default"
# Messages of the same form as ours.
BODY = (
    b'{"endpoint":"hello","args":["x"],"kwargs":{},'
    b'"headers":{"id":"0123456789abcdef0123456789abcdef","at":1767225600.123}}'
)
LOGGING_BODY = BODY.replace(b"hello", b"log", 1)
IN_FLIGHT = 500

app = Flask(__name__)


def hello(_name: str) -> None:
    stamp()


def log(name: str) -> None:
    stamp()
    app.logger.warning("hello %s", name)


ENDPOINTS = {"hello": hello, "log": log}


# -- callers -------------------------------------------------------------------------------------------------


def call() -> None:
    """Put one job with greenstalk; the body is prepared in advance."""
    _client().put(BODY, ttr=120)


def call_with_keywords() -> None:
    """Encode and put one job with greenstalk, with an id and the time."""
    headers = {"id": uuid.uuid4().hex, "at": round(time.time(), 3)}
    kwargs = {"greeting": "hello", "times": 3}
    body = json.dumps({"endpoint": "greet", "args": ["x"], "kwargs": kwargs, "headers": headers})
    _client().put(body.encode(), ttr=120)


def call_many(count: int) -> None:
    _put_many(BODY, count)


def call_logging(count: int) -> None:
    _put_many(LOGGING_BODY, count)


def _put_many(body: bytes, count: int) -> None:
    """Put the jobs, 500 in one write, and read the ids in the replies before the next write."""
    sock = _connect()
    replies = sock.makefile("rb")
    sock.sendall(b"use %b\r\n" % TUBE.encode())
    replies.readline()
    for start in range(0, count, IN_FLIGHT):
        bodies = [body] * min(IN_FLIGHT, count - start)
        sock.sendall(b"".join(b"put 65536 0 120 %d\r\n%b\r\n" % (len(body), body) for body in bodies))
        for _ in bodies:
            word, job_id = replies.readline().split()
            if word != b"INSERTED":
                raise RuntimeError("a job was refused")
            int(job_id)


@cache
def _client() -> greenstalk.Client[bytes]:
    return greenstalk.Client(broker_address(), encoding=None, use=TUBE)


# -- workers -------------------------------------------------------------------------------------------------


def run_loop() -> None:
    """Reserve, decode, call, delete, one by one, with greenstalk and without an app context."""
    with greenstalk.Client(broker_address(), encoding=None, watch=TUBE) as client:
        while True:
            job = client.reserve()
            _run(job.body)
            client.delete(job)


def run_pipelined(depth: int) -> None:
    """Delete a batch of jobs and reserve as many in one write, and run each in an app context."""
    sock = _connect()
    sock.sendall(b"watch %b\r\nignore default\r\n" % TUBE.encode() + b"reserve\r\n" * depth)
    jobs = _read_jobs(sock)
    done = b""
    while True:
        for _ in range(depth):
            job_id, body = next(jobs)
            with app.app_context():
                _run(body)
            done += b"delete %b\r\n" % job_id
        sock.sendall(done + b"reserve\r\n" * depth)
        done = b""


def _run(body: bytes) -> None:
    message = json.loads(body)
    ENDPOINTS[message["endpoint"]](*message["args"], **message["kwargs"])


def _read_jobs(sock: socket.socket) -> Iterator[tuple[bytes, bytes]]:
    """Read replies, and yield the id and the body of each job."""
    replies = sock.makefile("rb")
    for line in iter(replies.readline, b""):
        if line.startswith(b"RESERVED "):
            _, job_id, size = line.split()
            yield job_id, replies.read(int(size) + 2)[:-2]


def _connect() -> socket.socket:
    sock = socket.create_connection(broker_address())
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


LOOPS: dict[str, Callable[[], None]] = {
    "loop": run_loop,
    "pipelined": partial(run_pipelined, 1),
    "eight": partial(run_pipelined, 8),
}


def commands(kind: str, workers: int) -> list[list[str]]:
    return [[sys.executable, "-m", "contenders.bare", kind]] * workers


CONTENDERS = [
    Contender(
        "bare greenstalk loop",
        "bare",
        Server.BEANSTALKD,
        partial(commands, "loop"),
        9_000,
        "Reserves, decodes with `json.loads`, calls and deletes one job after the other, with greenstalk and without an"
        " app context. It puts a body that was encoded before, except in a call with keyword arguments: this it encodes"
        " with `json.dumps` and a `uuid4`.",
    ),
    Contender(
        "bare pipelined loop",
        "bare",
        Server.BEANSTALKD,
        partial(commands, "pipelined"),
        11_000,
        "Uses a plain socket. One write deletes a job and reserves the next; the call runs in Flask's app context. One"
        " write puts 500 jobs.",
    ),
    Contender(
        "bare loop, eight at a time",
        "bare",
        Server.BEANSTALKD,
        partial(commands, "eight"),
        20_000,
        "The same, but one write deletes eight jobs and reserves eight.",
    ),
]

if __name__ == "__main__":
    logging.basicConfig(format="%(asctime)s %(levelname)s [%(process)d] %(name)s: %(message)s")  # as ours
    LOOPS[sys.argv[1]]()
