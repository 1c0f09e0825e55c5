"""The app's functions around each run of a task or receiver, and around each scheduling of a call."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from .errors import MiddlewareError, RegistrationError
from .functions import check_fits, check_function, may_be_async, shown_name

T = TypeVar("T")

# Called with what it is about, a CurrentJob or a ScheduledCall, and with the function that runs the rest.
Middleware = Callable[[Any, Callable[[], Any]], Any]


def check_middleware(decorator: str, function: object, subject: str) -> Middleware:
    """Return the function; raise :exc:`RegistrationError` for one that cannot be middleware.

    ``decorator`` is the decorator as the user types it, ``subject`` the name of the first argument.
    """
    called = check_function(decorator, function)
    check_fits(decorator, called, subject, "proceed")
    if may_be_async(called):
        raise RegistrationError(
            f"{shown_name(called)} is async, and {decorator} calls it as a plain function: write `def`; proceed() also "
            "runs async tasks to their end"
        )
    return called


def compose(
    middleware: Iterable[Middleware], run: Callable[[T], Any], subject_of: Callable[[T], Any]
) -> Callable[[T], Any]:
    """Return ``run`` within the middleware, the first outermost; without any, ``run`` itself.

    ``subject_of`` returns the first argument of the middleware from that of ``run``.
    """
    for each in reversed(list(middleware)):
        run = _around(each, run, subject_of)
    return run


def _around(middleware: Middleware, run: Callable[[T], Any], subject_of: Callable[[T], Any]) -> Callable[[T], Any]:
    name = shown_name(middleware)

    def run_within(argument: T) -> Any:
        has_begun = False

        def proceed() -> Any:
            nonlocal has_begun
            if has_begun:
                raise MiddlewareError(f"the middleware {name} has called proceed() twice")
            has_begun = True
            return run(argument)

        result = middleware(subject_of(argument), proceed)
        if not has_begun:
            raise MiddlewareError(
                f"the middleware {name} has returned without calling proceed(), so nothing was done: call it, or raise "
                "an exception"
            )
        return result

    return run_within
