"""Destination and format of log lines, for the processes that our commands start.

The logger ``flask_backend.task`` reports the outcome of tasks: failures with their traceback, retries, burials, jobs
that crashed their worker. Its name is stable, so that error trackers and filters can rely on it.
"""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Callable
from contextvars import ContextVar
from datetime import UTC, datetime
from types import TracebackType
from typing import Literal, TextIO

from flask import Flask
from flask.logging import default_handler

from .current import CurrentJob, job_being_run
from .system import journal
from .system.loggers import delivery
from .system.streams import streams
from .tracebacks import traceback_of
from .visible import json_visible, visible, visible_lines

FORMAT = "%(asctime)s %(levelname)s [%(process)d] %(name)s: %(message)s"
JOURNAL_FORMAT = "%(name)s: %(message)s"

# The type of LogRecord.exc_info.
_ExcInfo = tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]

LogFormat = Literal["text", "json"]


def configure(app: Flask, log_format: LogFormat = "text") -> None:
    """Log to stderr from level INFO, unless the app has configured the root logger.

    If systemd has connected stderr to the journal, each record goes there as one entry, with its priority.

    Records that no handler of the app accepts always go to stderr, for example if the only handler raises.

    An app that configures logging itself adds the fields of the job with a filter, see :class:`JobContext`, and may use
    :class:`JsonFormatter` as well.
    """
    formatter = JsonFormatter() if log_format == "json" else TextFormatter()
    delivery.fallback = _handler(streams.open_stderr(), formatter)
    root = logging.getLogger()
    if root.handlers:
        return
    streams.word = lambda text: f"{formatter.format(_warning(text))}\n"
    if log_format == "json" and (reconfigure := getattr(sys.stderr, "reconfigure", None)):
        reconfigure(encoding="utf-8")  # the encoding of JSON, regardless of the locale
    root.addHandler(_journal(log_format) if journal.is_stderr() else _handler(streams.find_stderr(), formatter))
    root.setLevel(logging.INFO)
    # An app that logged during its import already has Flask's own handler, and would log every line twice.
    app.logger.removeHandler(default_handler)


def _handler(stream: TextIO, formatter: logging.Formatter) -> logging.Handler:
    handler = logging.StreamHandler(stream)
    handler.addFilter(JobContext())
    handler.setFormatter(formatter)
    return handler


def _journal(log_format: LogFormat) -> logging.Handler:
    """Return a handler that leaves time, level and pid out of the text: the journal records these itself."""
    handler = journal.JournalHandler(streams.open_stderr())
    handler.addFilter(JobContext())
    handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter(JOURNAL_FORMAT))
    return handler


def _warning(text: str) -> logging.LogRecord:
    return logging.LogRecord("flask_backend.streams", logging.WARNING, __file__, 0, text, None, None)


class JobContext(logging.Filter):
    """Adds the current job to log records: sets ``task``, ``job_id``, ``attempt`` and ``queue`` of each record.

    All are None outside of a job, and ``attempt`` also if the broker does not answer; fields that ``extra=`` has set
    are kept. The attempt takes one request to the broker, at the first line of a job. An app that configures logging
    itself adds this filter to its handlers, since a logger's own filters do not see the records of other loggers::

        logging.config.dictConfig({
            "version": 1,
            "disable_existing_loggers": False,  # loggers that other packages have already created
            "filters": {"job": {"()": "flask_backend.logs.JobContext"}},
            "formatters": {"json": {"()": "flask_backend.logs.JsonFormatter"}},
            "handlers": {"stderr": {"class": "logging.StreamHandler", "filters": ["job"], "formatter": "json"}},
            "root": {"level": "INFO", "handlers": ["stderr"]},
        })
    """

    def filter(self, record: logging.LogRecord) -> bool:
        job = job_being_run.get(None)
        for name, tell in _JOB_FIELDS.items():
            if not hasattr(record, name):
                setattr(record, name, tell(job) if job else None)
        return True


# A line that is logged during the request for the attempt must not request it again.
_is_asking: ContextVar[bool] = ContextVar("flask_backend.logs.is_asking", default=False)


def _attempt_of(job: CurrentJob) -> int | None:
    if _is_asking.get():
        return None
    token = _is_asking.set(True)
    try:
        return job.attempt_for_logs()
    finally:
        _is_asking.reset(token)


_JOB_FIELDS: dict[str, Callable[[CurrentJob], str | int | None]] = {
    "task": lambda job: job.endpoint,
    "job_id": lambda job: job.id,
    "attempt": _attempt_of,
    "queue": lambda job: job.queue,
}


# The beginning of a line that looks like a record of FORMAT: the text of an exception may come from a job.
_LIKE_A_RECORD = re.compile(r"^(?=\d{4}-\d\d-\d\d )", re.MULTILINE)


class TextFormatter(logging.Formatter):
    """A line for people, which ends with its job: ``... hello world [hello job 12 attempt 2]``."""

    def __init__(self, line: str = FORMAT) -> None:
        super().__init__(line)

    def format(self, record: logging.LogRecord) -> str:
        line, end, more = visible_lines(super().format(record)).partition("\n")
        return line + end + _LIKE_A_RECORD.sub("  ", more)

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  # logging's name; a traceback follows
        line = super().formatMessage(record) + _job_of(record)
        if _is_ours(record):
            return visible(line)
        return line.replace("\n", "\n  ")  # an app's message may have several lines, which must not look like records

    def formatException(self, ei: _ExcInfo) -> str:  # noqa: N802  # logging's name
        return _told_exception(ei)


def _job_of(record: logging.LogRecord) -> str:
    task, job_id, attempt = (getattr(record, name, None) for name in ("task", "job_id", "attempt"))
    if task is None or job_id is None or _is_ours(record):  # our own messages name the job
        return ""
    return f" [{task} job {job_id}{'' if attempt is None else f' attempt {attempt}'}]"


def _is_ours(record: logging.LogRecord) -> bool:
    return record.name.startswith("flask_backend.")


def _told_exception(exc_info: _ExcInfo) -> str:
    _, error, tb = exc_info
    return "" if error is None else traceback_of(error, tb)


class JsonFormatter(logging.Formatter):
    """A line for programs: one JSON object, with all fields of ``extra=``.

    A value that JSON cannot carry is replaced by its ``repr``. A name that is already used gets the prefix ``extra_``.
    """

    def format(self, record: logging.LogRecord) -> str:
        given = {name: value for name, value in record.__dict__.items() if name not in _OF_EVERY_RECORD}
        told: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")[:-6] + "Z",
            "level": record.levelname,
            "logger": record.name,
            "message": _message(record),
            "pid": record.process,
        }
        told |= {name: value for name in _JOB_FIELDS if (value := given.pop(name, None)) is not None}
        if record.exc_info and record.exc_info[0]:
            told["exception"] = record.exc_text or _told_exception(record.exc_info)
        if record.stack_info:
            told["stack"] = self.formatStack(record.stack_info)
        told |= {f"extra_{name}" if name in told else str(name): value for name, value in given.items()}
        line = ", ".join(f"{_encoder.encode(name)}: {_encode(value)}" for name, value in told.items())
        return json_visible(f"{{{line}}}")


_OF_EVERY_RECORD = {*logging.makeLogRecord({}).__dict__, "message", "asctime"}


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except Exception as error:  # arguments that do not fit, or whose own code raises: log a line anyway
        return f"{_repr(record.msg)} cannot be formatted with {_repr(record.args)}: {_repr(error)}"


def _encode(value: object) -> str:
    try:
        return _encoder.encode(value)
    except Exception:  # a cycle, NaN, keys that are not strings, and any exception of a value's own code
        return _encoder.encode(_repr(value))


def _repr(value: object) -> str:
    try:
        return repr(value)
    except Exception:  # its own code, which may do anything
        return f"({type(value).__name__}, whose repr() fails)"


_encoder = json.JSONEncoder(ensure_ascii=False, allow_nan=False, default=_repr)
