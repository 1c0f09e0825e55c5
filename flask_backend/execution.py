"""From the body of a job to a finished call."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, NoReturn

from flask import Flask

from .errors import UnknownEndpointError
from .extension import Handler, Handlers
from .message import decode, decode_json, show_call
from .retry import Retry


@dataclass(slots=True)
class Call:
    """What a job asks for. Not frozen: one is made for every job, which would take twice the time."""

    handler: Handler
    args: Sequence[Any] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict[str, Any])
    headers: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @property
    def label(self) -> str:
        """Its name in logs and process titles."""
        return self.handler.name

    @property
    def retry(self) -> Retry | None:
        return self.handler.retry

    def __str__(self) -> str:
        return show_call(self.label, self.args, self.kwargs)


def read_call(handlers: Handlers, body: bytes) -> Call:
    """Find what to call; raise :exc:`MessageDecodeError` for what can never succeed.

    The call of a task that this version of the app lacks raises :exc:`UnknownEndpointError` when it is run, and so is
    tried again: a newer version may have it.
    """
    if handlers.receiver is not None:
        return Call(handlers.receiver, [decode_json(body)])
    message = decode(body)
    handler = handlers.tasks.get(message.endpoint) or _lacking(handlers, message.endpoint)
    return Call(handler, message.args, message.kwargs, message.headers)


def _lacking(handlers: Handlers, endpoint: str) -> Handler:
    def fail(*_args: Any, **_kwargs: Any) -> NoReturn:
        raise UnknownEndpointError(
            f"queue {handlers.queue!r} has no task {endpoint!r} in this version of the app; "
            f"it has {', '.join(sorted(handlers.tasks))}"
        )

    return Handler(endpoint, fail)


class Runner:
    """Calls the functions of one queue, each in an app context of its own.

    ``async`` functions too, if ``flask[async]`` is installed: what they need is found out once, not for every job.
    """

    def __init__(self, app: Flask, handlers: Handlers) -> None:
        self._app = app
        self._functions: dict[str, Callable[..., Any]] = {}
        for handler in [handlers.receiver] if handlers.receiver else handlers.tasks.values():
            with suppress(RuntimeError):  # it needs flask[async], which is not there: its jobs will fail, and say so
                self._functions[handler.name] = app.ensure_sync(handler.function)

    def run(self, call: Call) -> None:
        function = self._functions.get(call.handler.name) or self._app.ensure_sync(call.handler.function)
        with self._app.app_context():
            function(*call.args, **call.kwargs)


def run_hooks(app: Flask, handlers: Handlers) -> None:
    """Call the queue's hooks, each in an app context of its own."""
    for hook in handlers.hooks:
        with app.app_context():
            app.ensure_sync(hook)()
