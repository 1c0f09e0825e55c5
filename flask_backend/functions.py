"""Callables that can be registered: their name, their signature, and why some cannot work. Pure."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import FunctionType, MethodType, WrapperDescriptorType
from typing import Any, cast

from .errors import RegistrationError, TaskArgumentsError
from .message import show_value


def signature_of(function: Callable[..., Any]) -> inspect.Signature:
    """Return the signature that a call has to fit: the callable's own, not that of a function it wraps.

    A decorator may add or remove arguments, which ``functools.wraps`` does not record. Some callables in C have no
    signature: then the signature of the function that they wrap is used. Without one, calls are not checked.
    """
    for follow in (False, True):
        try:
            return inspect.signature(function, follow_wrapped=follow)
        except ValueError:
            pass
    return _ANY_ARGUMENTS


_ANY_ARGUMENTS = inspect.Signature(
    [
        inspect.Parameter("args", inspect.Parameter.VAR_POSITIONAL),
        inspect.Parameter("kwargs", inspect.Parameter.VAR_KEYWORD),
    ]
)


def bind(
    endpoint: str, signature: inspect.Signature, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> inspect.BoundArguments:
    """Bind the arguments of a call to the parameters; raise :exc:`TaskArgumentsError` if they do not fit."""
    try:
        return signature.bind(*args, **kwargs)
    except TypeError as error:
        raise TaskArgumentsError(f"{endpoint}{signature} cannot be called with these arguments: {error}") from None


def parameters_of(function: Callable[..., Any]) -> list[str]:
    """Return the names of the parameters of a callable that positional arguments fill, in their order."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return [each.name for each in signature_of(function).parameters.values() if each.kind in kinds]


def name_of(function: object) -> str | None:
    """Return the name of a callable, if any: a partial and an object with ``__call__`` lack one."""
    name = getattr(function, "__name__", None)
    return name if isinstance(name, str) and name else None


def shown_name(function: object) -> str:
    """Return a name for messages: for a partial its function's name, for an object its class's name."""
    name = name_of(function)
    if name is None and isinstance(function, functools.partial):
        return shown_name(cast("functools.partial[object]", function).func)
    return name or type(function).__name__


def check_function(decorator: str, function: object) -> Callable[..., Any]:
    """Return the function that a worker calls; raise :exc:`RegistrationError` if it cannot call ``function``.

    ``decorator`` is the decorator as the user types it. For a ``staticmethod`` its function is returned.
    """
    if isinstance(function, staticmethod):
        function = cast("staticmethod[..., object]", function).__func__
    elif _is_method(function):
        name = getattr(function, "__qualname__", shown_name(function))
        raise RegistrationError(
            f"{name} is a method, and a worker has no object to call it on: write "
            f"@staticmethod between {decorator} and `def`, and leave out self or cls; or move the function out of the "
            "class"
        )
    if isinstance(function, type):
        raise RegistrationError(
            f"{function.__name__} is a class, and a worker would only create an instance: write {decorator} above "
            "a function that creates the instance and calls it"
        )
    if not callable(function):
        raise RegistrationError(f"{decorator} expects a function, got {show_value(function)}")
    if any(inspect.isgeneratorfunction(each) or inspect.isasyncgenfunction(each) for each in _chain(function, _called)):
        raise RegistrationError(
            f"{shown_name(function)} is a generator function, and a worker's call would not run its body: "
            f"remove the `yield`, or put a decorator that runs the generator to its end between {decorator} and `def`"
        )
    return function


def check_fits(decorator: str, function: Callable[..., Any], *args: str) -> None:
    """Raise :exc:`RegistrationError` if a worker's call with these arguments does not fit the function."""
    signature = signature_of(function)
    try:
        signature.bind(*args)
    except TypeError as error:
        call = f"{shown_name(function)}({', '.join(args)})"
        raise RegistrationError(
            f"{decorator}: workers call {call}, which {shown_name(function)}{signature} does not take: {error}"
        ) from None


def may_be_async(function: Callable[..., Any]) -> bool:
    """Whether a call of ``function`` may return an awaitable that the caller is expected to await.

    True if it, or a function that it wraps or partially applies, is ``async def``.
    """
    return any(
        inspect.iscoroutinefunction(each) or hasattr(each, "_is_coroutine")  # asyncio's own marker, until Python 3.11
        for each in _chain(function, _called_or_wrapped)
    )


def _is_method(function: object) -> bool:
    """Whether a function expects an instance of the class that defines it, by the name of its first parameter.

    The class does not exist yet, and may still make a static method of the decorator's result.
    """
    if not isinstance(function, FunctionType):
        return isinstance(function, classmethod)
    owner = function.__qualname__.rpartition(".")[0]
    first = next(iter(inspect.signature(function).parameters), None)  # of the method itself, under its decorators
    return owner != "" and not owner.endswith("<locals>") and first in _OBJECTS


_OBJECTS = {"self", "_self", "this", "cls", "_cls"}


def _chain(function: object, following: Callable[[object], Iterator[object]]) -> Iterator[object]:
    """Yield ``function`` and every callable that ``following`` reaches from it, each once."""
    left, seen = [function], set[int]()
    while left:
        each = left.pop()
        if id(each) not in seen:
            seen.add(id(each))
            yield each
            left += following(each)


def _called(function: object) -> Iterator[object]:
    """Yield the callable that a call of ``function`` calls directly, if any."""
    match function:
        case functools.partial(func=inner) | MethodType(__func__=inner) | staticmethod(__func__=inner):
            yield inner
        case _:
            call = getattr(type(function), "__call__", None)  # noqa: B004  # the method itself is needed
            if call is not None and not isinstance(call, WrapperDescriptorType):
                yield call


def _called_or_wrapped(function: object) -> Iterator[object]:
    yield from _called(function)
    if (wrapped := getattr(function, "__wrapped__", None)) is not None:
        yield wrapped
