"""What can be registered: a callable's name, its own signature, and why some callables cannot work. Pure."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import FunctionType, MethodType, WrapperDescriptorType
from typing import Any, cast

from .errors import RegistrationError, TaskArgumentsError
from .message import show_value


def signature_of(function: Callable[..., Any]) -> inspect.Signature:
    """Return the signature that a call has to fit: the callable's own, whatever it wraps.

    A decorator may take or give arguments, and ``functools.wraps`` does not say so. Some callables of C code have no
    signature: then the function that they wrap counts, and without one the call is not checked.
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
    """Give each argument of a call its parameter; raise :exc:`TaskArgumentsError` if they do not fit."""
    try:
        return signature.bind(*args, **kwargs)
    except TypeError as error:
        raise TaskArgumentsError(f"{endpoint}{signature} cannot be called with these arguments: {error}") from None


def name_of(function: object) -> str | None:
    """Return the name of a callable; None for one without, as a partial or an object with ``__call__``."""
    name = getattr(function, "__name__", None)
    return name if isinstance(name, str) and name else None


def shown_name(function: object) -> str:
    """Return a name to show: of a partial that of its function, of an object that of its class."""
    name = name_of(function)
    if name is None and isinstance(function, functools.partial):
        return shown_name(cast("functools.partial[object]", function).func)
    return name or type(function).__name__


def check_function(decorator: str, function: object) -> Callable[..., Any]:
    """Return what a worker is to call, or raise :exc:`RegistrationError` for what it could not call.

    ``decorator`` is the decorator as the user types it. A ``staticmethod`` gives its function.
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
            f"{function.__name__} is a class, and a worker would only make an object of it: write {decorator} above "
            "a function that makes the object and calls it"
        )
    if not callable(function):
        raise RegistrationError(f"{decorator} expects a function, and got {show_value(function)}")
    if any(inspect.isgeneratorfunction(each) or inspect.isasyncgenfunction(each) for each in _chain(function, _called)):
        raise RegistrationError(
            f"{shown_name(function)} is a generator function, and a worker's call would run nothing of its body: "
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

    This is so if it, or a function that it wraps or partially applies, is ``async def``.
    """
    return any(
        inspect.iscoroutinefunction(each) or hasattr(each, "_is_coroutine")  # asyncio's own mark, until Python 3.11
        for each in _chain(function, _called_or_wrapped)
    )


def _is_method(function: object) -> bool:
    """Whether a function expects an object of the class that it is defined in, by the name of its first parameter.

    The class itself cannot be asked: it may still make a static method of what the decorator returns.
    """
    if not isinstance(function, FunctionType):
        return isinstance(function, classmethod)
    owner = function.__qualname__.rpartition(".")[0]
    first = next(iter(inspect.signature(function).parameters), None)  # of the method itself, below its decorators
    return owner != "" and not owner.endswith("<locals>") and first in _OBJECTS


_OBJECTS = {"self", "_self", "this", "cls", "_cls"}


def _chain(function: object, following: Callable[[object], Iterator[object]]) -> Iterator[object]:
    """Return ``function`` and everything that ``following`` leads to from there, each once."""
    left, seen = [function], set[int]()
    while left:
        each = left.pop()
        if id(each) not in seen:
            seen.add(id(each))
            yield each
            left += following(each)


def _called(function: object) -> Iterator[object]:
    """Return what a call of ``function`` calls without any code in between."""
    match function:
        case functools.partial(func=inner) | MethodType(__func__=inner) | staticmethod(__func__=inner):
            yield inner
        case _:
            call = getattr(type(function), "__call__", None)  # noqa: B004  # which one, not whether
            if call is not None and not isinstance(call, WrapperDescriptorType):
                yield call


def _called_or_wrapped(function: object) -> Iterator[object]:
    yield from _called(function)
    if (wrapped := getattr(function, "__wrapped__", None)) is not None:
        yield wrapped
