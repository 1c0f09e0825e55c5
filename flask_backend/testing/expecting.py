"""Finding an expected call among the scheduled ones, and the message if it is missing."""

from __future__ import annotations

import difflib
import pprint
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from flask_backend.durations import exact_seconds, whole_seconds
from flask_backend.errors import TaskArgumentsError
from flask_backend.functions import bind
from flask_backend.message import decode, decode_json, encode_json, show_call
from flask_backend.options import Options
from flask_backend.task import Task

from .records import Scheduled

Target = Task[..., Any] | str

_OPTIONS = ("delay", "priority", "ttr", "expires")
_MAX_LISTED = 10
_MOMENT_S = 0.5


@dataclass(frozen=True, slots=True)
class Expected:
    """A call of a task, or a message on a queue, with the options to compare.

    ``values`` maps the names of the parameters to the arguments, including defaults, or "message" to the message.
    Without ``values``, any arguments match.
    """

    target: Target
    shown: str
    values: Mapping[str, Any] | None
    options: Mapping[str, Any]

    @property
    def queue(self) -> str:
        return self.target if isinstance(self.target, str) else self.target.queue

    def covers(self, record: Scheduled) -> bool:
        values = self.values_of(record)
        return (
            values is not None
            and (self.values is None or values == self.values)
            and all(_is_as_wanted(record, name, wanted) for name, wanted in self.options.items())
        )

    def values_of(self, record: Scheduled) -> Mapping[str, Any] | None:
        """Return a record's arguments by name, or its message, if it is for this target."""
        if record.queue != self.queue:
            return None
        if isinstance(self.target, str):
            return {"message": record.message} if record.endpoint is None else None
        if record.endpoint != self.target.endpoint:
            return None
        try:
            return _bind(self.target, record.args, record.kwargs)
        except TaskArgumentsError:  # scheduled by other code than this task's
            return {"args": record.args, "kwargs": record.kwargs}

    def __str__(self) -> str:
        options = "".join(f", {name}={value!r}" for name, value in self.options.items())
        return f"{self.shown} on {self.queue}{options}"


def expect(target: Target, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Expected:
    """Separate arguments from options; a name that is both an option and a parameter means the parameter.

    Raises the same exceptions as scheduling such a call.
    """
    own = () if isinstance(target, str) else target.__signature__.parameters
    options = {name: value for name, value in kwargs.items() if name in _OPTIONS and name not in own}
    Options(**options)
    arguments = {name: value for name, value in kwargs.items() if name not in options}
    # JSON changes types, for example tuples to lists: convert the expected values in the same way.
    if not isinstance(target, str):
        sent = decode(target.encode(tuple(args), arguments, ""))
        shown = show_call(target.endpoint, sent.args, sent.kwargs)
        return Expected(target, shown, _bind(target, sent.args, sent.kwargs), options)
    if len(args) != 1 or arguments:
        raise TypeError(f"expected one message for {target!r}, and options by name: {', '.join(_OPTIONS)}")
    message = decode_json(encode_json(args[0]))
    return Expected(target, show_call("message", [message], {}), {"message": message}, options)


def expect_any(target: Target) -> Expected:
    """Expect any call of a task, or any message on a queue."""
    return Expected(target, "message(...)" if isinstance(target, str) else f"{target.endpoint}(...)", None, {})


def check_target(target: object) -> None:
    if not isinstance(target, Task | str):
        raise TypeError(f"expected a task, or the name of a queue for a message on it; got {target!r}")


def tell_missing(expected: Expected, records: Sequence[Scheduled]) -> str:
    """Return the message that a call was not scheduled, with the nearest one's differences and all scheduled calls."""
    if not records:
        return f"{expected} was not scheduled; nothing was"
    told = [f"{expected} was not scheduled."]
    wanted = _lines(expected.values or {}, expected.options)
    nearest = max(
        (
            _lines(values, {name: getattr(record, name) for name in expected.options})
            for record in records
            if (values := expected.values_of(record)) is not None
        ),
        key=lambda lines: difflib.SequenceMatcher(None, "\n".join(wanted), "\n".join(lines)).ratio(),
        default=None,
    )
    if nearest is not None:
        told.append("The nearest (- expected, + scheduled):")
        told += [f"  {line.rstrip()}" for line in difflib.ndiff(wanted, nearest)]
    return "\n".join([*told, tell_all(records)])


def tell_unwanted(expected: Expected, found: Sequence[Scheduled]) -> str:
    return f"{expected} was scheduled, and should not have been.\n{tell_all(found)}"


def tell_all(records: Sequence[Scheduled]) -> str:
    listed = [f"  {record}" for record in records[:_MAX_LISTED]]
    more = [f"  and {len(records) - _MAX_LISTED} more"] if len(records) > _MAX_LISTED else []
    return "\n".join(["Scheduled:", *listed, *more])


def _bind(task: Task[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Mapping[str, Any]:
    bound = bind(task.endpoint, task.__signature__, args, kwargs)
    bound.apply_defaults()
    return bound.arguments


def _is_as_wanted(record: Scheduled, name: str, wanted: Any) -> bool:
    if name == "expires" and (wanted is None or record.expires is None):
        return wanted is record.expires
    actual: float = getattr(record, name)
    if isinstance(wanted, datetime):
        # Both are rounded to seconds, a moment apart.
        return abs(max(0.0, wanted.timestamp() - record.at) - actual) <= 1
    if name == "expires":  # not rounded, and a moment passes between the two times that it is computed from
        return abs(exact_seconds(name, wanted) - actual) < _MOMENT_S
    return actual == (wanted if name == "priority" else whole_seconds(name, wanted))


def _lines(values: Mapping[str, Any], options: Mapping[str, Any]) -> list[str]:
    return [
        line
        for name, value in (*values.items(), *options.items())
        for line in f"{name} = {pprint.pformat(value, sort_dicts=False)}".splitlines()
    ]
