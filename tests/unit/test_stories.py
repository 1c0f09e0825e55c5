from __future__ import annotations

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flask_backend import Bury
from flask_backend.cli.stories import echo_story
from flask_backend.deaths import Activity, Death, Exit, ExitKind
from flask_backend.errors import MessageDecodeError
from flask_backend.stories import Story, here_and_now, tell_exception


def a_note(**told) -> Story:
    return Story(**{"job": 7, "queue": "q", "reason": "failed once", **here_and_now(), **told})


def test_a_note_comes_back_unchanged():
    note = a_note(endpoint="hello", call='hello("ä")', attempts=10, allowed=10, death={"exit_signal": 9})
    assert Story.decode(note.encode()) == note


def test_fields_added_by_a_later_version_are_left_out():
    fields = json.loads(a_note().encode()) | {"colour": "red", "death": {"exit_signal": 9, "cgroup": ["a"]}}
    note = Story.decode(json.dumps(fields).encode())
    assert (note.reason, note.death) == ("failed once", {"exit_signal": 9})


def test_a_note_of_a_real_death_comes_back_unchanged():
    killed = Exit(pid=4711, status=None, signal=9, user_s=1.5, system_s=0.25, max_rss_bytes=2**40)
    death = Death("q", ExitKind.DIED_BUSY, killed, 3600.5, True, False, Activity(7, "hello", 0.125), None)
    note = a_note(death=death.as_dict(), ran_s=0.125, allowed=2**64)
    assert Story.decode(note.encode()) == note


@pytest.mark.parametrize("body", [b"[]", b"{}", b"7", b'{"job": 1}', b"no JSON"])
def test_a_body_that_is_not_a_note_is_an_error(body):
    with pytest.raises(MessageDecodeError):
        Story.decode(body)


@pytest.mark.parametrize(
    "odd",
    [
        *(("job", value) for value in (-5, "7", 2**64)),
        *(("buried_at", value) for value in (1e300, float("nan"), None)),
        *(("reason", None), ("pid", "x"), ("message", 5), ("attempts", "many")),
        *(
            ("job", True),
            ("job", 0),
            ("job", 7.0),
            ("buried_at", 0),
            ("buried_at", True),
            ("pid", -1),
            ("pid", 10**4000),
        ),
        *((name, value) for name in ("attempts", "allowed") for value in (-1, 10**4000, 1.5, True, "1")),
        *((name, value) for name in ("scheduled_at", "ran_s") for value in ("now", [], -1, 10**4000, 1e300)),
        *((name, value) for name in ("scheduled_at", "ran_s") for value in (float("nan"), float("inf"), False)),
        *((name, ["text"]) for name in ("queue", "reason", "host", "endpoint", "call", "exception", "traceback")),
        *(("death", value) for value in ("yes", [], 9, False)),
        *(("death", {name: 10**4000}) for name in ("exit_signal", "exit_status", "worker_pid", "lived_s", "user_s")),
        *(("death", {name: {}}) for name in ("exit_signal", "exit_kind", "task", "max_rss_bytes")),
        ("death", {"running_s": float("nan")}),
    ],
)
def test_a_foreign_note_with_odd_values_is_refused(odd):
    told = json.loads(a_note().encode()) | dict([odd])
    with pytest.raises(MessageDecodeError, match="of a note"):
        Story.decode(json.dumps(told).encode())


def fail(error: BaseException) -> BaseException:
    try:
        raise error  # noqa: TRY301  # for its traceback
    except BaseException as caught:
        return caught


@given(st.text(alphabet=st.characters(), min_size=1), st.integers(1, 100_000))
def test_a_note_of_any_failure_fits_the_smallest_usual_job(text, times):
    told = tell_exception(fail(ValueError(text * times)))
    note = a_note(call=f"hello({text * times})", **told)
    assert len(note.encode()) <= 65_535
    assert Story.decode(note.encode()).exception == "ValueError"


def test_the_end_of_a_long_traceback_is_kept():
    def recurse(n: int) -> None:
        if n == 0:
            raise ValueError("x" * 3000 + " the end")
        recurse(n - 1) if n % 2 else recurse_too(n - 1)

    def recurse_too(n: int) -> None:
        recurse(n)

    with pytest.raises(ValueError, match="the end") as caught:
        recurse(200)
    traceback = tell_exception(caught.value)["traceback"]
    assert traceback.startswith("Traceback (most recent call last):")
    assert traceback.endswith("the end")
    assert " characters …]\n" in traceback
    assert len(traceback) < 6100


def test_an_exception_that_cannot_be_shown_is_still_reported():
    class RudeError(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    told = tell_exception(fail(RudeError()))
    assert told["message"] == "(its str() fails)"
    assert told["exception"].endswith("RudeError")


def test_it_is_grouped_by_exception_signal_or_reason():
    assert a_note(exception="app.errors.Oops").kind == "app.errors.Oops"
    assert a_note(death={"exit_signal": 11, "exit_status": None}).kind == "SIGSEGV"
    assert a_note(death={"exit_signal": None, "exit_status": 3}).kind == "exit 3"
    assert a_note(death={"exit_signal": 40}).kind == "signal 40"
    assert a_note().kind == "failed once"
    assert tell_exception(fail(Bury("no such user")))["exception"] == "Bury"


def test_the_newest_note_comes_first():
    assert a_note(buried_at=2_000_000_000.5).priority < a_note(buried_at=1_999_999_998.0).priority
    assert 0 <= a_note(buried_at=1e12).priority < 2**32


def test_a_story_tells_that_a_retry_comes_too_late(capsys):
    for expires_at, words in ((time.time() - 90, "1m30s ago: a retry is deleted, and not run"), (2**33 - 1, ", in ")):
        echo_story(a_note(expires_at=expires_at))
        assert words in " ".join(capsys.readouterr().out.partition("expires:")[2].partition("buried:")[0].split())
