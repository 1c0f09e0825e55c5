from __future__ import annotations

import os

import pytest

from flask_backend.supervisor import Terminal
from flask_backend.supervisor.inbox import Inbox, Report, ReportKind


@pytest.fixture
def inbox():
    inbox = Inbox(Terminal(was_there=False, ignores_hangup=False))
    yield inbox
    for fd in (inbox._wakeup_r, inbox._wakeup_w, inbox._report_r, inbox._report_w):
        os.close(fd)


@pytest.fixture
def pipe():
    """Two descriptors, which a test may close early."""
    read_end, write_end = os.pipe()
    with os.fdopen(read_end, "rb") as reader, os.fdopen(write_end, "wb", buffering=0) as writer:
        yield reader, writer


def test_a_registered_descriptor_is_read_when_it_has_data_and_at_its_end(inbox, pipe):
    reader, writer = pipe
    came = []
    inbox.register(reader.fileno(), lambda: came.append(os.read(reader.fileno(), 100)))
    assert inbox.wait(0) == []
    assert came == []
    writer.write(b"word")
    assert inbox.wait(10) == []
    writer.close()
    inbox.wait(10)
    assert came == [b"word", b""]


def test_reports_arrive_beside_other_descriptors(inbox, pipe):
    reader, writer = pipe
    came = []
    inbox.register(reader.fileno(), lambda: came.append(os.read(reader.fileno(), 100)))
    inbox.report(ReportKind.READY)
    writer.write(b"word")
    assert inbox.wait(10) == [Report(ReportKind.READY, os.getpid())]
    assert came == [b"word"]


def test_an_unregistered_descriptor_is_left_alone_even_if_it_was_readable_in_the_same_turn(inbox, pipe):
    reader, writer = pipe
    other_end = os.dup(reader.fileno())
    came = []

    def read(fd, other):
        came.append(fd)
        inbox.unregister(other)

    inbox.register(reader.fileno(), lambda: read(reader.fileno(), other_end))
    inbox.register(other_end, lambda: read(other_end, reader.fileno()))
    writer.write(b"word")
    inbox.wait(10)
    assert len(came) == 1
    os.close(other_end)
