"""Where log lines go and how they look, for processes that our commands start.

``flask_backend.task`` is the logger that tells what becomes of tasks: failures with their traceback, retries, burials,
jobs that crashed their worker. Its name stays, so that error trackers and filters can rely on it.
"""

from __future__ import annotations

import json
import logging
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

# As logging has it in a record.
_ExcInfo = tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]

LogFormat = Literal["text", "json"]


def configure(app: Flask, log_format: LogFormat = "text") -> None:
    """Log to stderr from level INFO, unless the app has configured the root logger: then touch nothing.

    Where systemd has connected stderr with the journal, records go there whole, each with its priority.

    What no handler of the app takes goes to stderr in any case, for instance if the only one raises.

    Such an app gets the fields of the job by a filter of its own handlers, see :class:`JobContext`, and may use
    :class:`JsonFormatter` as well.
    """
    formatter = JsonFormatter() if log_format == "json" else TextFormatter()
    delivery.fallback = _handler(streams.open_stderr(), formatter)
    root = logging.getLogger()
    if root.handlers:
        return
    streams.word = lambda text: f"{formatter.format(_warning(text))}\n"
    if log_format == "json" and (reconfigure := getattr(sys.stderr, "reconfigure", None)):
        reconfigure(encoding="utf-8")  # as JSON is, whatever the locale
    root.addHandler(_journal(log_format) if journal.is_stderr() else _handler(streams.find_stderr(), formatter))
    root.setLevel(logging.INFO)
    # An app that logged while it was imported has Flask's own handler by now, and would say everything twice.
    app.logger.removeHandler(default_handler)


def _handler(stream: TextIO, formatter: logging.Formatter) -> logging.Handler:
    handler = logging.StreamHandler(stream)
    handler.addFilter(JobContext())
    handler.setFormatter(formatter)
    return handler


def _journal(log_format: LogFormat) -> logging.Handler:
    """Return a handler whose records have no time, level and pid in their text: the journal has these itself."""
    handler = journal.JournalHandler(streams.open_stderr())
    handler.addFilter(JobContext())
    handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter(JOURNAL_FORMAT))
    return handler


def _warning(text: str) -> logging.LogRecord:
    return logging.LogRecord("flask_backend.streams", logging.WARNING, __file__, 0, text, None, None)


class JobContext(logging.Filter):
    """Says of which job a log line comes: sets ``task``, ``job_id``, ``attempt`` and ``queue`` of each record.

    All are None outside of a job, and ``attempt`` also when the broker does not tell it; a field that ``extra=`` has
    set stays. The attempt takes one exchange with the broker, at the first line of a job. An app that configures
    logging itself adds this filter to its handlers, since a logger's own filters do not see what comes from others::

        logging.config.dictConfig({
            "version": 1,
            "disable_existing_loggers": False,  # those made before, by other packages
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
                setattr(record, name, None if job is None else tell(job))
        return True


# What is logged while the broker is asked for the attempt must not ask again.
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


class TextFormatter(logging.Formatter):
    """A line for people, which ends with the job that it comes from: ``... hello world [hello job 12 attempt 2]``."""

    def __init__(self, line: str = FORMAT) -> None:
        super().__init__(line)

    def format(self, record: logging.LogRecord) -> str:
        return visible_lines(super().format(record))

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  # logging's name; a traceback comes after
        line = super().formatMessage(record) + _job_of(record)
        if _is_ours(record):
            return visible(line)
        return line.replace("\n", "\n  ")  # an app's message may have several lines; none looks like a record

    def formatException(self, ei: _ExcInfo) -> str:  # noqa: N802  # logging's name
        return _told_exception(ei)


def _job_of(record: logging.LogRecord) -> str:
    task, job_id, attempt = (getattr(record, name, None) for name in ("task", "job_id", "attempt"))
    if task is None or job_id is None or _is_ours(record):  # ours name the job in their words
        return ""
    return f" [{task} job {job_id}{'' if attempt is None else f' attempt {attempt}'}]"


def _is_ours(record: logging.LogRecord) -> bool:
    return record.name.startswith("flask_backend.")


def _told_exception(exc_info: _ExcInfo) -> str:
    _, error, tb = exc_info
    return "" if error is None else traceback_of(error, tb)


class JsonFormatter(logging.Formatter):
    """A line for programs: one JSON object, with all that ``extra=`` has given.

    A value that JSON cannot carry is told by its ``repr``. A name that is taken gets ``extra_`` in front.
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
    except Exception as error:  # arguments that do not fit, or whose own code fails: better than no line
        return f"{_repr(record.msg)} cannot be formatted with {_repr(record.args)}: {_repr(error)}"


def _encode(value: object) -> str:
    try:
        return _encoder.encode(value)
    except Exception:  # a cycle, NaN, keys that are no text, and whatever a value's own code raises
        return _encoder.encode(_repr(value))


def _repr(value: object) -> str:
    try:
        return repr(value)
    except Exception:  # its own code, which may do anything
        return f"({type(value).__name__}, whose repr() fails)"


_encoder = json.JSONEncoder(ensure_ascii=False, allow_nan=False, default=_repr)
