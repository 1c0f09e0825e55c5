"""The story of a buried job: a note, in JSON, that the broker stores beside the job.

The job itself stays unchanged, so that a kick restores it completely, and Beanstalkd cannot attach data to a job. So
the note is a job of its own, in the queue's failures tube. It is valid as long as its job is buried: a reader deletes
notes whose job was kicked or deleted by other means.
"""

from __future__ import annotations

import json
import os
import platform
import signal
import time
from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import asdict, dataclass, replace
from typing import Any, cast

from .errors import MessageDecodeError
from .message import END_OF_DATES, decode_json
from .tracebacks import in_users_code, message_of, name_of, traceback_of
from .visible import MAX_NAME, visible

# The TTR of a note: notes are reserved only for a moment, to read them; a reader that hangs loses them after this long.
NOTE_TTR_S = 60
# The number of complete notes per queue. The broker keeps all in memory: further ones lack traceback and call, except
# the first of each endpoint and kind that a worker writes in WHOLE_AGAIN_S seconds, so that a new one can be read.
MAX_WHOLE = 1000
WHOLE_AGAIN_S = 60.0

_SIGNALS: Mapping[object, str] = {each.value: each.name for each in signal.Signals}

# In characters. They keep every note below the maximum size of a job.
_MAX_TEXT = 1000
_MAX_TRACEBACK = 6000


@dataclass(frozen=True, slots=True)
class Story:
    """Why a job is buried. Times are in seconds since the epoch.

    ``call`` is the endpoint with its arguments, cut to a thousand characters. ``allowed`` is the number of attempts
    that the retry policy allows, if limited. ``death`` has the facts about a worker that died while it ran the job, if
    any: signal, memory, times. After ``expires_at`` a retry is deleted without running.
    """

    job: int
    queue: str
    reason: str
    buried_at: float
    host: str
    pid: int
    endpoint: str | None = None
    call: str | None = None
    exception: str | None = None
    message: str | None = None
    traceback: str | None = None
    attempts: int | None = None
    allowed: int | None = None
    scheduled_at: float | None = None
    expires_at: float | None = None
    ran_s: float | None = None
    death: Mapping[str, Any] | None = None

    @property
    def kind(self) -> str:
        """The key for grouping, with the endpoint: the exception, the signal, or the reason."""
        if self.exception is not None:
            return self.exception
        if self.death is not None:
            number = self.death.get("exit_signal")
            if not number:
                return f"exit {self.death.get('exit_status')}"
            return _SIGNALS[number] if isinstance(number, int) and number in _SIGNALS else f"signal {number}"
        return self.reason

    @property
    def priority(self) -> int:
        """The priority of the note as a job: the newest first."""
        return max(0, 2**32 - 1 - int(self.buried_at))

    def shortened(self) -> Story:
        return replace(self, traceback=None, call=None)

    def encode(self) -> bytes:
        told = {name: value for name, value in asdict(self).items() if value is not None}
        if self.traceback is not None:
            told["traceback"] = told.pop("traceback")  # last: who reads a thousand notes leaves it out
        # Text from the wire, or from a task.
        for name, limit in (("endpoint", MAX_NAME), ("call", _MAX_TEXT), ("reason", _MAX_TEXT)):
            if name in told:
                told[name] = visible(told[name], limit)
        return json.dumps(told, ensure_ascii=False, separators=(",", ":")).encode(errors="backslashreplace")

    @classmethod
    def decode(cls, body: bytes) -> Story:
        """Read a note; raise :exc:`MessageDecodeError` for any other job: other programs can put jobs there too.

        Fields of later versions are ignored.
        """
        value = decode_json(body)
        if not isinstance(value, dict):
            raise MessageDecodeError("a note must be a JSON object")
        told = _checked(cast("dict[str, Any]", value), _CHECKS, _NEEDED)
        if told.get("death") is not None:
            told["death"] = _checked(told["death"], _CHECKS_OF_DEATH)
        return cls(**told)


_MAX_NUMBER = 2**128  # max_retries may be sys.maxsize, and is multiplied by the number of burials


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_number(value: object) -> bool:
    return type(value) is int and 0 <= value < _MAX_NUMBER


def _is_seconds(value: object) -> bool:
    return type(value) in (int, float) and 0 <= cast("float", value) < END_OF_DATES  # False for NaN


def _may_be(check: Callable[[object], bool]) -> Callable[[object], bool]:
    return lambda value: value is None or check(value)


def _checked(
    value: dict[str, Any], checks: Mapping[str, Callable[[object], bool]], needed: AbstractSet[str] = frozenset()
) -> dict[str, Any]:
    """Return the fields that have a check; raise :exc:`MessageDecodeError` if one does not pass."""
    told = {name: each for name, each in value.items() if name in checks}
    for name, each in told.items():
        if not checks[name](each):
            raise MessageDecodeError(f"{name!r} of a note has the wrong type or is out of range")
    if not told.keys() >= needed:
        raise MessageDecodeError(f"a note lacks {', '.join(sorted(needed - told.keys()))}")
    return told


_CHECKS: Mapping[str, Callable[[object], bool]] = {
    "job": lambda value: type(value) is int and 0 < value < 2**64,
    "buried_at": lambda value: _is_seconds(value) and value != 0,
    "pid": _is_number,
    **dict.fromkeys(("queue", "reason", "host"), _is_text),
    **dict.fromkeys(("endpoint", "call", "exception", "message", "traceback"), _may_be(_is_text)),
    **dict.fromkeys(("attempts", "allowed"), _may_be(_is_number)),
    **dict.fromkeys(("scheduled_at", "expires_at", "ran_s"), _may_be(_is_seconds)),
    "death": _may_be(lambda value: isinstance(value, dict)),
}
_NEEDED = {"job", "queue", "reason", "buried_at", "host", "pid"}
# As Death.as_dict returns them.
_CHECKS_OF_DEATH: Mapping[str, Callable[[object], bool]] = {
    **dict.fromkeys(("queue", "exit_kind", "task"), _may_be(_is_text)),
    **dict.fromkeys(("worker_pid", "exit_status", "exit_signal", "job_id"), _may_be(_is_number)),
    **dict.fromkeys(("max_rss_bytes", "private_bytes"), _may_be(_is_number)),
    **dict.fromkeys(("lived_s", "running_s", "user_s", "system_s"), _may_be(_is_seconds)),
}


def here_and_now() -> dict[str, Any]:
    """Return the fields of a note with the current time, host and process."""
    return {"buried_at": round(time.time(), 3), "host": platform.node(), "pid": os.getpid()}


def tell_exception(error: BaseException) -> dict[str, Any]:
    """Return the fields of a note for an exception: name, message and traceback, each of limited length."""
    return {
        "exception": name_of(error),
        "message": message_of(error),
        "traceback": traceback_of(error, in_users_code(error), _MAX_TRACEBACK),
    }
