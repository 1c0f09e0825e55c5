"""The story of a buried job: a note, in JSON, that is kept on the broker beside the job.

The job itself stays as it was put, for a kick to bring it back whole, and Beanstalkd has no room for more beside it. So
its note is a job of its own, on the queue's tube of failures. It counts as long as its job is buried: whoever sees one
whose job was kicked or deleted in some other way deletes it.
"""

from __future__ import annotations

import json
import os
import platform
import signal
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from types import NoneType
from typing import Any, cast

from .errors import MessageDecodeError
from .message import END_OF_DATES, decode_json
from .tracebacks import in_users_code, message_of, name_of, traceback_of
from .visible import MAX_NAME, visible

# Nobody reserves a note but to look at it, for an instant; the time after which one who froze in that gives it back.
NOTE_TTR_S = 60
# So many notes of a queue are whole; further ones have neither traceback nor call, for the broker keeps all in memory.
MAX_WHOLE = 1000

_SIGNALS: Mapping[object, str] = {each.value: each.name for each in signal.Signals}

# Characters: the whole note has to be small enough for a job, whatever is in it.
_MAX_TEXT = 1000
_MAX_TRACEBACK = 6000


@dataclass(frozen=True, slots=True)
class Story:
    """Why a job is buried. Times are in seconds since the epoch.

    ``call`` is the endpoint with its arguments, cut to a thousand characters. ``allowed`` is the number of attempts
    that the retry policy gave, None for no limit. ``death`` has what is known of a worker that died at the job:
    signal, memory, times; it is None for a task that failed.
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
    ran_s: float | None = None
    death: Mapping[str, Any] | None = None

    @property
    def kind(self) -> str:
        """What it is grouped by, beside the endpoint: the exception, the signal, or the reason."""
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
        # What comes from the wire, or from a task.
        for name, limit in (("endpoint", MAX_NAME), ("call", _MAX_TEXT), ("reason", _MAX_TEXT)):
            if name in told:
                told[name] = visible(told[name], limit)
        return json.dumps(told, ensure_ascii=False, separators=(",", ":")).encode(errors="backslashreplace")

    @classmethod
    def decode(cls, body: bytes) -> Story:
        """Read a note; raise :exc:`MessageDecodeError` for what is none: anybody may put anything there.

        What a later version has added is left out.
        """
        value = decode_json(body)
        if not isinstance(value, dict):
            raise MessageDecodeError("a note is a JSON object")
        told = {name: each for name, each in cast("dict[str, Any]", value).items() if name in _KINDS}
        for name, kind in _KINDS.items():
            if not isinstance(told.get(name), kind):
                raise MessageDecodeError(f"{name!r} of a note is not what it should be")
        if not 0 < told["job"] <= _MAX_ID or not 0 < told["buried_at"] < END_OF_DATES:
            raise MessageDecodeError("'job' or 'buried_at' of a note is out of range")
        return cls(**told)


_KINDS: Mapping[str, Any] = {
    "job": int,
    "buried_at": int | float,
    "pid": int,
    **dict.fromkeys(("queue", "reason", "host"), str),
    **dict.fromkeys(("endpoint", "call", "exception", "message", "traceback"), str | None),
    **dict.fromkeys(("attempts", "allowed"), int | None),
    **dict.fromkeys(("scheduled_at", "ran_s"), int | float | None),
    "death": (dict, NoneType),
}
_MAX_ID = 2**64 - 1


def here_and_now() -> dict[str, Any]:
    """Return where and when a note is written, as its fields."""
    return {"buried_at": round(time.time(), 3), "host": platform.node(), "pid": os.getpid()}


def tell_exception(error: BaseException) -> dict[str, Any]:
    """Return an exception as a note's fields: its name, message and traceback, each bounded."""
    return {
        "exception": name_of(error),
        "message": message_of(error),
        "traceback": traceback_of(error, in_users_code(error), _MAX_TRACEBACK),
    }
