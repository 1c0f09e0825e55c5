"""The extension: what is registered, and which app it belongs to. Opens no socket, starts nothing."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, ParamSpec, TypeVar

from flask import Flask, has_app_context
from flask.globals import app_ctx

from .broker import Producer
from .config import Settings
from .errors import ConfigError, MessageEncodeError, RegistrationError
from .message import encode_json
from .names import check_queue_name
from .task import Job, Task

P = ParamSpec("P")
R = TypeVar("R")
Hook = TypeVar("Hook", bound=Callable[[], Any])
Receiver = TypeVar("Receiver", bound=Callable[[Any], Any])

EXTENSION_KEY = "backend"


@dataclass(frozen=True, slots=True)
class Handler:
    """A task or a receiver: its name, what to call, and the seconds that it may take, if that is limited."""

    name: str
    function: Callable[..., Any]
    time_limit_s: float | None


@dataclass(slots=True)
class Handlers:
    """What is registered for one queue: tasks by endpoint or one receiver, and the hooks of its workers."""

    queue: str
    tasks: dict[str, Handler] = field(default_factory=dict[str, Handler])
    receiver: Handler | None = None
    hooks: list[Callable[[], Any]] = field(default_factory=list[Callable[[], Any]])

    @property
    def names(self) -> list[str]:
        """The names of all tasks, or that of the receiver."""
        return [self.receiver.name] if self.receiver else sorted(self.tasks)

    @property
    def can_work(self) -> bool:
        return bool(self.tasks) or self.receiver is not None


def check_time_limit(seconds: float | None) -> None:
    is_number = isinstance(seconds, int | float) and not isinstance(seconds, bool)
    if seconds is not None and not (is_number and 0 < seconds < float("inf")):
        raise ConfigError(f"time_limit is {seconds!r}; expected seconds, more than 0")


class Backend:
    """Background tasks of a Flask app, or of several: what is registered here is shared, connections are per app.

    ``Backend(app)``, or ``Backend()`` and ``init_app(app)`` in a factory.
    """

    def __init__(self, app: Flask | None = None) -> None:
        self._handlers: dict[str, Handlers] = {}
        self._producers: weakref.WeakKeyDictionary[Flask, Producer] = weakref.WeakKeyDictionary()
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Flask) -> None:
        """Read and check the app's settings (see :class:`flask_backend.config.Settings`). Connects to nothing.

        Raises :exc:`ConfigError` for a setting that cannot work.
        """
        if EXTENSION_KEY in app.extensions:
            raise RegistrationError(f"app {app.name!r} already has a Backend: call init_app once for each app")
        settings = Settings.from_config(app.config)
        self._producers[app] = Producer(settings)
        app.extensions[EXTENSION_KEY] = self

    def task(
        self, queue: str, endpoint: str | None = None, *, time_limit: float | None = None
    ) -> Callable[[Callable[P, R]], Task[P, R]]:
        """Make a function a task of ``queue``: calling it schedules it.

        ``endpoint`` is the task's name on the wire, by default the function's own. After ``time_limit`` seconds
        :exc:`TaskTimeout` is raised inside the task; without it the limit of the worker's command line counts, if
        there is one. Raises :exc:`RegistrationError` if the queue already has that endpoint, or has a receiver, and
        :exc:`ConfigError` for a limit that is none.
        """
        check_time_limit(time_limit)

        def decorate(function: Callable[P, R]) -> Task[P, R]:
            name = endpoint if endpoint is not None else function.__name__
            handlers = self._handlers_of(queue)
            if handlers.receiver is not None:
                raise RegistrationError(
                    f"queue {queue!r} has a receiver, {handlers.receiver.name}(), and so cannot have the task "
                    f"{name!r}: use another queue for one of them"
                )
            if name in handlers.tasks:
                raise RegistrationError(
                    f"queue {queue!r} already has a task {name!r}: give one of them another name "
                    f"with @backend.task({queue!r}, endpoint=...)"
                )
            handlers.tasks[name] = Handler(name, function, time_limit)
            return Task(self, queue, name, function)

        return decorate

    def receiver(self, queue: str, *, time_limit: float | None = None) -> Callable[[Receiver], Receiver]:
        """Have a function called with every JSON message that other systems put on ``queue``.

        ``time_limit`` is as for a task. Raises :exc:`RegistrationError` if the queue already has a receiver or tasks.
        """
        check_time_limit(time_limit)

        def decorate(function: Receiver) -> Receiver:
            handlers = self._handlers_of(queue)
            if handlers.receiver is not None or handlers.tasks:
                has = "a receiver" if handlers.receiver else f"the tasks {', '.join(handlers.tasks)}"
                raise RegistrationError(f"queue {queue!r} already has {has}: a queue has either tasks or one receiver")
            handlers.receiver = Handler(function.__name__, function, time_limit)
            return function

        return decorate

    def before_first_task(self, queue: str) -> Callable[[Hook], Hook]:
        """Have a function called once in each worker of ``queue``, in an app context, before it takes its first job."""

        def decorate(hook: Hook) -> Hook:
            self._handlers_of(queue).hooks.append(hook)
            return hook

        return decorate

    def send(self, queue: str, message: Any) -> Job:
        """Send a message, anything that JSON can carry, to an external system on the same server.

        Raises what scheduling a task raises.
        """
        check_queue_name(queue)
        try:
            body = encode_json(message)
        except MessageEncodeError as error:
            raise MessageEncodeError(f"the message for {queue!r} cannot be sent as JSON: {error}") from error
        return self.put(queue, body)

    @property
    def queues(self) -> dict[str, Handlers]:
        """The queues that workers can serve, by name."""
        return {name: handlers for name, handlers in self._handlers.items() if handlers.can_work}

    def settings_of(self, app: Flask) -> Settings:
        return self._producers[app].settings

    def put(self, queue: str, body: bytes) -> Job:
        """Put one encoded message; tasks and ``send`` come through here."""
        return Job(queue, self._producer().put(queue, body))

    def put_many(self, queue: str, bodies: Iterable[bytes]) -> list[Job]:
        return [Job(queue, id_) for id_ in self._producer().put_many(queue, bodies)]

    def _handlers_of(self, queue: str) -> Handlers:
        return self._handlers.setdefault(check_queue_name(queue), Handlers(queue))

    def _producer(self) -> Producer:
        """Return the current app's connection to its broker, or outside of a context that of the only app."""
        if has_app_context():
            app = app_ctx.app  # the app itself: current_app is a proxy
            producer = self._producers.get(app)
            if producer is None:
                raise RegistrationError(f"app {app.name!r} is not initialised: call backend.init_app(app)")
            return producer
        if len(self._producers) == 1:
            return next(iter(self._producers.values()))
        raise RegistrationError(
            "no app context is active, so that it is open which app's broker is meant: use `with app.app_context():`"
            if self._producers
            else "this Backend has no app: use Backend(app), or backend.init_app(app)"
        )
