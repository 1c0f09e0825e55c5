"""Formatting any exception."""

from __future__ import annotations

import io
import json
import linecache
import logging
import sys
import traceback
from contextlib import suppress

import pytest
from support.hostile import MAKERS, Evil, fails, with_class

from flask_backend import tracebacks
from flask_backend.decisions import Bury
from flask_backend.logs import JsonFormatter, TextFormatter
from flask_backend.stories import Story, here_and_now, tell_exception
from flask_backend.tracebacks import log_failure, message_of, name_of, traceback_of
from flask_backend.visible import visible_lines

MAX_JOB_SIZE = 65535


def raised(error: BaseException) -> BaseException:
    with suppress(BaseException):
        raise error
    return error


@pytest.fixture(params=MAKERS)
def hostile(request) -> BaseException:
    return raised(MAKERS[request.param]())


@pytest.fixture
def logged():
    """A logger of tasks, and the output of two kinds of handlers: ours, in both formats, and a plain one."""
    stream = io.StringIO()
    logger = logging.Logger("flask_backend.task")  # noqa: LOG001  # not in logging's tree, where pytest's handlers are
    for formatter in (TextFormatter(), JsonFormatter(), logging.Formatter()):
        handler = logging.StreamHandler(stream)
        handler.setFormatter(formatter)
        logger.addHandler(handler)
    return logger, stream


def test_any_exception_has_a_story_that_fits_a_job(hostile):
    note = Story(job=1, queue="q", reason="failed once", **here_and_now(), **tell_exception(hostile))
    body = note.encode()
    assert len(body) < MAX_JOB_SIZE
    told = Story.decode(body)
    assert 0 < len(told.exception) <= 200
    assert len(told.message) <= 1000
    assert 0 < len(told.traceback) < 6100
    assert all(visible_lines(text) == text for text in (told.exception, told.message, told.traceback))


def test_any_exception_can_be_logged_by_any_formatter(hostile, logged, capsys):
    logger, stream = logged
    log_failure(logger, logging.ERROR, "task %s failed", "hello", error=hostile)
    text = stream.getvalue()
    assert text.count("task hello failed") == 3
    assert len(text) < 3 * 21_000
    assert visible_lines(text) == text
    assert capsys.readouterr().err == ""
    [line] = [line for line in text.splitlines() if line.startswith("{")]
    assert json.loads(line)["exception"]


def test_an_ordinary_exception_is_formatted_as_by_python():
    def fail():
        try:
            {}["x"]
        except KeyError as error:
            raise ValueError("a long message, of several lines,\n" * 50) from error

    with pytest.raises(ValueError, match="a long message") as caught:
        fail()
    told = traceback_of(caught.value, caught.tb)
    assert told == "".join(traceback.format_exception(caught.value)).rstrip()


def test_a_shortened_story_has_the_last_frames_with_their_code_and_context():
    def deep(level):
        if level:
            deep(level - 1)
        raise with_class("Quits", __str__=lambda _: sys.exit(3)) from KeyError("why")

    with pytest.raises(ValueError) as caught:  # noqa: PT011  # its text cannot be compared
        deep(50)
    told = traceback_of(caught.value, caught.value.__traceback__).splitlines()
    assert told[0] == "Traceback (most recent call last), abridged:"
    assert told[1] == f'  File "{__file__}", line {deep.__code__.co_firstlineno + 2}, in deep'
    assert told[2] == "    deep(level - 1)"
    assert told.count(told[2]) == 19
    assert told[-2:] == ["app.Quits: (its str() fails)", "with KeyError: 'why'"]


@pytest.mark.parametrize("broken", ["format_exception", "_in_full", "_is_of_usual_size", "_in_short", "_source"])
@pytest.mark.parametrize("error", [MemoryError, RecursionError, Evil, SystemExit])
def test_a_failure_at_any_point_of_formatting_leaves_a_story(monkeypatch, broken, error):
    def fail(*_args, **_kwargs):
        raise error

    monkeypatch.setattr(traceback if broken == "format_exception" else tracebacks, broken, fail)
    told = tell_exception(raised(ValueError("no luck")))
    assert (told["exception"], told["message"]) == ("ValueError", "no luck")
    assert "ValueError: no luck" in told["traceback"]
    monkeypatch.setattr(tracebacks, "_in_short", fail)
    monkeypatch.setattr(tracebacks, "_in_full", fail)
    assert traceback_of(ValueError(), None) == "ValueError: (its traceback cannot be shown)"


def test_source_that_cannot_be_read_is_left_out(monkeypatch):
    monkeypatch.setattr(linecache, "getline", fails)
    error = raised(MAKERS["str raises SystemExit"]())
    assert traceback_of(error, error.__traceback__).endswith("in raised\napp.Quits: (its str() fails)")


class Failing(logging.Handler):
    """A handler that raises the given exception: always, or only for records with a traceback."""

    def __init__(self, error: type[BaseException], *, always: bool) -> None:
        super().__init__()
        self.error = error
        self.always = always
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if self.always or record.exc_info:
            raise self.error
        self.lines.append(record.getMessage())


@pytest.mark.parametrize("error", [ValueError, MemoryError, RecursionError, SystemExit, Evil])
def test_a_handler_that_raises_costs_the_traceback_or_the_line_and_nothing_else(error):
    logger = logging.Logger("flask_backend.task")  # noqa: LOG001
    logger.addHandler(handler := Failing(error, always=False))
    log_failure(logger, logging.ERROR, "task %s failed", "hello", error=ValueError("x"))
    assert handler.lines == ["task hello failed"]
    handler.always = True
    log_failure(logger, logging.ERROR, "task %s failed", "hello", error=ValueError("x"))
    assert handler.lines == ["task hello failed"]


def test_the_exception_itself_is_in_the_record_for_error_collectors():
    records: list[logging.LogRecord] = []
    logger = logging.Logger("flask_backend.task")  # noqa: LOG001
    logger.addHandler(handler := logging.Handler())
    handler.emit = records.append
    error = raised(ValueError("x"))
    log_failure(logger, logging.ERROR, "failed", error=error, extra={"task": "hello"})
    assert records[0].exc_info == (ValueError, error, error.__traceback__)
    assert records[0].task == "hello"


def test_an_exception_below_the_level_of_the_logger_is_not_formatted():
    logger = logging.Logger("flask_backend.task", logging.ERROR)  # noqa: LOG001
    logger.addHandler(handler := Failing(Evil, always=False))
    log_failure(logger, logging.INFO, "later")
    assert handler.lines == []


def test_names_are_shown_as_people_know_them():
    assert name_of(KeyError()) == "KeyError"
    assert name_of(Bury("x")) == "Bury"
    assert name_of(with_class("Oops")) == "app.Oops"
    assert name_of(MAKERS["no module"]()) == "Homeless"
    assert name_of(MAKERS["metaclass raises"]()).endswith("FromMeta")
    assert message_of(ValueError("a\n\tb")) == "a\n\tb"
