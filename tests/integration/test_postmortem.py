"""Reusing a dead worker's connection after any last commands."""

from __future__ import annotations

import json
import os
import socket

import pytest
from support.deaths import death_at
from support.reserving import reserve

from flask_backend.broker.connection import Connection
from flask_backend.config import Address, Settings
from flask_backend.errors import BrokerConnectionError
from flask_backend.message import MAX_DEPTH
from flask_backend.outcome import Ending
from flask_backend.registry import Handler, Handlers
from flask_backend.retry import MAX_CRASHES, Retry
from flask_backend.stories import Story
from flask_backend.worker.postmortem import settle

BODY = b'{"endpoint": "hello", "args": ["world"]}'
HANDLERS = Handlers("q", {"hello": Handler("hello", print), "proud": Handler("proud", print, retry=Retry(0))})


@pytest.fixture
def settings(broker):
    return Settings(Address("127.0.0.1", broker.port), timeout_s=1.0)


@pytest.fixture
def heir(broker, settings):
    """Reserve a job in a worker that sends `last_words` and dies; return the duplicate connection and the job's id."""

    def make(last_words: bytes, body: bytes = BODY) -> tuple[int, int]:
        job_id = broker.put("q", body, ttr=60)
        worker = Connection(settings.address, settings.timeout_s, watch="q")
        assert reserve(worker).id == job_id
        fd = os.dup(worker.fileno())
        if last_words:
            duplicate = socket.socket(fileno=os.dup(fd))
            duplicate.sendall(last_words.replace(b"ID", b"%d" % job_id))
            duplicate.close()
        worker.abandon()
        return fd, job_id

    return make


@pytest.mark.parametrize(
    "last_words",
    [
        b"",
        b"touch ID\r\n",
        b"touch ID\r\ntouch 99999\r\n",
        b"delete 99999\r\n",
        b"stats-job ID\r\n",
        b"stats-job ID\r\nstats-tube q.failures\r\nuse q.failures\r\nput 0 0 60 2\r\n{}\r\n",
    ],
)
def test_the_job_is_found_behind_replies_that_the_dead_worker_did_not_read(heir, settings, broker, last_words):
    fd, job_id = heir(last_words)
    assert broker.job(job_id)["state"] == "reserved"
    assert settle(settings, HANDLERS, fd, death_at(job_id), crashes=1).ending is Ending.RETRIED
    assert broker.job(job_id)["state"] == "delayed"


def test_a_job_that_crashed_three_workers_is_buried_with_the_story_of_the_last(heir, settings, broker):
    fd, job_id = heir(b"use q.other\r\n")
    assert settle(settings, HANDLERS, fd, death_at(job_id), crashes=3).ending is Ending.BURIED
    assert broker.job(job_id)["state"] == "buried"
    note = Story.decode(broker.take("q.failures"))
    assert (note.job, note.queue, note.reason) == (job_id, "q", "it has crashed its worker 3 times")
    assert (note.endpoint, note.call, note.kind) == ("hello", 'hello("world")', "SIGKILL")
    assert (note.attempts, note.allowed, note.ran_s) == (1, 10, 1.5)
    assert note.message.startswith("worker 4711 of q was killed by signal 9 (Killed, perhaps out of memory) at job")
    assert (note.death["exit_signal"], note.death["private_bytes"], note.death["worker_pid"]) == (9, 30 << 20, 4711)


def test_a_death_counts_as_a_failure_for_the_tasks_own_policy(settings, broker, heir):
    fd, job_id = heir(b"", b'{"endpoint": "proud"}')
    assert settle(settings, HANDLERS, fd, death_at(job_id), crashes=1).ending is Ending.BURIED
    assert Story.decode(broker.take("q.failures")).reason == "failed once"


class UnsoundRetry(Retry):
    def allows_another(self, attempts):
        raise RuntimeError("no policy")


@pytest.mark.parametrize(("crashes", "state"), [(1, "delayed"), (3, "buried")])
def test_a_policy_that_fails_does_not_prevent_the_settlement_of_a_job(heir, settings, broker, crashes, state):
    handlers = Handlers("q", {"hello": Handler("hello", print, retry=UnsoundRetry())})
    fd, job_id = heir(b"")
    expected = Ending.BURIED if crashes == MAX_CRASHES else Ending.RETRIED
    assert settle(settings, handlers, fd, death_at(job_id), crashes=crashes).ending is expected
    assert broker.job(job_id)["state"] == state


@pytest.mark.parametrize("depth", [256, 257, 970, 30_000])
def test_any_depth_of_a_body_lets_its_job_be_settled(heir, settings, broker, depth):
    fd, job_id = heir(b"", b'{"endpoint": "hello", "args": [%b%b]}' % (b"[" * (depth - 2), b"]" * (depth - 2)))
    assert settle(settings, HANDLERS, fd, death_at(job_id), crashes=3).ending is Ending.BURIED
    note = Story.decode(broker.take("q.failures"))
    assert (note.job, note.endpoint) == (job_id, "hello" if depth == MAX_DEPTH else None)


def test_the_endpoint_of_a_missing_task_is_safe_to_show(heir, settings, broker):
    fd, job_id = heir(b"", json.dumps({"endpoint": "\x1b[2J\n" + "x" * 50_000}).encode())
    assert settle(settings, HANDLERS, fd, death_at(job_id), crashes=3).ending is Ending.BURIED
    note = Story.decode(broker.take("q.failures"))
    assert note.endpoint.startswith(r"\x1b[2J\nxxx")
    assert (len(note.endpoint), len(note.call) <= 1000) == (200, True)


@pytest.mark.parametrize(
    "last_words", [b"delete ID\r\n", b"stats-job ID\r\nrelease ID 0 100\r\n", b"release ID 0 100\r\n", b"bury ID 0\r\n"]
)
def test_a_job_settled_by_the_last_commands_is_left_alone(heir, settings, broker, last_words):
    fd, job_id = heir(last_words)
    assert settle(settings, HANDLERS, fd, death_at(job_id), crashes=3) is None
    assert broker.tube("q.failures")["current-jobs-ready"] == 0
    stats = broker.job(job_id)
    assert stats is None or (stats["state"], stats["releases"] + stats["buries"]) in (("delayed", 1), ("buried", 1))


@pytest.mark.parametrize("last_words", [b"delete", b"nonsense\r\n", b"peek ID\r\n", b"put 0 0 1 5\r\nab"])
def test_in_doubt_the_connection_is_closed_and_the_job_goes_back_unchanged(heir, settings, broker, last_words):
    from support.waiting import wait_until

    fd, job_id = heir(last_words)
    assert settle(settings, HANDLERS, fd, death_at(job_id), crashes=3) is None
    wait_until(lambda: broker.job(job_id)["state"] == "ready", "the job is ready")
    assert broker.job(job_id)["releases"] == 0


def test_a_frozen_broker_is_not_an_error(heir, settings, broker):
    fd, job_id = heir(b"")
    broker.freeze()
    assert settle(settings, HANDLERS, fd, death_at(job_id), crashes=1) is None
    broker.thaw()


def test_an_unreachable_broker_is_not_an_error_either(heir, settings, broker):
    fd, job_id = heir(b"")
    broker.kill()
    assert settle(settings, HANDLERS, fd, death_at(job_id), crashes=1) is None


def test_a_closed_connection_is_closed_for_its_duplicate_too(settings, broker):
    from support.waiting import wait_until

    job_id = broker.put("q", BODY)
    worker = Connection(settings.address, settings.timeout_s, watch="q")
    reserve(worker)
    fd = os.dup(worker.fileno())
    worker.close()
    wait_until(lambda: broker.job(job_id)["state"] == "ready", "the job is ready")
    with pytest.raises(BrokerConnectionError):
        Connection.adopt(fd, settings.address, settings.timeout_s).recover_reserved(job_id)
