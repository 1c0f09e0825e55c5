"""A task: the decorated function, which schedules itself when it is called."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Generic, ParamSpec, Protocol, TypeVar

from .errors import MessageEncodeError, TaskArgumentsError
from .message import Message, encode, encode_json, new_headers

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Job:
    """A job that Beanstalkd has accepted: its queue, and the id that Beanstalkd gave it."""

    queue: str
    id: int


class Scheduler(Protocol):
    """What a task needs of the extension."""

    def put(self, queue: str, body: bytes) -> Job: ...
    def put_many(self, queue: str, bodies: Iterable[bytes]) -> list[Job]: ...


class Task(Generic[P, R]):
    """A function whose calls run in a worker.

    ``hello("world")`` schedules and returns at once; ``hello.run("world")`` runs here and now, in the caller.
    """

    def __init__(self, scheduler: Scheduler, queue: str, endpoint: str, function: Callable[P, R]) -> None:
        functools.update_wrapper(self, function)
        self._scheduler = scheduler
        self._signature = inspect.signature(function)
        self.queue = queue
        self.endpoint = endpoint
        self.function = function

    def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> Job:
        """Schedule one call.

        Raises :exc:`TaskArgumentsError` if the arguments do not fit the signature, :exc:`MessageEncodeError` if
        JSON cannot carry one, :exc:`JobTooBigError` if the server takes no message of this size and
        :exc:`BrokerConnectionError` if it does not answer.
        """
        return self._scheduler.put(self.queue, self._encode(args, kwargs))

    def run(self, /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run the function in the caller, and return what it returns."""
        return self.function(*args, **kwargs)

    def map(self, /, *iterables: Iterable[Any]) -> list[Job]:
        """Schedule one call for each item, as the built-in ``map`` would make them: ``hello.map(["a", "b"])``.

        With several iterables each call takes one item of each. The calls travel many at a time. If one is refused
        the error's note says which, and how many before it were accepted.
        """
        return self._scheduler.put_many(self.queue, (self._encode(args, {}) for args in zip(*iterables, strict=False)))

    def __repr__(self) -> str:
        return f"<Task {self.endpoint} on {self.queue}>"

    def _encode(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes:
        try:
            bound = self._signature.bind(*args, **kwargs)
        except TypeError as error:
            raise TaskArgumentsError(
                f"{self.endpoint}{self._signature} cannot be called with these arguments: {error}"
            ) from None
        try:
            return encode(Message(self.endpoint, args, kwargs, new_headers()))
        except MessageEncodeError as error:
            raise self._blame(bound) from error

    def _blame(self, bound: inspect.BoundArguments) -> MessageEncodeError:
        """Find the first argument that JSON cannot carry, for the error to name it."""
        for name, value in bound.arguments.items():
            try:
                encode_json(value)
            except MessageEncodeError as error:
                return MessageEncodeError(
                    f"argument {name!r} of {self.endpoint} is {_shown(value)}, which JSON cannot carry ({error}); "
                    "pass plain data, for example a row's id"
                )
        return MessageEncodeError(f"the arguments of {self.endpoint} cannot be encoded together")


def _shown(value: object) -> str:
    text = repr(value)
    return f"{text[:60]}…" if len(text) > 60 else text  # noqa: PLR2004
