"""Why a job has not run: the main reason first."""

from __future__ import annotations

from dataclasses import replace

import pytest

from flask_backend import Retry
from flask_backend.broker.cursors import Cursor
from flask_backend.broker.stats import JobRecord, Queue
from flask_backend.operations.compatibility import Fault, Incompatibility
from flask_backend.operations.explanation import Facts, explain, gone
from flask_backend.operations.limits import LimitUse
from flask_backend.stories import Story

NOW = 1_767_225_600.0
JOB = JobRecord(
    id=7,
    queue="q",
    state="ready",
    priority=65536,
    age_s=90,
    delay_s=0,
    ttr_s=120,
    time_left_s=0,
    reserves=0,
    timeouts=0,
    releases=0,
    buries=0,
    kicks=0,
)
QUEUE = Queue("q", ready=3, reserved=2, delayed=0, buried=0, watching=2, waiting=0, put=9, deleted=4, pause_left_s=0)
UNKNOWN = Incompatibility(
    Fault.UNKNOWN_ENDPOINT, "queue 'q' has no task 'gone' in this version of the app", "gone(...)"
)
STORY = Story(7, "q", "failed 10 times", NOW - 180, "host", 1, exception="ValueError", message="no\nluck")


def explained(queue=QUEUE, *, story=None, misfit=None, retry=None, **job):
    return explain(Facts(replace(JOB, **job), queue, NOW, story, misfit, retry))


def test_a_job_that_is_gone_may_have_been_done():
    assert gone(7).code == "gone"
    assert gone(7).text == "Job 7 is gone: it has finished, was deleted, or never existed."


def test_a_ready_job_waits_for_busy_workers():
    reason = explained()
    assert reason.code == "busy"
    assert reason.text == (
        "Job 7 is ready and waits for its turn: 3 jobs of q are ready, and of 2 workers none is idle."
    )
    assert reason.numbers == {"age_s": 90, "attempt": 1, "allowed": None, "ready": 3, "workers": 2, "idle": 0}


@pytest.mark.parametrize(
    ("ready", "idle", "told"),
    [
        (1, 1, "1 job of q is ready, and of 2 workers 1 is idle."),
        (3, 2, "3 jobs of q are ready, and of 2 workers 2 are idle."),
    ],
)
def test_with_idle_workers_it_is_only_ready(ready, idle, told):
    reason = explained(replace(QUEUE, ready=ready, waiting=idle))
    assert reason.code == "ready"
    assert reason.text.endswith(told)


def test_without_workers_it_shows_how_to_start_some():
    reason = explained(replace(QUEUE, watching=0))
    assert reason.code == "no-worker"
    assert reason.text == ("No worker watches q to take job 7: start one with `flask-backend supervise --queue q`.")


def test_a_queue_name_cannot_become_a_command_in_a_line_to_copy():
    queue = replace(QUEUE, name="q;$(reboot)", watching=0)  # a valid name of a tube
    assert "`flask-backend supervise --queue 'q;$(reboot)'`" in explained(queue).text
    assert "`flask-backend resume 'q;$(reboot)'`" in explained(replace(queue, pause_left_s=60)).text


def test_a_pause_is_the_first_reason_for_a_ready_job():
    reason = explained(replace(QUEUE, pause_left_s=300, watching=0), misfit=UNKNOWN)
    assert reason.code == "paused"
    assert reason.text.startswith(
        "Queue q is paused for another 5m, so job 7 waits; `flask-backend resume q` ends the pause. No worker watches q"
    )
    assert reason.numbers["pause_left_s"] == 300


def test_a_pause_without_end_is_described_as_such():
    assert "Queue q is paused until it is resumed" in explained(replace(QUEUE, pause_left_s=2**32 - 1)).text


def test_a_missing_task_comes_before_the_turn():
    reason = explained(misfit=UNKNOWN)
    assert reason.code == "unknown-endpoint"
    assert reason.text.startswith(
        "Job 7 cannot run: queue 'q' has no task 'gone' in this version of the app. Job 7 is ready"
    )


def test_a_delay_shows_the_time_and_then_the_missing_workers():
    reason = explained(replace(QUEUE, watching=0), state="delayed", time_left_s=40)
    assert reason.code == "delayed"
    assert reason.text.startswith("Job 7 is scheduled for 20")
    assert ", in 40s. No worker watches q" in reason.text
    assert reason.numbers["due_in_s"] == 40


def test_a_retry_shows_the_next_attempt():
    reason = explained(state="delayed", time_left_s=40, releases=2, retry=Retry())
    assert reason.code == "retry"
    assert reason.text.startswith("Job 7 has failed 2 times; attempt 3 of 10 is due at 20")
    assert (reason.numbers["attempt"], reason.numbers["allowed"]) == (3, 10)


def test_without_a_policy_the_number_of_attempts_is_unknown():
    assert "has failed once; attempt 2 is due at" in explained(state="delayed", time_left_s=40, releases=1).text
    endless = explained(state="delayed", time_left_s=40, releases=1, retry=Retry(max_retries=None))
    assert "; attempt 2 is due at" in endless.text


def test_a_retry_of_a_missing_task_says_that_first():
    reason = explained(state="delayed", time_left_s=40, releases=2, misfit=UNKNOWN)
    assert reason.code == "unknown-endpoint"
    assert "Job 7 has failed 2 times" in reason.text


def test_a_reserved_job_shows_the_last_sign_of_its_worker():
    reason = explained(state="reserved", time_left_s=111, retry=Retry(max_retries=0))
    assert reason.code == "reserved"
    assert reason.text == (
        "A worker has job 7, attempt 1 of 1: it was last heard from 9s ago, and may be silent for 2m."
    )
    assert (reason.numbers["silent_s"], reason.numbers["ttr_s"], reason.numbers["time_left_s"]) == (9, 120, 111)


def test_a_reserved_job_whose_time_is_over_is_held_by_an_open_connection():
    reason = explained(state="reserved", time_left_s=-40)
    assert reason.code == "reserved"
    assert "last heard from 2m40s ago: its TTR of 2m has expired" in reason.text
    assert "the connection that holds the job is still open" in reason.text


def test_a_buried_job_shows_its_story_in_one_line():
    reason = explained(state="buried", buries=1, story=STORY)
    assert reason.code == "buried"
    assert reason.numbers == {"age_s": 90, "buried_at": NOW - 180}
    assert reason.text == (
        r"Job 7 has been buried for 3m: failed 10 times: ValueError: no\nluck. See `flask-backend failures --job 7`."
    )


def test_a_long_story_is_cut():
    story = replace(STORY, message="x" * 1000)
    assert len(explained(state="buried", buries=1, story=story).text) < 300


def test_a_buried_job_without_a_story_says_so_and_what_a_kick_would_do():
    reason = explained(state="buried", buries=1, misfit=UNKNOWN)
    assert reason.code == "buried"
    assert reason.text.startswith("Job 7 was buried without a story: by a program other than our workers")
    assert "Job 7 cannot run" in reason.text


def test_text_from_the_wire_cannot_act_on_the_terminal():
    misfit = Incompatibility(Fault.BAD_ARGUMENTS, "hello() got an unexpected keyword argument '\x1b[31m'", "hello(...)")
    assert r"'\x1b[31m'" in explained(misfit=misfit).text


def explained_until(expires_at, **job):
    return explain(Facts(replace(JOB, **job), QUEUE, NOW, expires_at=expires_at))


def test_an_expired_job_will_not_run():
    reason = explained_until(NOW - 90)
    assert reason.code == "expired"
    assert reason.text.startswith(
        "Job 7 expired 1m30s ago: it is deleted, and not run, as soon as a worker takes it. Job 7 is ready and waits"
    )
    assert reason.numbers["expired_s"] == 90
    assert reason.numbers["expires_at"] == NOW - 90
    assert explained_until(NOW - 90, state="delayed", time_left_s=60).code == "expired"


def test_a_job_that_runs_is_not_called_expired():
    assert explained_until(NOW - 90, state="reserved", time_left_s=100).code == "reserved"


def test_a_buried_job_that_has_expired_would_not_run_after_a_retry():
    reason = explain(Facts(replace(JOB, state="buried"), QUEUE, NOW, STORY, expires_at=NOW - 5))
    assert reason.code == "buried"
    assert reason.text.endswith(
        "Job 7 expired 5s ago: after a retry it is deleted, and not run, as soon as a worker takes it."
    )


def test_a_job_with_a_checkpoint_continues_and_does_not_expire():
    reason = explain(Facts(JOB, QUEUE, NOW, expires_at=NOW - 90, cursor=Cursor({"page": "\x1b[31m"}, 3, 70)))
    assert reason.code == "busy"
    assert reason.text.endswith(r'It goes on at its last saved checkpoint, cursor {"page": "\u001b[31m"}.')
    assert reason.numbers["cursor_saves"] == 3
    assert "expired" not in reason.text


def test_a_job_that_will_expire_has_the_time_as_the_second_sentence():
    reason = explained_until(NOW + 30)
    assert reason.code == "busy"
    assert "It expires at " in reason.text
    assert reason.text.endswith(", in 30s.")
    assert reason.numbers["expires_at"] == NOW + 30
    late = explained_until(NOW + 30, state="delayed", time_left_s=60)
    assert late.code == "delayed"
    assert late.text.endswith(", in 30s, before it is due.")


@pytest.mark.parametrize(
    ("limit", "state", "said"),
    [
        (LimitUse("gpu", 2, None, 2, 0, 1), "ready", "Limit gpu: 2 of 2 are used, and 1 worker has a job and waits."),
        (
            LimitUse("mail", 3, 60, 3, 0, 4),
            "reserved",
            "Limit mail: 3 of 3 within 1m are used, and 4 workers have a job and wait, perhaps with this one.",
        ),
    ],
)
def test_a_limit_for_which_workers_wait_is_named(limit, state, said):
    reason = explain(Facts(replace(JOB, state=state), QUEUE, NOW, limit=limit))
    assert reason.text.endswith(said)
    assert reason.code == ("limited" if state == "ready" else "reserved")
    idle = replace(limit, used=0, waiting=0)
    assert "imit" not in explain(Facts(replace(JOB, state=state), QUEUE, NOW, limit=idle)).text
