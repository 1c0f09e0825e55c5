"""The log lines of jobs that the broker refuses to settle."""

from __future__ import annotations

import pytest

from flask_backend.broker.stats import JobCounters
from flask_backend.current import CurrentJob
from flask_backend.errors import BrokerConnectionError, BrokerError, JobNotFoundError, MessageDecodeError
from flask_backend.masking import DEFAULT_MASK
from flask_backend.retry import Attempts, Retry
from flask_backend.worker.outcomes import Attempt
from flask_backend.worker.settlement import StoryWriter, bury_undecodable, settle_failure


class Connection:
    """Refuses every change of a job."""

    def __init__(self, error):
        self.error = error

    def counters(self, _job_id):
        return JobCounters(attempts=Attempts(0, 0), priority=1, ttr_s=60, age_s=1)

    def stats_tube(self, _names):
        return []

    def put(self, _queue, _body, _options):
        return 1

    def release(self, *_args):
        raise self.error

    bury = delete = release


JOB = CurrentJob(7, "q", "task", {}, Retry(), None)
STORIES = StoryWriter(DEFAULT_MASK)
REFUSED = BrokerError("the server reports an internal error")
AWAY = BrokerConnectionError("lost the connection")


@pytest.mark.parametrize(
    ("error", "then"),
    [
        (REFUSED, "the broker refuses to retry or bury it, and may not hand it out until it is restarted"),
        (AWAY, "the broker gives it to another worker"),
    ],
)
@pytest.mark.parametrize("retries", [0, 1], ids=["bury", "release"])
def test_a_failure_that_cannot_be_settled_tells_what_becomes_of_the_job(caplog, error, then, retries):
    with pytest.raises(type(error)):
        settle_failure(
            Connection(error),
            Attempt(JOB, "task()", Retry(max_retries=retries), 1.0),
            ValueError("x"),
            STORIES,
        )
    assert caplog.messages[0].startswith("task task of q failed (job 7, attempt 1 of ")
    assert caplog.messages[0].partition("\n")[0].endswith(f"), {then}")


def test_a_lost_job_is_not_an_error_of_the_broker(caplog):
    settle_failure(
        Connection(JobNotFoundError("gone")),
        Attempt(JOB, "task()", Retry(), 1.0),
        ValueError("x"),
        STORIES,
    )
    assert "its reservation was lost" in caplog.text


@pytest.mark.parametrize("error", [REFUSED, AWAY])
def test_a_job_that_can_never_run_is_called_buried_only_once_it_is(caplog, error):
    with pytest.raises(type(error)):
        bury_undecodable(Connection(error), JOB, MessageDecodeError("not JSON"), STORIES)
    assert caplog.messages == [f"job 7 of q can never run, and is not buried: not JSON ({error})"]
