"""Going on with a dead worker's connection, whatever it had said last."""

from __future__ import annotations

import os
import socket

import pytest

from flask_backend.broker import Connection
from flask_backend.config import Address, Settings
from flask_backend.ending import Ending
from flask_backend.errors import BrokerConnectionError
from flask_backend.postmortem import settle

BODY = b"body"


@pytest.fixture
def settings(broker):
    return Settings(Address("127.0.0.1", broker.port), timeout_s=1.0)


@pytest.fixture
def heir(broker, settings):
    """A worker reserves a job, says `last_words` and dies; its duplicate is returned, with the job's id."""

    def make(last_words: bytes) -> tuple[int, int]:
        job_id = broker.put("q", BODY, ttr=60)
        worker = Connection(settings, watch="q")
        worker.send_reserve(1)
        assert worker.read_reserved().id == job_id
        fd = os.dup(worker.fileno())
        if last_words:
            duplicate = socket.socket(fileno=os.dup(fd))
            duplicate.sendall(last_words.replace(b"ID", b"%d" % job_id))
            duplicate.close()
        worker.abandon()
        return fd, job_id

    return make


@pytest.mark.parametrize("last_words", [b"", b"touch ID\r\n", b"touch ID\r\ntouch 99999\r\n", b"delete 99999\r\n"])
def test_the_job_is_found_behind_replies_that_the_dead_did_not_read(heir, settings, broker, last_words):
    fd, job_id = heir(last_words)
    assert broker.job(job_id)["state"] == "reserved"
    assert settle(settings, fd, job_id, crashes=1, story="it died") is Ending.RETRIED
    assert broker.job(job_id)["state"] == "delayed"


def test_a_job_that_took_three_workers_along_is_buried(heir, settings, broker):
    fd, job_id = heir(b"")
    assert settle(settings, fd, job_id, crashes=3, story="it died") is Ending.BURIED
    assert broker.job(job_id)["state"] == "buried"


@pytest.mark.parametrize("last_words", [b"delete ID\r\n", b"release ID 0 100\r\n", b"bury ID 0\r\n"])
def test_a_job_that_was_settled_by_the_last_words_is_left_alone(heir, settings, broker, last_words):
    fd, job_id = heir(last_words)
    assert settle(settings, fd, job_id, crashes=3, story="it died") is None
    stats = broker.job(job_id)
    assert stats is None or (stats["state"], stats["releases"] + stats["buries"]) in (("delayed", 1), ("buried", 1))


@pytest.mark.parametrize("last_words", [b"delete", b"nonsense\r\n", b"list-tube-used\r\n", b"put 0 0 1 5\r\nab"])
def test_in_doubt_the_connection_is_closed_and_the_job_goes_back_as_it_was(heir, settings, broker, last_words):
    from support.waiting import wait_until

    fd, job_id = heir(last_words)
    assert settle(settings, fd, job_id, crashes=3, story="it died") is None
    wait_until(lambda: broker.job(job_id)["state"] == "ready", "the job is ready")
    assert broker.job(job_id)["releases"] == 0


def test_a_broker_that_is_frozen_is_no_error_but_the_plain_behaviour(heir, settings, broker):
    fd, job_id = heir(b"")
    broker.freeze()
    assert settle(settings, fd, job_id, crashes=1, story="it died") is None
    broker.thaw()


def test_a_broker_that_is_gone_is_no_error_either(heir, settings, broker):
    fd, job_id = heir(b"")
    broker.kill()
    assert settle(settings, fd, job_id, crashes=1, story="it died") is None


def test_a_closed_connection_is_closed_for_its_duplicate_too(settings, broker):
    from support.waiting import wait_until

    job_id = broker.put("q", BODY)
    worker = Connection(settings, watch="q")
    worker.send_reserve(1)
    worker.read_reserved()
    fd = os.dup(worker.fileno())
    worker.close()
    wait_until(lambda: broker.job(job_id)["state"] == "ready", "the job is ready")
    with pytest.raises(BrokerConnectionError):
        Connection.adopt(fd, settings).find_held(job_id)
