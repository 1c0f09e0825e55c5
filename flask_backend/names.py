"""Queue names: which ones Beanstalkd accepts as a tube."""

from __future__ import annotations

import re

from .errors import QueueNameError

# doc/protocol.txt of beanstalkd: letters, digits and these, at most 200 bytes, no leading hyphen.
_MAX_BYTES = 200
_TUBE = re.compile(r"[A-Za-z0-9+/;.$_()][A-Za-z0-9+/;.$_()-]{0,199}")


def check_queue_name(name: str) -> str:
    """Return ``name`` if it can be a tube, else raise :exc:`QueueNameError`.

    The check also protects the connection: beanstalkd would read a line break in a name as the start of a command.
    """
    if not isinstance(name, str):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise QueueNameError(f"a queue name must be a string, got {type(name).__name__}: {name!r}")
    if _TUBE.fullmatch(name) is None:
        size = len(name.encode(errors="replace"))
        shown = f"{name[:60]!r}… ({size} bytes)" if size > _MAX_BYTES else repr(name)
        raise QueueNameError(
            f"{shown} cannot be a queue name: use 1 to 200 letters, digits and -+/;.$_() "
            "without a leading hyphen, for example 'com.example/default'"
        )
    return name


# The suffix of the tube that keeps the stories of a queue's buried jobs.
_FAILURES = ".failures"


def failures_tube(queue: str) -> str:
    return queue + _FAILURES


def is_failures_tube(tube: str) -> bool:
    return tube.endswith(_FAILURES)


# The beginning of the tubes that keep the cursors of unfinished jobs.
_CURSORS = "flask-backend.cursor/"


def cursor_tube(name: str) -> str:
    return _CURSORS + name


def is_cursor_tube(tube: str) -> bool:
    return tube.startswith(_CURSORS)


def is_internal_tube(tube: str) -> bool:
    """Whether a tube is for our own use: its jobs are not tasks."""
    return is_failures_tube(tube) or is_cursor_tube(tube)


def is_queue_name(name: str) -> bool:
    return _TUBE.fullmatch(name) is not None


def check_worked_queue_name(name: str) -> str:
    """Return ``name`` if workers can serve that queue: its failures tube must have a valid name too."""
    check_queue_name(name)
    if is_failures_tube(name):
        raise QueueNameError(f"{name!r}: names that end in {_FAILURES} are reserved for the stories of buried jobs")
    if is_cursor_tube(name):
        raise QueueNameError(f"{name!r}: names that begin with {_CURSORS} are reserved for the cursors of tasks")
    if len(name) > _MAX_BYTES - len(_FAILURES):
        raise QueueNameError(
            f"{name[:60]!r}… ({len(name)} bytes) is too long for a queue with workers: "
            f"use at most {_MAX_BYTES - len(_FAILURES)}"
        )
    return name
