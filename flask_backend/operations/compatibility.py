"""Whether this version of the app can run a waiting job: it has the endpoint, which takes the arguments. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from flask_backend.errors import MessageDecodeError, TaskArgumentsError
from flask_backend.functions import bind, signature_of
from flask_backend.message import Message, decode, decode_json
from flask_backend.registry import Handlers
from flask_backend.tracebacks import MAX_MESSAGE
from flask_backend.visible import MAX_NAME, visible

# The number of positional arguments of a call that are shown one by one.
_SHOWN_ARGS = 5


class Fault(StrEnum):
    """The kind of incompatibility."""

    UNKNOWN_ENDPOINT = "unknown-endpoint"
    BAD_ARGUMENTS = "bad-arguments"
    BAD_BODY = "bad-body"


@dataclass(frozen=True, slots=True)
class Incompatibility:
    """Why this version of the app cannot run a job.

    ``signature`` is its call without values, the same for all calls of that shape, if the body is a call.
    """

    fault: Fault
    why: str
    signature: str | None = None


def check_compatibility(handlers: Handlers, body: bytes) -> Incompatibility | None:
    """Return why this version of the app cannot run a job, if so.

    A receiver accepts any JSON.
    """
    try:
        if handlers.receiver is not None:
            decode_json(body)
            return None
        message = decode(body)
    except MessageDecodeError as error:
        return Incompatibility(Fault.BAD_BODY, str(error))
    task = handlers.tasks.get(message.endpoint)
    if task is None:
        name = visible(message.endpoint, MAX_NAME)
        why = f"queue {handlers.queue!r} has no task '{name}' in this version of the app"
        return Incompatibility(Fault.UNKNOWN_ENDPOINT, why, f"{name}(...)")
    try:
        bind(task.name, signature_of(task.function), message.args, message.kwargs)
    except TaskArgumentsError as error:
        return Incompatibility(
            Fault.BAD_ARGUMENTS, visible(str(error), MAX_MESSAGE), visible(_shape(message), MAX_MESSAGE)
        )
    return None


def _shape(message: Message) -> str:
    unnamed = ["..."] * len(message.args)
    if len(unnamed) > _SHOWN_ARGS:
        unnamed = [*unnamed[:_SHOWN_ARGS], f"{len(message.args) - _SHOWN_ARGS} more"]
    return f"{message.endpoint}({', '.join([*unnamed, *(f'{name}=...' for name in message.kwargs)])})"
