"""A server that answers as Beanstalkd does at first, and then lies."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import contextmanager, suppress

import pytest

from flask_backend.broker.connection import Connection
from flask_backend.broker.pipeline import Pipeline
from flask_backend.broker.wire import ReservedJob
from flask_backend.config import Address
from flask_backend.errors import BrokerConnectionError
from flask_backend.options import PutOptions

TIMEOUT_S = 0.4
JOB = ReservedJob(1, b"{}")
OPTIONS = PutOptions(1, 0, 60)


@contextmanager
def lying(*answers: bytes, every_s: float = 0):
    """Run a server that gives each command after the first two the next of these answers, the last one for good.

    With ``every_s`` it sends one byte at a time, with so many seconds between. Yields a connection to it.
    """

    def serve() -> None:
        left = list(answers)
        client, _ = listener.accept()
        with client, client.makefile("rb") as lines, suppress(OSError):
            for line in lines:
                if line.startswith(b"put"):
                    lines.readline()
                if line.startswith((b"watch", b"ignore")):
                    client.sendall(b"WATCHING 1\r\n")
                    continue
                data = left.pop(0) if len(left) > 1 else left[0]
                for begin in range(0, len(data), 1 if every_s else len(data)):
                    client.sendall(data[begin : begin + 1] if every_s else data)
                    time.sleep(every_s)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        connection = Connection(Address("127.0.0.1", listener.getsockname()[1]), TIMEOUT_S, watch="q")
        try:
            yield connection
        finally:
            connection.close()
            thread.join()


def recover(connection: Connection):
    return Connection.adopt(connection._socket.detach(), connection.address, TIMEOUT_S).recover_reserved(1)


def reserve_as_a_worker(connection: Connection):
    pipeline = Pipeline(connection)
    pipeline.reserve(0)
    while connection.is_awaiting:
        if connection.wire.is_readable(5):
            connection.receive()


def delete_as_a_worker(connection: Connection):
    pipeline = Pipeline(connection)
    pipeline.delete_and_reserve(JOB)
    connection.receive_all()


CALLS = {
    "stats": lambda c: c.stats(),
    "delete": lambda c: c.delete(1),
    "put": lambda c: c.put("default", b"{}", OPTIONS),
    "recover_reserved": recover,
    "reserve": reserve_as_a_worker,
    "delete_and_reserve": delete_as_a_worker,
}
WAITERS = ["stats", "put", "delete", "reserve", "delete_and_reserve", "recover_reserved"]


@pytest.mark.parametrize("name", WAITERS)
def test_a_line_without_an_end_is_refused_at_once(name):
    started = time.monotonic()
    with lying(b"A" * 30_000_000) as connection, pytest.raises(BrokerConnectionError, match="a line without an end"):
        CALLS[name](connection)
    assert time.monotonic() - started < 5
    assert len(connection.wire._received) < 200_000


@pytest.mark.parametrize("name", [name for name in WAITERS if name != "delete"])
@pytest.mark.parametrize("head", [b"OK", b"FOUND 1", b"RESERVED 1"])
@pytest.mark.parametrize("size", [2 * 2**30, 10**500])
def test_a_size_that_no_job_has_is_refused_at_once(name, head, size):
    with lying(b"%b %d\r\n" % (head, size)) as connection, pytest.raises(BrokerConnectionError, match="too much data"):
        CALLS[name](connection)


@pytest.mark.parametrize("name", WAITERS)
@pytest.mark.parametrize("reply", [b"INSERTED 123456789012345678901234567890\r\n", b"OK 900\r\n" + b"x" * 900])
def test_a_reply_that_drips_in_gets_no_extra_time(name, reply):
    started = time.monotonic()
    with lying(reply, every_s=TIMEOUT_S / 4) as connection:
        with pytest.raises(BrokerConnectionError, match=rf"no answer within {TIMEOUT_S} s"):
            CALLS[name](connection)
        assert time.monotonic() - started < 5 * TIMEOUT_S


def test_each_of_many_replies_has_the_whole_timeout():
    with lying(b"INSERTED 123\r\n", every_s=TIMEOUT_S / 20) as connection:
        started = time.monotonic()
        assert len(connection.ask([b"put 1 1 1 0\r\n\r\n"] * 4)) == 4
        assert time.monotonic() - started > TIMEOUT_S
