"""From the body of a job to a finished call."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

from flask import Flask

from .errors import UnknownEndpointError
from .extension import Handler, Handlers
from .message import decode, decode_json, show_call
from .retry import Retry


@dataclass(frozen=True, slots=True)
class Call:
    """What a job asks for. ``label`` names it in logs and process titles."""

    label: str
    function: Callable[..., Any]
    args: Sequence[Any] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict[str, Any])
    headers: Mapping[str, Any] = field(default_factory=dict[str, Any])
    time_limit_s: float | None = None
    retry: Retry | None = None

    def __str__(self) -> str:
        return show_call(self.label, self.args, self.kwargs)


def read_call(handlers: Handlers, body: bytes) -> Call:
    """Find what to call; raise :exc:`MessageDecodeError` for what can never succeed.

    The call of a task that this version of the app lacks raises :exc:`UnknownEndpointError` when it is run, and so is
    tried again: a newer version may have it.
    """
    if handlers.receiver is not None:
        receiver = handlers.receiver
        args = [decode_json(body)]
        return Call(receiver.name, receiver.function, args, time_limit_s=receiver.time_limit_s, retry=receiver.retry)
    message = decode(body)
    task = handlers.tasks.get(message.endpoint) or _lacking(handlers, message.endpoint)
    return Call(task.name, task.function, message.args, message.kwargs, message.headers, task.time_limit_s, task.retry)


def _lacking(handlers: Handlers, endpoint: str) -> Handler:
    def fail(*_args: Any, **_kwargs: Any) -> NoReturn:
        raise UnknownEndpointError(
            f"queue {handlers.queue!r} has no task {endpoint!r} in this version of the app; "
            f"it has {', '.join(sorted(handlers.tasks))}"
        )

    return Handler(endpoint, fail)


def run_call(app: Flask, call: Call) -> None:
    """Call the function in an app context of its own; ``async`` functions too, if ``flask[async]`` is installed."""
    with app.app_context():
        app.ensure_sync(call.function)(*call.args, **call.kwargs)


def run_hooks(app: Flask, handlers: Handlers) -> None:
    """Call the queue's hooks, each in an app context of its own."""
    for hook in handlers.hooks:
        run_call(app, Call(hook.__name__, hook))
