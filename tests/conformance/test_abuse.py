"""Clients that send nonsense, too much or too little, or never read: each costs only its own connection."""

from __future__ import annotations

import random
import resource
import select
import signal
import socket
import time
from contextlib import ExitStack

import pytest
from servers import Embedded
from support.waiting import wait_until
from wire import Wire

MAX_JOB_SIZE = 100_000
CONNECTIONS = 1000
LONG = b"a" * 200
BOUND_BYTES = 40 * 1024**2  # memory that a test may cost: far below the data its clients send or ask for


@pytest.fixture(scope="module")
def server():
    running = Embedded(max_job_size=MAX_JOB_SIZE)
    yield running
    running.stop()  # and it printed no output, above all no traceback


@pytest.fixture
def bystander(server):
    """Another client, which is still served, while the server's memory stays bounded."""
    before = server.memory_bytes()
    with Wire(server.port, "bystander") as wire:
        assert_is_served(wire)
        yield wire
        assert_is_served(wire)
        assert server.memory_bytes() - before < BOUND_BYTES
    with Wire(server.port) as control:
        wait_until(lambda: control.stats()["current-connections"] == "1", "the clients are gone")


def assert_is_served(wire: Wire) -> None:
    began = time.monotonic()
    job_id = wire.put(b"served")
    assert wire.reserve() == job_id
    assert wire.ask(f"delete {job_id}") == b"DELETED"
    assert time.monotonic() - began < 10  # long, for a busy machine


def dial(server: Embedded) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), timeout=10)


@pytest.mark.parametrize("seed", range(20))
def test_random_bytes_cost_nothing(server, bystander, seed):
    chance = random.Random(seed)
    words = [
        b"put",
        b"reserve",
        b"delete",
        b" ",
        b"0",
        b"1",
        b"99999999999",
        b"\r\n",
        b"\r",
        b"\n",
        b"\0",
        b"-",
        b"use",
    ]
    words += [b"stats", b"kick", b"a", b"release", b"watch", b"\xff\xfe", b"peek-ready", b"pause-tube", b"quitt"]
    with dial(server) as sock:
        for _ in range(20):
            noise = chance.randbytes(chance.randrange(300)) + b"".join(chance.choices(words, k=200))
            sock.sendall(noise.replace(b"quit", b"qu"))
            if select.select([sock], [], [], 0)[0]:
                sock.recv(1 << 16)


def test_incomplete_commands_cost_nothing(server, bystander):
    with ExitStack() as stack:
        for part in (b"p", b"put 0 0 1 5\r", b"put 0 0 1 5\r\nab", b"use ", b"\r", b"put 0 0 1 100001\r\nab") * 10:
            stack.enter_context(dial(server)).sendall(part)
        assert_is_served(bystander)


def test_a_line_without_end_is_not_kept(server, bystander):
    with dial(server) as sock:
        for _ in range(100):
            sock.sendall(b"x" * 1_000_000)
        assert_is_served(bystander)
        sock.sendall(b"\r\nlist-tube-used\r\n")
        assert sock.makefile("rb").readlines(2) == [b"BAD_FORMAT\r\n"]


def test_a_body_that_is_too_big_is_not_kept(server, bystander):
    with Wire(server.port) as wire:
        wire.send("put 0 0 1 100000000")
        for _ in range(100):
            wire.socket.sendall(b"x" * 1_000_000)
        wire.send("")
        assert wire.read() == b"JOB_TOO_BIG"


def test_a_thousand_idle_connections_cost_little(server, bystander):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, CONNECTIONS + 500)), hard))
    try:
        with ExitStack() as stack:
            for _ in range(CONNECTIONS):
                stack.enter_context(dial(server))
            wait_until(lambda: int(bystander.stats()["current-connections"]) > CONNECTIONS, "all are there")
            assert_is_served(bystander)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def flood(wire: Wire, command: bytes) -> int:
    """Send commands for as long as the server accepts them; return how many it accepted."""
    wire.socket.settimeout(0.5)
    data, sent = command * 10_000, 0
    while sent < 100_000_000:
        try:
            sent += wire.socket.send(data[sent % len(data) :])
        except TimeoutError:
            wire.socket.settimeout(10)
            return sent // len(command)
    raise AssertionError("the server still takes commands that it cannot answer")


@pytest.mark.parametrize("command", [b"stats\r\n", b"peek-ready\r\n"], ids=["small replies", "large replies"])
def test_a_client_that_never_reads_is_no_longer_served(server, bystander, command):
    with Wire(server.port, "mute") as wire:
        job_id = wire.put(b"y" * MAX_JOB_SIZE)
        flood(wire, command)
        assert_is_served(bystander)
    bystander.ask(f"delete {job_id}")


def test_a_client_that_reads_late_gets_all_its_replies(server, bystander):
    with Wire(server.port, "late") as wire:
        replies = b"USING %b\r\n" % LONG * flood(wire, b"use %b\r\n" % LONG)
        assert wire.read_bytes(len(replies)) == replies


def test_a_client_that_keeps_sending_while_it_waits_is_held_up(server, bystander):
    with Wire(server.port, "waiting") as wire, Wire(server.port, "waiting") as other:
        wire.send("reserve")
        replies = b"USING %b\r\n" % LONG * flood(wire, b"use %b\r\n" % LONG)
        job_id = other.put()
        assert wire.read() == b"RESERVED %d 1\r\nx" % job_id
        assert wire.read_bytes(len(replies)) == replies
        other.ask(f"delete {job_id}")
    bystander.ask(f"delete {job_id}")


def test_clients_that_reset_their_connections_cost_nothing(server, bystander):
    for _ in range(200):
        with dial(server) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            sock.sendall(b"stats\r\n" * 10)


def test_drain_mode_refuses_new_jobs_only(request):
    server = Embedded()
    request.addfinalizer(server.stop)
    with Wire(server.port) as wire:
        job_id = wire.put()
        server.process.send_signal(signal.SIGUSR1)
        wait_until(lambda: wire.stats()["draining"] == "true", "it drains")
        assert wire.ask("put 0 0 1 1", "x") == b"DRAINING"
        assert wire.ask("put 0 0 1 70000", "x" * 70_000) == b"JOB_TOO_BIG"
        wire.send("put 0 0 1 1", "xyz", "list-tube-used")
        assert [wire.read() for _ in range(3)] == [b"EXPECTED_CRLF", b"UNKNOWN_COMMAND", b"USING default"]
        assert wire.reserve() == job_id
        assert wire.ask(f"release {job_id} 0 0") == b"RELEASED"
        assert wire.ask(f"delete {job_id}") == b"DELETED"
