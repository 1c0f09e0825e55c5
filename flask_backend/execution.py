"""From the body of a job to a finished call."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from flask import Flask

from .errors import UnknownEndpointError
from .extension import Handlers
from .message import decode, decode_json


@dataclass(frozen=True, slots=True)
class Call:
    """What a job asks for. ``label`` names it in logs and process titles."""

    label: str
    function: Callable[..., Any]
    args: Sequence[Any] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict[str, Any])
    time_limit_s: float | None = None


def read_call(handlers: Handlers, body: bytes) -> Call:
    """Find what to call.

    Raises :exc:`MessageDecodeError` for what can never succeed, and :exc:`UnknownEndpointError` for a task that this
    version of the app lacks: a newer one may have it.
    """
    if handlers.receiver is not None:
        receiver = handlers.receiver
        return Call(receiver.name, receiver.function, [decode_json(body)], time_limit_s=receiver.time_limit_s)
    message = decode(body)
    task = handlers.tasks.get(message.endpoint)
    if task is None:
        raise UnknownEndpointError(
            f"queue {handlers.queue!r} has no task {message.endpoint!r} in this version of the app; "
            f"it has {', '.join(sorted(handlers.tasks))}"
        )
    return Call(task.name, task.function, message.args, message.kwargs, task.time_limit_s)


def run_call(app: Flask, call: Call) -> None:
    """Call the function in an app context of its own; ``async`` functions too, if ``flask[async]`` is installed."""
    with app.app_context():
        app.ensure_sync(call.function)(*call.args, **call.kwargs)


def run_hooks(app: Flask, handlers: Handlers) -> None:
    """Call the queue's hooks, each in an app context of its own."""
    for hook in handlers.hooks:
        run_call(app, Call(hook.__name__, hook))
