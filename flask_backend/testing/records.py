"""The records of jobs for tests."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from flask_backend.errors import MessageDecodeError
from flask_backend.inprocess.memory import Put
from flask_backend.job import Job, JobControl
from flask_backend.message import Message, cut, decode, decode_json, expires_at, scheduled_at, show_call
from flask_backend.registry import Handlers
from flask_backend.stories import Story

_MAX_SHOWN = 200  # characters of a call in a failure message


@dataclass(frozen=True, slots=True)
class Scheduled:
    """A scheduled call, or a message sent, as it arrives: encoded to JSON and decoded again.

    A call has ``endpoint``, ``args`` and ``kwargs``; a message to a receiver or another system has no ``endpoint``, but
    ``message``. ``delay`` and ``ttr`` are in seconds, and so is ``expires``, from ``at`` on, or None; ``at`` is when it
    was scheduled, in seconds since the epoch.
    ``job`` is the caller's handle: its ``state()`` returns the current state.
    """

    queue: str
    endpoint: str | None
    args: list[Any]
    kwargs: dict[str, Any]
    message: Any
    delay: int
    priority: int
    ttr: int
    at: float
    job: Job
    expires: float | None = None

    def __str__(self) -> str:
        label, args = ("message", [self.message]) if self.endpoint is None else (self.endpoint, self.args)
        return f"{cut(show_call(label, args, self.kwargs), _MAX_SHOWN)} on {self.queue}, delay={self.delay}"


@dataclass(frozen=True, slots=True)
class Ran:
    """One attempt at a job: its number, from 1, and its exception, a failure or a decision of the task, if any."""

    scheduled: Scheduled
    attempt: int
    error: BaseException | None


@dataclass(frozen=True, slots=True)
class Buried:
    """A buried job, and its story as a real broker stores it."""

    scheduled: Scheduled
    note: Story


def tell(put: Put, handlers: Handlers | None, control: JobControl) -> Scheduled:
    """Return the record of a job; ``handlers`` are the ones of its queue, if registered."""
    call = _read_call(put.body) if handlers is not None and handlers.tasks else None
    expires = expires_at(call.headers) if call else None
    at = scheduled_at(call.headers) if call else None
    return Scheduled(
        queue=put.queue,
        endpoint=call.endpoint if call else None,
        args=list(call.args) if call else [],
        kwargs=dict(call.kwargs) if call else {},
        message=None if call else decode_json(put.body),
        delay=put.options.delay_s,
        priority=put.options.priority,
        ttr=put.options.ttr_s,
        at=put.at,
        job=Job(put.queue, put.id, call.headers.get("id") if call else None, control.uri, control),
        expires=None if expires is None else round(expires - (at or put.at), 1),
    )


def _read_call(body: bytes) -> Message | None:
    try:
        return decode(body)
    except MessageDecodeError:
        return None
