"""What a test sees of the jobs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from flask_backend.errors import MessageDecodeError
from flask_backend.inprocess.memory import Put
from flask_backend.job import Job, JobControl
from flask_backend.message import Message, cut, decode, decode_json, show_call
from flask_backend.registry import Handlers
from flask_backend.stories import Story

_MAX_SHOWN = 200  # characters of a call in a failure's list


@dataclass(frozen=True, slots=True)
class Scheduled:
    """A call that was scheduled, or a message that was sent, as it arrives: after its way through JSON.

    A call has ``endpoint``, ``args`` and ``kwargs``; what is for a receiver or another system has no ``endpoint``, and
    its ``message``. ``delay`` and ``ttr`` are in seconds; ``at`` is when it was scheduled, in seconds since the epoch.
    ``job`` is what the caller got: its ``state()`` tells where it is now.
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

    def __str__(self) -> str:
        label, args = ("message", [self.message]) if self.endpoint is None else (self.endpoint, self.args)
        return f"{cut(show_call(label, args, self.kwargs), _MAX_SHOWN)} on {self.queue}, delay={self.delay}"


@dataclass(frozen=True, slots=True)
class Ran:
    """One attempt at a job: which, from 1, and what it raised, a failure or what the task has decided itself."""

    scheduled: Scheduled
    attempt: int
    error: BaseException | None


@dataclass(frozen=True, slots=True)
class Buried:
    """A buried job, and its story as it is kept on a real broker."""

    scheduled: Scheduled
    note: Story


def tell(put: Put, handlers: Handlers | None, control: JobControl) -> Scheduled:
    """Read what was put; ``handlers`` are those of its queue, if anything is registered for it."""
    call = _read_call(put.body) if handlers is not None and handlers.tasks else None
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
        job=Job(put.queue, put.id, call.headers.get("id") if call else None, control),
    )


def _read_call(body: bytes) -> Message | None:
    try:
        return decode(body)
    except MessageDecodeError:
        return None
