"""The app's functions around each run of a task or receiver."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from flask_backend.current import job_being_run
from flask_backend.errors import MiddlewareError
from flask_backend.functions import shown_name
from flask_backend.registry import Middleware

T = TypeVar("T")


def compose(middleware: Iterable[Middleware], run: Callable[[T], Any]) -> Callable[[T], Any]:
    """Return ``run`` within the middleware, the first outermost; without any, ``run`` itself."""
    for each in reversed(list(middleware)):
        run = _around(each, run)
    return run


def _around(middleware: Middleware, run: Callable[[T], Any]) -> Callable[[T], Any]:
    name = shown_name(middleware)

    def run_within(argument: T) -> Any:
        has_begun = False

        def proceed() -> Any:
            nonlocal has_begun
            if has_begun:
                raise MiddlewareError(f"the middleware {name} has called proceed() twice for one run")
            has_begun = True
            return run(argument)

        result = middleware(job_being_run.get(), proceed)
        if not has_begun:
            raise MiddlewareError(
                f"the middleware {name} has returned without calling proceed(), so the task has not run: call it, or "
                "raise an exception, for example Discard"
            )
        return result

    return run_within
