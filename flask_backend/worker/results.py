"""The results of users' functions: await an asynchronous one, and raise an error for one that has not run."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Generator
from contextlib import suppress
from functools import lru_cache
from typing import Any, cast

from flask_backend.errors import TaskResultError
from flask_backend.functions import may_be_async


def finish(name: str, function: Callable[..., Any], result: object, wait_for: Callable[[Awaitable[Any]], Any]) -> Any:
    """Return the final result of a call of ``function``; ``wait_for`` awaits the result if it is asynchronous.

    Raises :exc:`TaskResultError` for a result that has not run: a generator or an unexpected awaitable.
    """
    if not _may_have_to_run(type(result)):  # type: ignore[arg-type]  # a class is hashable
        return result
    if isinstance(result, Awaitable) and may_be_async(function):
        result = wait_for(result)  # pyright: ignore[reportUnknownArgumentType]
    match result:
        case Generator():
            problem, hint = "a generator", "run it to its end inside the task, for example with `for`"
        case AsyncGenerator():
            problem, hint = "an async generator", "run it to its end in an `async def` task, with `async for`"
        case Coroutine():
            problem, hint = "a coroutine", "make the task `async def`, and `await` the coroutine there"
        case Awaitable():
            problem = f"an awaitable {type(cast('object', result)).__name__}"
            hint = "make the task `async def`, and `await` it there"
        case _:
            return result
    _discard(cast("object", result))
    raise TaskResultError(f"{name}() returned {problem}, which has not run: {hint}")


@lru_cache(maxsize=256)  # takes a fifth of the time of the checks for each job that returns a value
def _may_have_to_run(kind: type) -> bool:
    return issubclass(kind, Generator | AsyncGenerator | Awaitable)


def _discard(unfinished: object) -> None:
    """End an awaitable that is not awaited: Python warns of a coroutine, and a task would overlap the next attempt."""
    end = getattr(unfinished, "close" if isinstance(unfinished, Coroutine | Generator) else "cancel", None)
    if end is not None:
        with suppress(Exception):  # the object's own code may raise anything
            end()
