"""The extension: registers tasks, and schedules them for the app in use. Opens no socket and starts no process."""

from __future__ import annotations

import functools
import inspect
import weakref
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Concatenate, Literal, ParamSpec, TypeVar, cast

from flask import Flask, has_app_context
from flask.globals import app_ctx

from . import transactions
from .broker.producer import Producer
from .config import KEYS, Settings, StandIn
from .current import CurrentJob
from .durations import Delay
from .errors import ConfigError, MessageEncodeError, RegistrationError
from .functions import check_fits, check_function, name_of, shown_name
from .job import BulkCall, BulkError, DeferredJob, Job, Jobs, bulk_uid
from .limit import Limit, check_limit
from .message import encode_call, encode_json, head_of, new_uid, show_value
from .middleware import Middleware, check_middleware
from .names import check_queue_name, check_worked_queue_name
from .options import DEFAULTS, AfterCommit, Options
from .periodic.definition import CatchUp, Definition
from .periodic.registration import Plan
from .registry import Handler, Handlers, check_endpoint, check_retry, check_time_limit
from .retry import Retry
from .scheduling import Around, ScheduledCall, make_around
from .signals import send, task_scheduled
from .system.launch import launched
from .task import Task
from .tracing import Sending, watched

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from .batch import Batch
    from .deferral import Target

launched()  # Flask-Script imports the app, which may change the working directory, before it runs our commands

P = ParamSpec("P")
Q = ParamSpec("Q")
R = TypeVar("R")
T = TypeVar("T")
Hook = TypeVar("Hook", bound=Callable[[], Any])
AnyTask = TypeVar("AnyTask", bound=Task[Any, Any])
AroundRun = TypeVar("AroundRun", bound=Callable[[CurrentJob, Callable[[], Any]], Any])
AroundSchedule = TypeVar("AroundSchedule", bound=Callable[[ScheduledCall, Callable[[], Job | None]], Any])
Receiver = TypeVar("Receiver", bound=Callable[[Any], Any])

EXTENSION_KEY = "backend"


def _naming_a_queue(
    register: Callable[Concatenate[Backend, Q], T],
) -> Callable[Concatenate[Backend, Q], T]:
    """Raise at once if a decorator lacks its parentheses, or the queue in them."""

    @functools.wraps(register)
    def checked(self: Backend, /, *args: Q.args, **kwargs: Q.kwargs) -> T:
        decorator = f"@backend.{register.__name__}"
        queue: Any = args[0] if args else kwargs.get("queue")
        if callable(queue):
            found = f"{decorator} has no parentheses, and would not register {shown_name(queue)}"
        elif queue is None:
            found = f"{decorator} does not name a queue"
        else:
            check_worked_queue_name(queue)
            return register(self, *args, **kwargs)
        raise RegistrationError(f'{found}: write {decorator}("QUEUE"), for example {decorator}("com.example/default")')

    return checked


class Backend:
    """Background tasks of one or more Flask apps. Apps share the registered tasks; each app has its own connections.

    Use ``Backend(app)``, or ``Backend()`` and ``init_app(app)`` in a factory.
    """

    def __init__(self, app: Flask | None = None) -> None:
        self._handlers: dict[str, Handlers] = {}
        self._periodic: dict[str, Definition] = {}
        self._middleware: list[Middleware] = []
        self._schedule_middleware: list[Middleware] = []
        self.around: Around | None = None  # the latter, composed
        self._producers: weakref.WeakKeyDictionary[Flask, Producer] = weakref.WeakKeyDictionary()
        # Each app's settings as ``init_app`` read them; the first use compares and removes them.
        self._read: weakref.WeakKeyDictionary[Flask, dict[str, Any]] = weakref.WeakKeyDictionary()
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Flask) -> None:
        """Read and check the app's settings. Opens no connection.

        Raises :exc:`ConfigError` for an invalid setting, and :exc:`RegistrationError` if the app already has a
        ``Backend``.
        """
        if EXTENSION_KEY in app.extensions:
            raise RegistrationError(f"app {app.name!r} already has a Backend: call init_app once for each app")
        settings = Settings.from_config(app.config)
        self._producers[app] = self._make_producer(app, settings)
        transactions.watch(is_wanted=settings.waits_for_commit)
        self._read[app] = _values(app)
        app.extensions[EXTENSION_KEY] = self

    @_naming_a_queue
    def task(  # noqa: PLR0913  # all but two are keyword-only
        self,
        queue: str,
        endpoint: str | None = None,
        *,
        time_limit: float | None = None,
        retry: Retry | None = None,
        delay: Delay | None = None,
        priority: int | None = None,
        ttr: float | None = None,
        expires: Delay | None = None,
        after_commit: AfterCommit | None = None,
        limit: Limit | None = None,
    ) -> Callable[[Callable[P, R]], Task[P, R]]:
        """Make a function a task of ``queue``: calling it schedules it.

        ``endpoint`` is the task's name on the wire, by default the function's name. After ``time_limit`` seconds
        :exc:`TaskTimeout` is raised inside the task; the default is the limit of the worker's command line, if any.
        ``retry`` is the policy after a failure; the default is ``BACKEND_RETRY``. ``delay``, ``priority``,
        ``ttr``, ``expires`` and ``after_commit`` are the defaults of its calls, see :meth:`Task.options`. ``limit`` is
        how many of them run at once, or start within a time, on all hosts; all tasks of a queue have the same one, see
        :class:`Limit`. Raises :exc:`RegistrationError` if the queue already has that endpoint, a receiver or tasks with
        another limit, if a limit of that name has other numbers, or if the function cannot be a task,
        :exc:`QueueNameError`, :exc:`ConfigError` for an invalid time limit, retry policy or limit, and
        :exc:`OptionError`.
        """
        check_endpoint(endpoint)
        check_time_limit(time_limit)
        check_retry(retry)
        check_limit(limit)
        is_plain = delay is priority is ttr is expires is after_commit is None
        defaults = DEFAULTS if is_plain else Options(delay, priority, ttr, expires, after_commit)
        decorator = f"@backend.task({queue!r})"

        def decorate(function: Callable[P, R]) -> Task[P, R]:
            function = check_function(decorator, function)
            if isinstance(function, Task):
                raise RegistrationError(
                    f"{function!r} is already a task, and {decorator} would only schedule it: for both queues write "
                    f"backend.task({queue!r})({function.__name__}.function)"
                )
            name = endpoint if endpoint is not None else name_of(function)
            if name is None:
                raise RegistrationError(
                    f"{show_value(function)} has no name to use as its endpoint: write "
                    f'backend.task({queue!r}, endpoint="...")'
                )
            handlers = self._handlers_of(queue)
            if handlers.receiver is not None:
                raise RegistrationError(
                    f"queue {queue!r} has a receiver, {handlers.receiver.name}(), and so cannot have the task "
                    f"{name!r}: use another queue for one of them"
                )
            if name in handlers.tasks:
                why = _why_again(handlers.tasks[name].function, function)
                raise RegistrationError(
                    f"queue {queue!r} already has a task {name!r}: {why}give one of them another name "
                    f"with @backend.task({queue!r}, endpoint=...)"
                )
            self._check_limit(handlers, name, limit)
            handlers.limit = limit
            handlers.tasks[name] = Handler(name, function, time_limit, retry, defaults)
            return Task(self, queue, name, function, defaults)

        return decorate

    @_naming_a_queue
    def receiver(
        self, queue: str, *, time_limit: float | None = None, retry: Retry | None = None, limit: Limit | None = None
    ) -> Callable[[Receiver], Receiver]:
        """Register a function that is called with every JSON message that other systems put on ``queue``.

        The message is the decoded JSON: a dict, list, string, number, boolean or None. ``time_limit``, ``retry`` and
        ``limit`` work as for a task. Raises :exc:`RegistrationError` if the queue already has a receiver or tasks, and
        :exc:`QueueNameError` and :exc:`ConfigError` as for a task.
        """
        check_time_limit(time_limit)
        check_retry(retry)
        check_limit(limit)
        decorator = f"@backend.receiver({queue!r})"

        def decorate(function: Receiver) -> Receiver:
            handlers = self._handlers_of(queue)
            if handlers.receiver is not None or handlers.tasks:
                has = "a receiver" if handlers.receiver else f"the tasks {', '.join(handlers.tasks)}"
                raise RegistrationError(f"queue {queue!r} already has {has}: a queue has either tasks or one receiver")
            called = check_function(decorator, function)
            check_fits(decorator, called, "message")
            self._check_limit(handlers, shown_name(called), limit)
            handlers.limit = limit
            handlers.receiver = Handler(shown_name(called), called, time_limit, retry)
            return function

        return decorate

    @_naming_a_queue
    def before_first_task(self, queue: str) -> Callable[[Hook], Hook]:
        """Register a function that each worker of ``queue`` calls once, in an app context, before its first job.

        The function has no parameters, and its result is ignored. If it raises, its worker cannot start, and another
        one is started later. Raises :exc:`RegistrationError` and :exc:`QueueNameError`.
        """
        decorator = f"@backend.before_first_task({queue!r})"

        def decorate(hook: Hook) -> Hook:
            called = check_function(decorator, hook)
            check_fits(decorator, called)
            self._handlers_of(queue).hooks.append(called)
            return hook

        return decorate

    def periodic(  # noqa: PLR0913  # all but one are keyword-only
        self,
        expression: str | None = None,
        *,
        every: float | timedelta | None = None,
        timezone: str | None = None,
        catch_up: CatchUp = "once",
        overlap: bool = True,
        grace: float | timedelta | None = None,
        name: str | None = None,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Callable[[AnyTask], AnyTask]:
        """Schedule a call of a task regularly: ``@backend.periodic("*/5 * * * *")``, above ``@backend.task``.

        ``expression`` is a cron expression of five fields, or ``@hourly``, ``@daily``, ``@weekly``, ``@monthly`` or
        ``@yearly``, in the time zone ``timezone``, by default ``BACKEND_TIMEZONE``; it needs the extra ``cron``.
        Instead, ``every`` is a ``timedelta`` or whole seconds: the task is due at each multiple since the epoch.

        The schedulers of the supervisors that serve the task's queue make the calls, each call once.
        ``catch_up="once"`` makes one call for all times that passed while no scheduler ran, ``"skip"`` makes none. A
        call is not made later than ``grace``, a ``timedelta`` or seconds; by default any time later, or with
        ``catch_up="skip"`` one minute. With ``overlap=False``, no call is made while the last one is unfinished.

        ``name`` identifies it in ``flask-backend schedules`` and after a change of the code; the default is the task's
        endpoint, and a second one of the same task needs a name. ``args`` and ``kwargs`` are the arguments of each
        call. The calls take the options of the task's decorator.

        Raises :exc:`RegistrationError` for an invalid argument, for a name that is taken and for anything but a task of
        this ``Backend``, and the errors of a call with arguments that do not fit. Warns about a step that is larger
        than its field, such as ``*/90``.
        """
        plan = Plan.check(expression, every, timezone, catch_up, overlap, grace, name, args, kwargs)

        def decorate(task: AnyTask) -> AnyTask:
            self._check_can_be_periodic(task)
            task.encode(tuple(plan.args), dict(plan.kwargs), "")
            definition = plan.define(
                task.queue, task.endpoint, self._handlers[task.queue].tasks[task.endpoint].defaults
            )
            if (known := self._periodic.get(definition.name)) is not None:
                raise RegistrationError(
                    f"there is already a periodic task {definition.name!r}, of {known.endpoint} on {known.queue}: give "
                    "one of them another name with @backend.periodic(..., name=...)"
                )
            self._periodic[definition.name] = definition
            return task

        return decorate

    def middleware(self, function: AroundRun) -> AroundRun:
        """Register a function around each run of each task and receiver: ``function(job, proceed)``.

        ``job`` is the :class:`CurrentJob`; ``proceed()`` runs the rest, and returns the result or raises the exception
        of the task, :exc:`TaskTimeout` and the task's decisions too. It runs inside the app context and the time limit
        of the task; what it raises is the outcome. If it returns without a call of ``proceed``, or calls it twice, the
        job fails with :exc:`MiddlewareError`. The one that was registered first is the outermost. Raises
        :exc:`RegistrationError` for an ``async`` function, and for one that cannot be called with two arguments.
        """
        self._middleware.append(check_middleware("@backend.middleware", function, "job"))
        return function

    def schedule_middleware(self, function: AroundSchedule) -> AroundSchedule:
        """Register a function around each scheduling of a call, in a ``map`` too: ``function(call, proceed)``.

        ``call`` is a :class:`ScheduledCall`, whose ``headers`` it may write. ``proceed()`` schedules the call and
        returns its :class:`Job`, or raises the error; in a ``map`` it only encodes the call, and returns None. What the
        function raises is raised by the call. If it returns without a call of ``proceed``, or calls it twice, that is a
        :exc:`MiddlewareError`. The one that was registered first is the outermost. Raises :exc:`RegistrationError` as
        :meth:`middleware` does.
        """
        self._schedule_middleware.append(check_middleware("@backend.schedule_middleware", function, "call"))
        self.around = make_around(self._schedule_middleware)
        return function

    def send(  # noqa: PLR0913  # all but two are keyword-only
        self,
        queue: str,
        message: Any,
        *,
        delay: Delay | None = None,
        priority: int | None = None,
        ttr: float | None = None,
        after_commit: AfterCommit | None = None,
    ) -> Job:
        """Send a message, any value that JSON can carry, to an external system on the same server.

        Takes the options of :meth:`Task.options`. Raises :exc:`QueueNameError`, :exc:`OptionError`, and the other
        errors of a :class:`Task`'s call.
        """
        check_queue_name(queue)
        body, options = _encode_message(queue, message), Options(delay, priority, ttr, after_commit=after_commit)
        with self.sending(queue) as sending:
            sending.size = len(body)
            job = self.put(queue, body, options, None)
            sending.sent = 1
        return job

    def send_many(  # noqa: PLR0913  # likewise
        self,
        queue: str,
        messages: Iterable[Any],
        *,
        delay: Delay | None = None,
        priority: int | None = None,
        ttr: float | None = None,
        after_commit: AfterCommit | None = None,
    ) -> Jobs:
        """Send many messages, in order and in batches, as :meth:`Task.map` schedules many calls.

        Raises :exc:`BulkError`, with the outcome of each, if a message was not accepted.
        """
        check_queue_name(queue)
        options = Options(delay, priority, ttr, after_commit=after_commit)
        with self.sending(queue, is_batch=True) as sending:
            return self._put_batch(sending, messages, lambda _, message: _encode_message(queue, message), options, None)

    def periodic_of(self, app: Flask) -> dict[str, list[Definition]]:
        """Return the periodic tasks of each queue that has some, in the time zone of an app."""
        zone = self.settings_of(app).timezone
        found: dict[str, list[Definition]] = {}
        for definition in self._periodic.values():
            found.setdefault(definition.queue, []).append(definition.in_zone(zone))
        return found

    def schedule_slot(self, definition: Definition, slot: int, uid: str) -> Job:
        """Schedule the call of a periodic task for a slot, as ordinary calls are: within the middleware, with signals.

        ``definition`` may be that of another release, with a task that this one lacks.
        """
        queue, endpoint, options = definition.queue, definition.endpoint, definition.options
        with self.sending(queue, endpoint, uid) as sending:

            def put(headers: dict[str, Any]) -> Job:
                more = {**headers, **options.headers()}
                body = encode_call(head_of(endpoint), definition.args, definition.kwargs, uid, more)
                sending.size = len(body)
                job = self.put(queue, body, options, uid, endpoint)
                sending.sent = 1
                return job

            headers = {**sending.headers, **definition.headers(slot)}
            if self.around is None:
                return put(headers)
            args, kwargs = tuple(definition.args), definition.kwargs
            return self.around(ScheduledCall(queue, endpoint, args, kwargs, uid, options, headers), put)

    def batch(self, *, when: Literal["done", "ended"] = "done", after_commit: AfterCommit | None = None) -> Batch:
        """Return a batch: calls, and a callback that is scheduled when all of them are finished.

        Use it as a context manager::

            with backend.batch() as batch:
                batch.on_complete(report, order.id)
                batch.add(resize, "a.png")
                batch.map(send_mail, addresses)

        The calls are sent when the block ends, and none if it raises; a batch without calls schedules its callback at
        once. With ``when="done"`` the callback waits until each call is done: it returned, was discarded, has expired,
        or was deleted by a person; a buried one holds it up until it was retried or deleted. With ``when="ended"`` a
        buried call is finished too. ``after_commit`` is that of :meth:`Task.options`, for the whole batch.

        The callback is scheduled at least once; twice only if a worker, or the broker, dies at the moment between.

        Raises :exc:`OptionError` for invalid options. The end of the block raises :exc:`OptionError` if there is no
        callback, the errors of a call if nothing was sent, :exc:`JobTooBigError` for example, and :exc:`BulkError`,
        with the outcome of each call, if the batch was sent only in part.
        """
        from .batch import Batch

        return Batch(self, when, after_commit)

    @property
    def queues(self) -> dict[str, Handlers]:
        """The queues with a task or a receiver, by name."""
        return {name: handlers for name, handlers in self._handlers.items() if handlers.can_work}

    def settings_of(self, app: Flask) -> Settings:
        return self.producer_of(app).settings

    def producer_of(self, app: Flask) -> Producer:
        """Return the producer that connects an app to its broker.

        Raises :exc:`RegistrationError` if the app is not initialised, and at the first use :exc:`ConfigError` if its
        settings changed after ``init_app`` read them.
        """
        producer = self._producers.get(app)
        if producer is None:
            raise RegistrationError(f"app {app.name!r} is not initialised: call backend.init_app(app)")
        if self._read and app in self._read:
            _check_unchanged(app, self._read[app])
            del self._read[app]
        return producer

    def app_in_use(self) -> Flask:
        """Return the current app, or outside of a context the only app; else raise :exc:`RegistrationError`."""
        if has_app_context():
            return app_ctx.app  # the app itself: current_app is a proxy
        if len(self._producers) == 1:
            return next(iter(self._producers))
        raise RegistrationError(
            "no app context is active and this Backend has several apps: use `with app.app_context():`"
            if self._producers
            else "this Backend has no app: use Backend(app), or backend.init_app(app)"
        )

    # -- for tasks and jobs ----------------------------------------------------------------------------------

    def sending(
        self, queue: str, endpoint: str | None = None, uid: str | None = None, *, is_batch: bool = False
    ) -> AbstractContextManager[Sending]:
        """Return a context manager in which the tracers watch a put."""
        return watched(Sending(queue, endpoint, uid, self._producer().settings.broker, is_batch))

    def put(self, queue: str, body: bytes, options: Options, uid: str | None, endpoint: str | None = None) -> Job:
        producer = self._producer()
        if options.after_commit is not None or producer.settings.waits_for_commit:
            from .deferral import defer

            if (waits := self._find_session(producer, queue, options, endpoint)) is not None:
                return defer(*waits, body, uid)
        job = Job(queue, producer.put(queue, body, options), uid, producer.uri, producer)
        if endpoint is not None:
            self.announce(self.app_in_use(), endpoint, [job])
        return job

    def put_many(
        self,
        queue: str,
        items: Iterable[T],
        encode: Callable[[T, str, dict[str, Any]], bytes],
        options: Options,
        endpoint: str,
    ) -> Jobs:
        prefix = new_uid(12)
        with self.sending(queue, endpoint, is_batch=True) as sending:
            headers = sending.headers
            try:
                jobs = self._put_batch(
                    sending, items, lambda index, item: encode(item, bulk_uid(prefix, index), headers), options, prefix
                )
            except BulkError as error:
                self.announce(self.app_in_use(), endpoint, error.jobs.values())
                raise
            self.announce(self.app_in_use(), endpoint, jobs)
        return jobs

    def _find_session(
        self, producer: Producer, queue: str, options: Options, endpoint: str | None
    ) -> tuple[Target, Session] | None:
        """Return the session for whose commit a call waits, and the facts to send it then."""
        from .deferral import Target, find_session

        app = self.app_in_use()
        session = find_session(app, producer, options)
        if session is None:
            return None
        return Target(app, producer, queue, options, endpoint, self._handlers.get(queue)), session

    def announce(self, app: Flask, endpoint: str, jobs: Collection[Job]) -> None:
        # Those that wait for a commit are announced when they are sent.
        if jobs and task_scheduled.receivers and not isinstance(next(iter(jobs)), DeferredJob):
            send(task_scheduled, app, endpoint=endpoint, jobs=jobs)

    def _put_batch(  # the parts of a batch
        self,
        sending: Sending,
        items: Iterable[T],
        encode: Callable[[int, T], bytes],
        options: Options,
        uid_prefix: str | None,
    ) -> Jobs:
        producer = self._producer()
        if options.after_commit is not None or producer.settings.waits_for_commit:
            from .deferral import defer_many

            if (waits := self._find_session(producer, sending.queue, options, sending.endpoint)) is not None:
                jobs = defer_many(*waits, items, encode, uid_prefix)
                sending.sent = len(jobs)
                return jobs
        outcome = producer.put_many(sending.queue, items, encode, options)
        sending.sent = len(outcome.accepted)
        call = BulkCall(sending.queue, outcome, producer, uid_prefix)
        if not outcome.is_complete:
            raise BulkError(call)
        return Jobs(call)

    def _check_can_be_periodic(self, task: object) -> None:
        """Raise :exc:`RegistrationError` unless it is a task of this ``Backend``."""
        if isinstance(task, Task):
            if task.belongs_to(self):
                return
            raise RegistrationError(f"{task!r} belongs to another Backend: use @backend.periodic of that one")
        shown = shown_name(task) if callable(task) else show_value(task)
        if any(handlers.receiver and handlers.receiver.function is task for handlers in self._handlers.values()):
            raise RegistrationError(
                f"{shown} is a receiver, whose messages come from elsewhere: @backend.periodic is for tasks"
            )
        raise RegistrationError(
            f"{shown} is not a task: write @backend.periodic above @backend.task, which makes it one"
        )

    def _handlers_of(self, queue: str) -> Handlers:
        return self._handlers.setdefault(check_worked_queue_name(queue), Handlers(queue, middleware=self._middleware))

    def _check_limit(self, handlers: Handlers, name: str, limit: Limit | None) -> None:
        """Raise :exc:`RegistrationError` unless a new handler's limit fits those of its queue and of other queues."""
        if handlers.tasks and limit != handlers.limit:
            has = f"has {limit}" if limit else "has no limit"
            others = f"have {handlers.limit}" if handlers.limit else "have none"
            raise RegistrationError(
                f"task {name!r} of {handlers.queue!r} {has}, and the tasks before it {others}; all tasks of a queue "
                "have the same: give the limited task a queue of its own"
            )
        for other in self._handlers.values():
            if limit and other.limit and other.limit.name == limit.name and other.limit != limit:
                raise RegistrationError(
                    f"{name!r} of {handlers.queue!r} has {limit}, and queue {other.queue!r} has {other.limit}: one "
                    "name is one limit; give both the same numbers, or one of them another name"
                )

    def _producer(self) -> Producer:
        return self.producer_of(self.app_in_use())

    def _find_handlers(self, queue: str) -> Handlers | None:
        return self.queues.get(queue)

    def _make_producer(self, app: Flask, settings: Settings) -> Producer:
        match settings.broker:
            case StandIn.MEMORY:
                from .inprocess.memory import MemoryProducer

                return MemoryProducer(settings)
            case StandIn.SYNC:
                from .inprocess.sync import SyncProducer

                return SyncProducer(settings, self._find_handlers, app)
            case _:
                return Producer(settings)


def _values(app: Flask) -> dict[str, Any]:
    config = cast("Mapping[str, Any]", app.config)
    return {key: config.get(key) for key in KEYS}


def _check_unchanged(app: Flask, read: dict[str, Any]) -> None:
    for key, value in _values(app).items():
        if value != read[key]:
            raise ConfigError(
                f"{key} was set to {value!r} after Backend(app) or init_app(app) had read the settings of app "
                f"{app.name!r}, and has no effect: set it before, or use Backend() and call init_app(app) when the "
                "settings are complete"
            )


def _why_again(old: Callable[..., Any], new: Callable[..., Any]) -> str:
    """Return the cause and the remedy if the same lines of code have registered a task twice, else an empty string."""
    first, second = (getattr(inspect.unwrap(each), "__code__", None) for each in (old, new))
    if first is None or second is None:
        return ""
    if (first.co_filename, first.co_firstlineno) != (second.co_filename, second.co_firstlineno):
        return ""
    modules = old.__module__, new.__module__
    if modules[0] != modules[1]:
        return (
            f"one file was imported under two names, {modules[0]} and {modules[1]}: import it under one name "
            "everywhere; if these are two tasks, "
        )
    return (
        f"the same lines of {modules[0]} ran twice. If they are in a factory, move the task to the top level of a "
        "module; a module with tasks cannot be reloaded: restart the process; if these are two tasks, "
    )


def _encode_message(queue: str, message: Any) -> bytes:
    try:
        return encode_json(message)
    except MessageEncodeError as error:
        raise MessageEncodeError(f"the message for {queue!r} cannot be sent as JSON: {error}") from error
