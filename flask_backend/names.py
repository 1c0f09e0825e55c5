"""Queue names: which ones Beanstalkd accepts as a tube."""

from __future__ import annotations

import hashlib
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


# Our internal tubes: the suffixes and prefixes of their names, and what their jobs are.
_FAILURES = ".failures"
_SCHEDULE = ".schedule"
_CURSOR = "flask-backend.cursor/"
_LIMIT = "flask-backend.limit/"
_BATCH = "flask-backend.batch/"
_LOCK = "flask-backend.lock/"
_USES = {
    _FAILURES: "the story of a buried job",
    _SCHEDULE: "the state of periodic tasks",
    _CURSOR: "the cursor of a task",
    _LIMIT: "the token of a limit",
    _BATCH: "a part of a batch",
    _LOCK: "a lock",
}
_MAX_WORKED_BYTES = _MAX_BYTES - max(len(_FAILURES), len(_SCHEDULE))


def failures_tube(queue: str) -> str:
    return queue + _FAILURES


def is_failures_tube(tube: str) -> bool:
    return tube.endswith(_FAILURES)


def schedule_tube(queue: str) -> str:
    """Return the tube of the state of a queue's periodic tasks."""
    return queue + _SCHEDULE


def is_schedule_tube(tube: str) -> bool:
    return tube.endswith(_SCHEDULE)


def cursor_tube(name: str) -> str:
    return _CURSOR + name


def is_cursor_tube(tube: str) -> bool:
    return tube.startswith(_CURSOR)


def limit_tube(name: str) -> str:
    return _LIMIT + name


def is_limit_tube(tube: str) -> bool:
    return tube.startswith(_LIMIT)


def batch_tube(batch: str) -> str:
    return _BATCH + batch


def is_batch_tube(tube: str) -> bool:
    return tube.startswith(_BATCH)


def batch_of_tube(tube: str) -> str:
    return tube.removeprefix(_BATCH)


def lock_tube(name: str) -> str:
    """Return the tube of a lock. ``name`` may be the name of any tube."""
    is_short = len(name) <= _MAX_BYTES - len(_LOCK)
    return _LOCK + (name if is_short else hashlib.sha256(name.encode()).hexdigest())


def internal_use(tube: str) -> str | None:
    """Return what a job in one of our internal tubes is, and None for any other tube."""
    affix = _internal_affix(tube)
    return affix and _USES[affix]


def is_internal_tube(tube: str) -> bool:
    """Whether a tube is for our own use: its jobs are not tasks."""
    return _internal_affix(tube) is not None


def _internal_affix(tube: str) -> str | None:
    for affix in _USES:
        if tube.endswith(affix) if affix.startswith(".") else tube.startswith(affix):
            return affix
    return None


def is_queue_name(name: str) -> bool:
    return _TUBE.fullmatch(name) is not None


def check_worked_queue_name(name: str) -> str:
    """Return ``name`` if workers can serve that queue: the internal tubes beside it must have valid names too."""
    check_queue_name(name)
    if (affix := _internal_affix(name)) is not None:
        raise QueueNameError(f"{name!r}: names with {affix} are reserved: each job there is {_USES[affix]}")
    if len(name) > _MAX_WORKED_BYTES:
        raise QueueNameError(
            f"{name[:60]!r}… ({len(name)} bytes) is too long for a queue with workers: use at most {_MAX_WORKED_BYTES}"
        )
    return name
