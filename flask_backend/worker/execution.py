"""From the body of a job to a finished call."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn
from urllib.parse import SplitResult

from flask import Flask

from flask_backend.config import BASE_URL_KEY
from flask_backend.current import job_being_run
from flask_backend.errors import UnknownEndpointError
from flask_backend.functions import may_be_async, parameters_of
from flask_backend.masking import Mask
from flask_backend.message import decode, decode_json, show_call
from flask_backend.middleware import compose
from flask_backend.registry import Handler, Handlers
from flask_backend.retry import Retry
from flask_backend.visible import MAX_NAME, listed, visible

from .event_loop import EventLoop
from .results import finish


@dataclass(slots=True)
class Call:
    """The call that a job contains. Not frozen: one is made for every job, and frozen ones take twice as long."""

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

    def show(self, mask: Mask) -> str:
        """Return the call as a person would write it, without secret values."""
        args = mask.positional(self.args, parameters_of(self.handler.function))
        return show_call(self.label, args, mask.named(self.kwargs))


def read_call(handlers: Handlers, body: bytes) -> Call:
    """Return the call in the body of a job; raise :exc:`MessageDecodeError` if it can never succeed.

    If this version of the app lacks the task, running the call raises :exc:`UnknownEndpointError`, so that the job is
    retried: a newer version may have the task.
    """
    if handlers.receiver is not None:
        return Call(handlers.receiver, [decode_json(body)])
    message = decode(body)
    handler = handlers.tasks.get(message.endpoint) or _lacking(handlers, message.endpoint)
    return Call(handler, message.args, message.kwargs, message.headers)


def _lacking(handlers: Handlers, endpoint: str) -> Handler:
    """Return a stand-in for a missing task. Its name is made safe to show: any producer may have chosen it."""
    name = visible(endpoint, MAX_NAME)

    def fail(*_args: Any, **_kwargs: Any) -> NoReturn:
        raise UnknownEndpointError(
            f"queue {handlers.queue!r} has no task '{name}' in this version of the app; "
            f"it has {listed(sorted(handlers.tasks))}"
        )

    return Handler(name, fail)


class Runner:
    """Calls the functions of one queue, each in its own app context; asynchronous ones run in the event loop.

    An app that overrides ``ensure_sync`` or ``async_to_sync`` has its own way to run ``async`` functions.
    """

    def __init__(self, app: Flask, handlers: Handlers, event_loop: EventLoop, base_url: SplitResult | None) -> None:
        self._app = app
        self._url_adapter = base_url and app.url_map.bind(
            base_url.netloc, script_name=base_url.path or "/", url_scheme=base_url.scheme
        )
        self.hooks = handlers.hooks
        self.event_loop = event_loop
        has_own_way = _is_overridden(app.ensure_sync, Flask.ensure_sync)
        has_own_loop = _is_overridden(app.async_to_sync, Flask.async_to_sync)
        self._ensure_sync = app.ensure_sync if has_own_way or has_own_loop else None
        self._wait_for = app.async_to_sync(_wait_for) if has_own_loop else event_loop.run
        self._call_with_middleware = compose(handlers.middleware, self._call, lambda _call: job_being_run.get())

    def run(self, call: Call) -> None:
        self._run(call, self._call_with_middleware)

    def _call(self, call: Call) -> Any:
        function = call.handler.function
        sync = function if self._ensure_sync is None else self._ensure_sync(function)
        result = sync(*call.args, **call.kwargs)
        return result if result is None else finish(call.label, function, result, self._wait_for)

    def _run(self, call: Call, run: Callable[[Call], Any]) -> None:
        context = self._app.app_context()
        if self._url_adapter is not None:
            context.url_adapter = self._url_adapter
        with context:
            try:
                run(call)
            except RuntimeError as error:
                if type(error) is RuntimeError and "without 'SERVER_NAME'" in str(error):
                    error.add_note(f"In tasks, receivers and hooks, url_for needs the setting {BASE_URL_KEY}.")
                raise

    def run_hooks(self) -> None:
        for hook in self.hooks:
            self.run_hook(hook)

    def run_hook(self, hook: Callable[[], object]) -> None:
        self._run(Call(Handler(getattr(hook, "__name__", repr(hook)), hook)), self._call)


async def _wait_for(awaitable: Awaitable[Any]) -> Any:
    return await awaitable


def _is_overridden(method: Callable[..., Any], original: Callable[..., Any]) -> bool:
    return getattr(method, "__func__", None) is not original


def prepare(handlers: Handlers) -> None:
    """Import the modules that the queue's functions need, once before the workers are forked."""
    functions = [handler.function for handler in (handlers.receiver, *handlers.tasks.values()) if handler]
    if any(map(may_be_async, (*functions, *handlers.hooks))):
        EventLoop.prepare()
