"""The client that Flask-Backend uses, on both servers: the same results and the same exceptions."""

from __future__ import annotations

import greenstalk
import pytest


@pytest.fixture
def client(server, tube):
    with greenstalk.Client(("127.0.0.1", server.port), encoding=None, use=tube, watch=tube) as client:
        yield client


def test_the_life_of_a_job(client, tube):
    job_id = client.put(b"body", priority=5, ttr=50)
    job = client.reserve(timeout=1)
    assert (job.id, job.body) == (job_id, b"body")
    client.touch(job)
    client.release(job, priority=6)
    client.bury(client.reserve(timeout=1), priority=7)
    assert client.peek_buried().id == job_id
    stats = client.stats_job(job)
    assert [stats[key] for key in ("state", "pri", "ttr", "reserves", "releases", "buries", "kicks")] == [
        *("buried", 7, 50, 2, 1, 1, 0)
    ]
    assert client.kick(10) == 1
    assert client.peek_ready().id == client.peek(job_id).id == job_id
    job = client.reserve_job(job_id)
    client.bury(job)
    client.kick_job(job)
    client.delete(job)
    later = client.put(b"", delay=100)
    assert client.peek_delayed().id == later
    client.delete(later)
    assert client.stats_tube(tube)["total-jobs"] == 2


def test_tubes(client, tube):
    assert client.using() == tube
    assert client.watching() == [tube]
    assert client.watch("other") == 2
    client.use("other")
    assert {"default", "other", tube} <= set(client.tubes())
    assert client.ignore("other") == 1
    client.pause_tube(tube, 100)
    assert client.stats_tube(tube)["pause"] == 100


def test_statistics_are_read(server, client):
    stats = client.stats()
    assert stats["max-job-size"] == 1000
    assert stats["current-connections"] >= 1
    assert str(stats["version"]) == "{}.{}".format(*server.release)


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda client: client.reserve(timeout=0), greenstalk.TimedOutError),
        (lambda client: client.put(b"x" * 1001), greenstalk.JobTooBigError),
        (lambda client: client.put(b"x", priority=-1), greenstalk.BadFormatError),
        (lambda client: client.use("a b"), greenstalk.BadFormatError),
        (lambda client: client.delete(999_999), greenstalk.NotFoundError),
        (lambda client: client.touch(greenstalk.Job(999_999, b"")), greenstalk.NotFoundError),
        (lambda client: client.bury(greenstalk.Job(999_999, b"")), greenstalk.NotFoundError),
        (lambda client: client.release(greenstalk.Job(999_999, b"")), greenstalk.NotFoundError),
        (lambda client: client.kick_job(999_999), greenstalk.NotFoundError),
        (lambda client: client.reserve_job(999_999), greenstalk.NotFoundError),
        (lambda client: client.peek(999_999), greenstalk.NotFoundError),
        (lambda client: client.peek_ready(), greenstalk.NotFoundError),
        (lambda client: client.stats_job(999_999), greenstalk.NotFoundError),
        (lambda client: client.stats_tube("never-seen"), greenstalk.NotFoundError),
        (lambda client: client.ignore(client.using()), greenstalk.NotIgnoredError),
        (lambda client: client._send_cmd(b"nonsense", b""), greenstalk.UnknownCommandError),  # that no method does
    ],
)  # fmt: skip
def test_errors_follow_the_protocol(client, call, error):
    with pytest.raises(error):
        call(client)


def test_a_warning_comes_before_the_time_of_a_held_job_is_over(client):
    client.put(b"", ttr=1)
    client.reserve(timeout=0)
    with pytest.raises(greenstalk.DeadlineSoonError):
        client.reserve(timeout=5)
