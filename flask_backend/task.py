"""A task: the decorated function, which schedules itself when it is called."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Coroutine, Iterable, Iterator
from typing import Any, Generic, ParamSpec, Protocol, TypeVar, cast, overload

from .durations import Delay
from .errors import MessageEncodeError
from .functions import bind, signature_of
from .job import Job, Jobs
from .message import Message, encode, encode_json, new_headers, show_value
from .options import Options
from .worker.event_loop import run_here

P = ParamSpec("P")
R_co = TypeVar("R_co", covariant=True)
T = TypeVar("T")


def _by_name(bound: inspect.BoundArguments) -> Iterator[tuple[str, Any]]:
    """Iterate over the arguments of a call by their names; those of ``*args`` have numbers."""
    for name, value in bound.arguments.items():
        match bound.signature.parameters[name].kind:
            case inspect.Parameter.VAR_POSITIONAL:
                yield from ((f"*{name}[{index}]", item) for index, item in enumerate(value))
            case inspect.Parameter.VAR_KEYWORD:
                yield from value.items()
            case _:
                yield name, value


def _arities(signature: inspect.Signature) -> range:
    """Return how many arguments without names fit a signature by themselves."""
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
    """What a task needs of the extension."""

    def put(self, queue: str, body: bytes, options: Options, uid: str | None) -> Job: ...
    def put_many(self, queue: str, items: Iterable[T], encode: Callable[[T, str], bytes], options: Options) -> Jobs: ...


class BoundTask(Generic[P]):
    """A task with options of how to schedule it: call it, as the task itself, or :meth:`map` it."""

    def __init__(self, task: Task[P, Any], options: Options) -> None:
        self._task = task
        self._options = options

    def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> Job:
        """Schedule one call with these options. Raises what the task's own call raises."""
        return self._task.schedule(args, kwargs, self._options)

    def map(self, /, *iterables: Iterable[Any]) -> Jobs:
        """Schedule one call for each item with these options, see :meth:`Task.map`."""
        return self._task.schedule_many(iterables, self._options)

    def __repr__(self) -> str:
        return f"<{self._task!r} with {self._options}>"


class Task(Generic[P, R_co]):
    """A function whose calls run in a worker.

    ``hello("world")`` schedules and returns at once; ``hello.run("world")`` runs here and now, in the caller.
    """

    def __init__(
        self, scheduler: Scheduler, queue: str, endpoint: str, function: Callable[P, R_co], defaults: Options
    ) -> None:
        self.__name__ = self.__qualname__ = endpoint  # of a function without a name of its own
        functools.update_wrapper(self, function, updated=())
        # APScheduler names a callable object after its class, and keeps that name in its store of jobs.
        self.__class__ = cast("Any", type("Task", (Task,), {"__qualname__": self.__qualname__}))
        self.__signature__ = signature_of(function)
        self._scheduler = scheduler
        self._arities = _arities(self.__signature__)
        self._defaults = defaults
        self.queue = queue
        self.endpoint = endpoint
        self.function = function

    def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> Job:
        """Schedule one call.

        Raises :exc:`TaskArgumentsError` if the arguments do not fit the signature, :exc:`MessageEncodeError` if
        JSON cannot carry one, :exc:`JobTooBigError` if the server takes no message of this size and
        :exc:`BrokerConnectionError` if it does not answer.
        """
        return self.schedule(args, kwargs, self._defaults)

    @overload
    def run(self: Task[P, Coroutine[Any, Any, T]], /, *args: P.args, **kwargs: P.kwargs) -> T: ...
    @overload
    def run(self, /, *args: P.args, **kwargs: P.kwargs) -> R_co: ...
    def run(self, /, *args: P.args, **kwargs: P.kwargs) -> Any:
        """Run the function in the caller, and return what it returns.

        An ``async def`` function runs to its end: inside of a running event loop, in a thread of its own. There,
        ``await hello.function("world")`` runs it in that loop. Raises :exc:`TaskResultError` for a result that has not
        run, as a generator.
        """
        return run_here(self.endpoint, self.function, args, kwargs)

    def options(
        self, *, delay: Delay | None = None, priority: int | None = None, ttr: float | None = None
    ) -> BoundTask[P]:
        """Return the task with options of how to schedule it, to be called: ``hello.options(delay=60)("world")``.

        ``delay`` is seconds, a ``timedelta`` or an aware ``datetime``; ``priority`` is from 0, the first, to
        4294967295, 65536 without it; ``ttr`` is the seconds that its worker may be silent, ``BACKEND_TTR`` without it.
        What is not said is as the task's decorator says. Raises :exc:`OptionError` for what cannot work.
        """
        return BoundTask(self, Options(delay, priority, ttr).over(self._defaults))

    def map(self, /, *iterables: Iterable[Any]) -> Jobs:
        """Schedule one call for each item, as the built-in ``map`` would make them: ``hello.map(["a", "b"])``.

        With several iterables each call takes one item of each. The calls travel many at a time, and items are taken
        as they are sent: a generator of a million takes no memory. Items that are at fault themselves are left out;
        raises :exc:`BulkError`, which tells what became of each, if one was not accepted.
        """
        return self.schedule_many(iterables, self._defaults)

    def schedule(self, args: tuple[Any, ...], kwargs: dict[str, Any], options: Options) -> Job:
        headers = new_headers()
        return self._scheduler.put(self.queue, self.encode(args, kwargs, headers), options, headers["id"])

    def schedule_many(self, iterables: tuple[Iterable[Any], ...], options: Options) -> Jobs:
        def encode_item(args: tuple[Any, ...], uid: str) -> bytes:
            return self.encode(args, {}, new_headers(uid))

        return self._scheduler.put_many(self.queue, zip(*iterables, strict=False), encode_item, options)

    def encode(self, args: tuple[Any, ...], kwargs: dict[str, Any], headers: dict[str, Any]) -> bytes:
        """Return the body of a call's job. Raises what the call raises for its arguments."""
        if kwargs or len(args) not in self._arities:  # else they fit, which it takes far longer to find out by binding
            bind(self.endpoint, self.__signature__, args, kwargs)
        try:
            return encode(Message(self.endpoint, args, kwargs, headers))
        except MessageEncodeError as error:
            raise self._blame(bind(self.endpoint, self.__signature__, args, kwargs), error) from error

    def _blame(self, bound: inspect.BoundArguments, reason: MessageEncodeError) -> MessageEncodeError:
        """Find the first argument that JSON cannot carry, for the error to name it."""
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
        """Have it pickled and copied by its name, as a function: it is the same task in each process."""
        return self.__qualname__

    def __repr__(self) -> str:
        return f"<Task {self.endpoint} on {self.queue}>"
