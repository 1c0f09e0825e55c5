from __future__ import annotations

import io
import json
import logging
import math
import re
import sys
import threading
from contextlib import contextmanager

import pytest
from flask import Flask
from flask.logging import default_handler

from flask_backend.broker.stats import JobCounters
from flask_backend.current import CurrentJob, job_being_run
from flask_backend.errors import BrokerConnectionError
from flask_backend.logs import JobContext, JsonFormatter, TextFormatter, configure
from flask_backend.retry import Attempts, Retry
from flask_backend.visible import visible_lines


class JobLease:
    """A job's second attempt, or one whose attempt the broker does not report."""

    def __init__(self, *, answers: bool = True, logger: logging.Logger | None = None) -> None:
        self._answers = answers
        self._logger = logger
        self.times_asked = 0

    def counters_within(self, wait_s: float) -> JobCounters:
        self.times_asked += 1
        if self._logger:
            self._logger.info("asking the broker")
        if not self._answers:
            raise BrokerConnectionError("away")
        return JobCounters(priority=0, ttr_s=120, age_s=0, attempts=Attempts(releases=1, buries=0))

    def touch(self) -> None: ...


@contextmanager
def job_12(lease: JobLease | None = None):
    """Enter the task hello, called for job 12."""
    job = CurrentJob(id=12, queue="q", endpoint="hello", headers={}, retry=Retry(), lease=lease or JobLease())
    token = job_being_run.set(job)
    yield
    job_being_run.reset(token)


class Log:
    """A logger, and its output. It is outside logging's tree, since pytest puts handlers there."""

    def __init__(self, formatter: logging.Formatter) -> None:
        self._stream = io.StringIO()
        self._handler = logging.StreamHandler(self._stream)
        self._handler.setFormatter(formatter)
        self._handler.addFilter(JobContext())
        self.logger = self.as_from("test")

    def as_from(self, name: str) -> logging.Logger:
        logger = logging.Logger(name)  # noqa: LOG001  # see above
        logger.addHandler(self._handler)
        return logger

    @property
    def text(self) -> str:
        return self._stream.getvalue()

    @property
    def objects(self) -> list[dict]:
        return [json.loads(line) for line in self.text.split("\n") if line]


@pytest.fixture
def text():
    return Log(TextFormatter())


@pytest.fixture
def json_log():
    return Log(JsonFormatter())


class TestText:
    def test_a_line_outside_of_a_job_has_time_level_pid_logger_and_message(self, text):
        text.logger.info("hello %s", "world")
        assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} INFO \[\d+\] test: hello world\n", text.text)

    def test_a_line_of_a_job_ends_with_its_task_id_and_attempt(self, text):
        with job_12():
            text.logger.info("hello %s", "world")
        assert text.text.endswith("test: hello world [hello job 12 attempt 2]\n")

    def test_an_unknown_attempt_is_left_out(self, text):
        with job_12(JobLease(answers=False)):
            text.logger.info("hello")
        assert text.text.endswith("test: hello [hello job 12]\n")

    def test_a_traceback_comes_after_the_job(self, text):
        with job_12():
            text.logger.error("it broke", exc_info=ValueError("mine"))
        assert "test: it broke [hello job 12 attempt 2]\nValueError: mine\n" in text.text

    def test_a_line_of_ours_is_one_line_without_control_characters(self, text):
        text.as_from("flask_backend.task").error("task %s", "\x1b[2J\r\n2026-01-01 INFO forged\x9b\u202e\ud800")
        assert text.text.count("\n") == 1
        assert text.text.endswith(r"task \x1b[2J\r\n2026-01-01 INFO forged\x9b\u202e\ud800" + "\n")

    def test_further_lines_of_an_apps_message_are_indented(self, text):
        text.logger.info("SELECT\n\t1\r\n2026-01-01 INFO forged\x1b[2J")
        assert text.text.endswith("test: SELECT\n  \t1\\r\n  2026-01-01 INFO forged\\x1b[2J\n")

    def test_the_text_of_an_exception_does_not_look_like_a_record(self, text):
        text.logger.error("it broke", exc_info=ValueError("x\n2026-01-01 00:00:00,000 INFO [1] forged: line\ny"))
        assert text.text.endswith("ValueError: x\n  2026-01-01 00:00:00,000 INFO [1] forged: line\ny\n")

    def test_a_traceback_has_no_control_characters_and_a_bound(self, text):
        text.logger.error("it broke", exc_info=ValueError("\x1b[2J\u202e\r" + "x" * 10**6))
        assert r"ValueError: \x1b[2J\u202e\r" in text.text
        assert len(text.text) < 25_000
        record = logging.makeLogRecord(
            {"name": "app", "exc_text": "of another formatter \x1b[2J", "exc_info": (None, None, None)}
        )
        assert TextFormatter().format(record).endswith(r"formatter \x1b[2J")

    def test_lines_that_name_the_job_themselves_do_not_name_it_twice(self, text):
        with job_12():
            text.as_from("flask_backend.task").error("task hello failed (job 12)")
        assert text.text.endswith("flask_backend.task: task hello failed (job 12)\n")

    def test_a_field_of_another_meaning_outside_of_a_job_changes_nothing(self, text):
        text.logger.info("done", extra={"task": "spring cleaning"})
        assert text.text.endswith("test: done\n")


class TestJson:
    def test_a_line_outside_of_a_job_is_one_object_without_a_job(self, json_log):
        json_log.logger.warning("hello %s", "wörld ☺")
        [told] = json_log.objects
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", told.pop("time"))
        assert told.pop("pid")
        assert told == {"level": "WARNING", "logger": "test", "message": "hello wörld ☺"}
        assert "wörld ☺" in json_log.text

    def test_the_time_is_in_utc(self):
        record = logging.makeLogRecord({"created": 1767225600.1239})
        assert json.loads(JsonFormatter().format(record))["time"] == "2026-01-01T00:00:00.123Z"

    def test_a_line_of_a_job_has_its_fields(self, json_log):
        with job_12():
            json_log.logger.info("hello")
        told = json_log.objects[-1]
        assert {name: told[name] for name in ("task", "job_id", "attempt", "queue")} == {
            "task": "hello", "job_id": 12, "attempt": 2, "queue": "q",
        }  # fmt: skip

    def test_an_unknown_attempt_is_left_out(self, json_log):
        with job_12(JobLease(answers=False)):
            json_log.logger.info("hello")
        assert "attempt" not in json_log.objects[-1]

    def test_all_fields_of_extra_are_included(self, json_log):
        extra = {"order": 7, "paid": None, "lines": [{"sku": "ä"}], "job_id": 99, "level": 3, 5: "five"}
        json_log.logger.info("sold", extra=extra)
        told = json_log.objects[0]
        assert (told["order"], told["paid"], told["lines"], told["5"]) == (7, None, [{"sku": "ä"}], "five")
        assert (told["job_id"], told["level"], told["extra_level"]) == (99, "INFO", 3)

    def test_a_traceback_and_a_stack_have_fields_of_their_own(self, json_log):
        try:
            1 / 0  # noqa: B018
        except ZeroDivisionError:
            json_log.logger.exception("it broke", stack_info=True)
        told = json_log.objects[0]
        assert told["message"] == "it broke"
        assert told["exception"].startswith("Traceback (most recent call last):\n")
        assert told["exception"].endswith("\nZeroDivisionError: division by zero")
        assert told["stack"].startswith("Stack (most recent call last):\n")

    def test_a_missing_exception_is_not_shown(self, json_log):
        json_log.logger.error("it broke", exc_info=True)  # noqa: LOG014  # what people write
        assert "exception" not in json_log.objects[0]

    @pytest.mark.parametrize(
        ("value", "told"),
        [
            (b"\xff", r"b'\xff'"),
            ({1}, "{1}"),
            (math.nan, "nan"),
            ([math.inf], "[inf]"),
            ({(1, 2): 3}, "{(1, 2): 3}"),
            ({"in": {"side": 2j}}, {"in": {"side": "2j"}}),
            (ValueError("x"), "ValueError('x')"),
        ],
    )  # fmt: skip
    def test_values_that_json_cannot_carry_are_shown_by_their_repr(self, json_log, value, told):
        json_log.logger.info("look", extra={"value": value})
        assert json_log.objects[0]["value"] == told

    def test_no_value_makes_it_fail(self, json_log):
        circle: list = []
        circle.append(circle)
        deep: list = []
        for _ in range(100_000):
            deep = [deep]
        json_log.logger.info(
            "look", extra={"circle": circle, "deep": deep, "sly": Sly(), "in": [Sly()], "big": 10**5000}
        )
        told = json_log.objects[0]
        assert told["circle"] == "[[...]]"
        assert told["deep"] == "(list, whose repr() fails)"
        assert (told["sly"], told["in"]) == ("(Sly, whose repr() fails)", ["(Sly, whose repr() fails)"])
        assert told["big"] == "(int, whose repr() fails)"

    @pytest.mark.parametrize("arguments", [("%d apples", "no"), ("%s", 1, 2), ("%s", "Sly")], ids=str)
    def test_a_message_that_cannot_be_formatted_is_still_logged(self, json_log, arguments):
        json_log.logger.info(arguments[0], *(Sly() if a == "Sly" else a for a in arguments[1:]))
        assert "cannot be formatted with" in json_log.objects[0]["message"]

    @pytest.mark.parametrize("odd", ["\n", "\r\n", "\v", "\f", "\x1c", "\x85", "\u2028", "\u2029", "\0", '"', "\\"])
    def test_any_message_is_one_line(self, json_log, odd):
        json_log.logger.info("a%sb", odd, extra={"value": [odd], odd: 1})
        assert len(json_log.text.splitlines()) == 1
        told = json_log.objects[0]
        assert (told["message"], told["value"], told[odd]) == (f"a{odd}b", [odd], 1)

    def test_control_characters_are_escaped(self, json_log):
        unsafe = "\x1b[2J\x7f\x9b\u202e\u2066\ud800"
        json_log.logger.info("a%s", unsafe, extra={unsafe: unsafe})
        assert visible_lines(json_log.text) == json_log.text
        assert json_log.objects[0][unsafe] == unsafe

    def test_lone_surrogates_break_nothing(self, json_log):
        json_log.logger.info("file \udcff %s", "😀")
        assert json_log.text.encode().count("😀".encode()) == 1
        assert json_log.objects[0]["message"] == "file \udcff 😀"


class Sly:
    def __repr__(self):
        raise RuntimeError("no")


class TestJobContext:
    def test_fields_set_by_extra_stay(self, json_log):
        with job_12(lease := JobLease()):
            json_log.logger.info("of another", extra={"job_id": 99, "attempt": 5})
        told = json_log.objects[0]
        assert (told["task"], told["job_id"], told["attempt"], told["queue"]) == ("hello", 99, 5, "q")
        assert lease.times_asked == 0

    def test_the_fields_are_none_outside_of_a_job(self):
        record = logging.makeLogRecord({})
        assert JobContext().filter(record)
        assert (record.task, record.job_id, record.attempt, record.queue) == (None, None, None, None)

    def test_the_broker_is_asked_once_for_a_job(self, json_log):
        with job_12(lease := JobLease()):
            for _ in range(3):
                json_log.logger.info("hello")
        assert lease.times_asked == 1
        assert [told["attempt"] for told in json_log.objects] == [2, 2, 2]

    def test_lines_logged_during_the_request_do_not_repeat_it(self, json_log):
        with job_12(lease := JobLease(answers=False, logger=json_log.logger)):
            json_log.logger.info("hello")
        assert lease.times_asked == 1
        asking, hello = json_log.objects
        assert (asking["message"], asking["job_id"], "attempt" in asking) == ("asking the broker", 12, False)
        assert hello["message"] == "hello"

    def test_a_separate_thread_has_no_job(self, json_log):
        with job_12():
            thread = threading.Thread(target=json_log.logger.info, args=["from a thread"])
            thread.start()
            thread.join()
        assert "job_id" not in json_log.objects[0]


@contextmanager
def root_with(*handlers: logging.Handler):
    """Use a root logger with these handlers, without those of pytest."""
    root = logging.getLogger()
    before = root.handlers, root.level
    root.handlers = list(handlers)
    yield root
    root.handlers, root.level = before


class TestConfigure:
    @pytest.fixture
    def app(self):
        app = Flask("of_test_logs")
        yield app
        app.logger.removeHandler(default_handler)

    @pytest.mark.parametrize("log_format", ["text", "json"])
    def test_a_root_logger_without_handlers_gets_one_to_stderr(self, app, capsys, log_format):
        app.logger.addHandler(default_handler)
        with root_with() as root, job_12():
            configure(app, log_format)
            assert root.level == logging.INFO
            app.logger.info("hello %s", "ä")
        line = capsys.readouterr().err.splitlines()[-1]
        if log_format == "json":
            assert json.loads(line)["job_id"] == 12
        else:
            assert line.endswith("of_test_logs: hello ä [hello job 12 attempt 2]")

    def test_json_is_utf_8_in_any_locale(self, app, monkeypatch):
        stderr = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="backslashreplace")
        monkeypatch.setattr(sys, "stderr", stderr)
        with root_with():
            configure(app, "json")
            app.logger.info("ä")
        assert json.loads(stderr.buffer.getvalue())["message"] == "ä"

    def test_a_root_logger_with_handlers_is_not_touched(self, app):
        app.logger.addHandler(default_handler)
        handler = logging.NullHandler()
        with root_with(handler) as root:
            root.level = logging.ERROR
            configure(app, "json")
            assert (root.handlers, root.level, root.filters) == ([handler], logging.ERROR, [])
            assert (handler.filters, handler.formatter) == ([], None)
            assert default_handler in app.logger.handlers
