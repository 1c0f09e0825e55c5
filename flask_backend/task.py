"""Tasks: decorated functions that are scheduled when they are called."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any, Generic, ParamSpec, Protocol, TypeVar, cast, overload

from .current import job_being_run, job_inside_run
from .durations import Delay
from .errors import MessageEncodeError
from .functions import bind, signature_of
from .job import Job, Jobs
from .message import encode_call, encode_json, head_of, new_uid, show_value
from .options import AfterCommit, Options
from .scheduling import Around, ScheduledCall
from .tracing import Sending, tracers
from .worker.event_loop import run_here

P = ParamSpec("P")
R_co = TypeVar("R_co", covariant=True)
T = TypeVar("T")

# How many shapes of calls with keyword arguments a task remembers. One with **kwargs may have any number.
_MAX_SHAPES = 64


def _by_name(bound: inspect.BoundArguments) -> Iterator[tuple[str, Any]]:
    """Yield the arguments of a call with their names; the arguments of ``*args`` are numbered."""
    for name, value in bound.arguments.items():
        match bound.signature.parameters[name].kind:
            case inspect.Parameter.VAR_POSITIONAL:
                yield from ((f"*{name}[{index}]", item) for index, item in enumerate(value))
            case inspect.Parameter.VAR_KEYWORD:
                yield from value.items()
            case _:
                yield name, value


def _arities(signature: inspect.Signature) -> range:
    """Return the numbers of positional arguments that fit a signature without keyword arguments."""
    least = most = 0
    for parameter in signature.parameters.values():
        match parameter.kind:
            case inspect.Parameter.POSITIONAL_ONLY | inspect.Parameter.POSITIONAL_OR_KEYWORD:
                most += 1
                least += parameter.default is parameter.empty
            case inspect.Parameter.VAR_POSITIONAL:
                most = sys.maxsize - 1
            case inspect.Parameter.KEYWORD_ONLY if parameter.default is parameter.empty:
                return range(0)
            case _:
                pass
    return range(least, most + 1)


class Scheduler(Protocol):
    """The part of the extension that a task uses. ``around`` is unset without middleware."""

    @property
    def around(self) -> Around | None: ...
    def sending(self, queue: str, endpoint: str, uid: str) -> AbstractContextManager[Sending]: ...
    def put(self, queue: str, body: bytes, options: Options, uid: str | None, endpoint: str) -> Job: ...
    def put_many(
        self,
        queue: str,
        items: Iterable[T],
        encode: Callable[[T, str, dict[str, Any]], bytes],
        options: Options,
        endpoint: str,
    ) -> Jobs: ...


class BoundTask(Generic[P]):
    """A task with scheduling options: call it like the task itself, or use :meth:`map`."""

    def __init__(self, task: Task[P, Any], options: Options) -> None:
        self._task = task
        self._options = options

    def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> Job:
        """Schedule one call with these options. Raises the errors of a call of the task itself."""
        return self._task.schedule(args, kwargs, self._options)

    def map(self, /, *iterables: Iterable[Any]) -> Jobs:
        """Schedule one call for each item with these options, see :meth:`flask_backend.Task.map`."""
        return self._task.schedule_many(iterables, self._options)

    def is_of(self, scheduler: object) -> bool:
        return self._task.is_of(scheduler)

    def schedule_in(self, scheduler: Scheduler, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Job:
        return self._task.schedule(args, kwargs, self._options, scheduler)

    def schedule_many_in(self, scheduler: Scheduler, iterables: tuple[Iterable[Any], ...]) -> Jobs:
        return self._task.schedule_many(iterables, self._options, scheduler)

    def __repr__(self) -> str:
        return f"<{self._task!r} with {self._options}>"


class Task(Generic[P, R_co]):
    """A function whose calls run in a worker; its parameters are those of the function.

    ``hello("world")`` schedules a call and returns at once; ``hello.run("world")`` runs it immediately, in the caller.
    ``queue`` and ``endpoint`` are the names that the decorator registered, ``function`` is the function itself.
    """

    def __init__(
        self, scheduler: Scheduler, queue: str, endpoint: str, function: Callable[P, R_co], defaults: Options
    ) -> None:
        self.__name__ = self.__qualname__ = endpoint  # for a function without a name
        functools.update_wrapper(self, function, updated=())
        # APScheduler names a callable object after its class, and stores that name in its job store.
        self.__class__ = cast("Any", type("Task", (Task,), {"__qualname__": self.__qualname__}))
        self.__signature__ = signature_of(function)
        self._scheduler = scheduler
        self._arities = _arities(self.__signature__)
        self._shapes: set[tuple[object, ...]] = set()
        self._head = head_of(endpoint)
        self._defaults = defaults
        self.queue = queue
        self.endpoint = endpoint
        self.function = function

    def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> Job:
        """Schedule one call.

        Raises :exc:`TaskArgumentsError` if the arguments do not fit the signature, :exc:`MessageEncodeError` if
        JSON cannot carry one, :exc:`JobTooBigError` if the message is too large for the server and
        :exc:`BrokerConnectionError` if the server does not answer.
        """
        return self.schedule(args, kwargs, self._defaults)

    @overload
    def run(self: Task[P, Coroutine[Any, Any, T]], /, *args: P.args, **kwargs: P.kwargs) -> T: ...
    @overload
    def run(self, /, *args: P.args, **kwargs: P.kwargs) -> R_co: ...
    def run(self, /, *args: P.args, **kwargs: P.kwargs) -> Any:
        """Run the function in the caller, and return its result.

        An ``async def`` function runs to its end; if an event loop is running, in a separate thread. There,
        ``await hello.function("world")`` runs it in that loop. Raises :exc:`TaskResultError` for a result that has not
        run, such as a generator.
        """
        token = job_being_run.set(job_inside_run())
        try:
            return run_here(self.endpoint, self.function, args, kwargs)
        finally:
            job_being_run.reset(token)

    def options(
        self,
        *,
        delay: Delay | None = None,
        priority: int | None = None,
        ttr: float | None = None,
        expires: Delay | None = None,
        after_commit: AfterCommit | None = None,
    ) -> BoundTask[P]:
        """Return the task with scheduling options, ready to be called: ``hello.options(delay=60)("world")``.

        ``delay`` is seconds, a ``timedelta`` or an aware ``datetime``; ``priority`` is from 0 (first) to 4294967295, by
        default 65536; ``ttr`` is the seconds that its worker may be silent, by default ``BACKEND_TTR``. After
        ``expires``, seconds from the call, a ``timedelta`` or an aware ``datetime``, no worker starts the call or a
        retry of it: the job is deleted. ``after_commit`` is a SQLAlchemy ``Session`` or ``scoped_session``: the call is
        sent after its outermost commit, and dropped at a rollback; False sends it at once. Options that are not set
        come from the task's decorator. Raises :exc:`OptionError` for an invalid value, and for an ``expires`` that is
        not after ``delay``.
        """
        return BoundTask(self, Options(delay, priority, ttr, expires, after_commit).over(self._defaults))

    def map(self, /, *iterables: Iterable[Any]) -> Jobs:
        """Schedule one call for each item, like the built-in ``map``: ``hello.map(["a", "b"])``.

        With several iterables each call takes one item of each. Calls are sent in batches, and items are read as they
        are sent: a generator of a million items takes no memory. Invalid items are skipped; raises :exc:`BulkError`,
        with the outcome of each item, if one was not accepted.
        """
        return self.schedule_many(iterables, self._defaults)

    def is_of(self, scheduler: object) -> bool:
        """Whether it was registered there."""
        return self._scheduler is scheduler

    def schedule_in(self, scheduler: Scheduler, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Job:
        return self.schedule(args, kwargs, self._defaults, scheduler)

    def schedule_many_in(self, scheduler: Scheduler, iterables: tuple[Iterable[Any], ...]) -> Jobs:
        return self.schedule_many(iterables, self._defaults, scheduler)

    def schedule(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], options: Options, scheduler: Scheduler | None = None
    ) -> Job:
        scheduler = scheduler or self._scheduler
        uid = new_uid()
        around = scheduler.around
        if around is None and not tracers:
            headers = None if options.expires is None else options.headers()
            return scheduler.put(self.queue, self.encode(args, kwargs, uid, headers), options, uid, self.endpoint)
        with scheduler.sending(self.queue, self.endpoint, uid) as sending:

            def put(headers: dict[str, Any]) -> Job:
                body = self.encode(args, kwargs, uid, headers | options.headers())
                sending.size = len(body)
                job = scheduler.put(self.queue, body, options, uid, self.endpoint)
                sending.sent = 1
                return job

            if around is None:
                return put(sending.headers)
            return around(ScheduledCall(self.queue, self.endpoint, args, kwargs, uid, options, sending.headers), put)

    def schedule_many(
        self, iterables: tuple[Iterable[Any], ...], options: Options, scheduler: Scheduler | None = None
    ) -> Jobs:
        scheduler = scheduler or self._scheduler
        around = scheduler.around

        def encode_item(args: tuple[Any, ...], uid: str, headers: dict[str, Any]) -> bytes:
            if around is None:
                return self.encode(args, {}, uid, headers if options.expires is None else headers | options.headers())
            call = ScheduledCall(self.queue, self.endpoint, args, {}, uid, options, headers.copy())
            return around(call, lambda headers: self.encode(args, {}, uid, headers | options.headers()))

        items = zip(*iterables, strict=False)
        return scheduler.put_many(self.queue, items, encode_item, options, self.endpoint)

    def belongs_to(self, scheduler: object) -> bool:
        """Whether it is a task of this ``Backend``."""
        return self._scheduler is scheduler

    def encode(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], uid: str, headers: Mapping[str, Any] | None = None
    ) -> bytes:
        """Return the body of a call's job. Raises the errors of a call with invalid arguments."""
        # Binding takes far longer than to see that such a call fits.
        if kwargs:
            self._bind_once(args, kwargs)
        elif len(args) not in self._arities:
            bind(self.endpoint, self.__signature__, args, kwargs)
        try:
            return encode_call(self._head, args, kwargs, uid, headers)
        except MessageEncodeError as error:
            self._check_headers(headers or {})
            raise self._blame(bind(self.endpoint, self.__signature__, args, kwargs), error) from error

    def _bind_once(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Bind the arguments, unless a call with as many and with the same names was found to fit."""
        shape = (len(args), *kwargs)
        if shape not in self._shapes:
            bind(self.endpoint, self.__signature__, args, kwargs)
            if len(self._shapes) < _MAX_SHAPES:
                self._shapes.add(shape)

    def _check_headers(self, headers: Mapping[str, Any]) -> None:
        """Raise an error that names the first header that JSON cannot carry, if any."""
        for name, value in headers.items():
            try:
                encode_json({name: value})
            except MessageEncodeError as error:
                raise MessageEncodeError(
                    f"the header {name!r} of a call of {self.endpoint} is {show_value(value)}, which JSON cannot carry "
                    f"({error})"
                ) from error

    def _blame(self, bound: inspect.BoundArguments, reason: MessageEncodeError) -> MessageEncodeError:
        """Return an error that names the first argument that JSON cannot carry."""
        for name, value in _by_name(bound):
            try:
                encode_json({name: value})
            except MessageEncodeError as error:
                return MessageEncodeError(
                    f"argument {name!r} of {self.endpoint} is {show_value(value)}, which JSON cannot carry ({error}); "
                    "pass plain data, for example a row's id"
                )
        return MessageEncodeError(f"JSON cannot carry the arguments of {self.endpoint} together ({reason})")

    def __reduce__(self) -> str:
        """Pickle and copy the task by its name, like a function: it is the same task in each process."""
        return self.__qualname__

    def __repr__(self) -> str:
        return f"<Task {self.endpoint} on {self.queue}>"
