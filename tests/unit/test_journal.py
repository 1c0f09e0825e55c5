from __future__ import annotations

import io
import logging
import os
import socket
import struct
import sys
from contextlib import suppress

import pytest
from flask import Flask

from flask_backend.logs import configure
from flask_backend.system import journal
from flask_backend.system.journal import JournalHandler


def parse(data: bytes) -> dict[str, str]:
    """Read a datagram as the journal does."""
    fields = {}
    while data:
        line, _, rest = data.partition(b"\n")
        name, equals, value = line.partition(b"=")
        if not equals:
            size = struct.unpack("<Q", rest[:8])[0]
            value, rest = rest[8 : 8 + size], rest[8 + size + 1 :]
        fields[name.decode()] = value.decode()
        data = rest
    return fields


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A socket in place of the journal's."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
        server.bind(str(tmp_path / "socket"))
        server.settimeout(5)
        monkeypatch.setattr(journal, "ADDRESS", str(tmp_path / "socket"))
        yield server


@pytest.fixture
def logger():
    logger = logging.Logger("test")  # noqa: LOG001  # not in logging's tree, where pytest has handlers
    logger.addHandler(JournalHandler(io.StringIO()))
    return logger


def test_a_failure_is_one_record_with_its_priority_and_its_job(server, logger):
    try:
        int("two\nlines")
    except ValueError:
        logger.exception("it failed", extra={"task": "hello", "job_id": 12, "queue": "q", "attempt": None})
    fields = parse(server.recv(1 << 20))
    assert fields["PRIORITY"] == "3"
    assert fields["SYSLOG_IDENTIFIER"] == "flask-backend"
    assert fields["MESSAGE"].startswith("it failed\nTraceback (most recent call last):\n")
    assert fields["MESSAGE"].endswith(r"with base 10: 'two\nlines'")
    assert (fields["LOGGER"], fields["CODE_FILE"]) == ("test", __file__)
    assert (fields["BACKEND_TASK"], fields["BACKEND_JOB_ID"], fields["BACKEND_QUEUE"]) == ("hello", "12", "q")
    assert "BACKEND_ATTEMPT" not in fields


@pytest.mark.parametrize(("level", "priority"), [(10, "7"), (20, "6"), (25, "6"), (30, "4"), (40, "3"), (50, "2")])
def test_each_level_has_its_priority(server, logger, level, priority):
    logger.log(level, "news")
    assert parse(server.recv(4096))["PRIORITY"] == priority


def test_a_large_record_keeps_its_beginning_and_its_end(server, logger):
    logger.error("%s", "a" * 500_000 + "z")
    message = parse(server.recv(1 << 20))["MESSAGE"]
    assert len(message) < journal.MAX_BYTES + 100
    assert message.startswith("aaa")
    assert message.endswith("aaz")


def test_a_journal_that_does_not_read_loses_records_and_gets_their_number(server, logger):
    for _ in range(2000):
        logger.warning("news")
        if logger.handlers[0]._missed == 3:
            break
    server.setblocking(False)
    with suppress(BlockingIOError):
        while True:
            server.recv(4096)
    logger.warning("more")
    assert parse(server.recv(4096))["MESSAGE"] == "3 records could not be sent to the journal and are lost"
    assert parse(server.recv(4096))["MESSAGE"] == "more"


def test_without_the_socket_each_line_has_its_priority(tmp_path):
    stderr = io.StringIO()
    logger = logging.Logger("test")  # noqa: LOG001
    logger.addHandler(JournalHandler(stderr, str(tmp_path / "absent")))
    logger.error("two\nlines")
    assert stderr.getvalue() == "<3>two\n<3>lines\n"


@pytest.mark.parametrize("is_there", [True, False])
def test_only_a_stderr_that_leads_to_the_journal_makes_records(server, monkeypatch, is_there):
    found = os.fstat(2)
    monkeypatch.setenv("JOURNAL_STREAM", f"{found.st_dev}:{found.st_ino + (not is_there)}")
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    root.handlers.clear()
    try:
        configure(Flask(__name__))
        assert isinstance(root.handlers[0], JournalHandler) is is_there
        logging.getLogger("elsewhere").warning("news")
    finally:
        root.handlers[:], root.level = handlers, level
    if is_there:
        assert parse(server.recv(4096))["MESSAGE"] == "elsewhere: news"
