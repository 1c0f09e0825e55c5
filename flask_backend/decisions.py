"""Exceptions that a task raises to decide what happens to its job.

They are not failures: error trackers can skip them by their base class, in Sentry ``ignore_errors=[TaskDecision]``.
"""

from __future__ import annotations

from .durations import Delay, whole_seconds
from .errors import restore_error


class TaskDecision(Exception):  # noqa: N818  # a decision, not an error
    """Base class of the exceptions with which a task decides what happens to its job. Raise its subclasses."""

    reason: str = ""  # for a subclass that does not call our __init__

    def __init__(self, reason: str = "") -> None:
        super().__init__(reason)
        self.reason = reason

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle the exception, so that a process pool can return it to the task that uses the pool."""
        return restore_error, (type(self), self.args), self.__dict__


class RetryLater(TaskDecision):
    """Retry after ``delay``: seconds, a ``timedelta``, or an aware ``datetime``; at least one second.

    This counts as an attempt: the job is buried when the retries of its task are used up. A task that may wait without
    limit needs ``retry=Retry(max_retries=None)``. Raises :exc:`OptionError` for an invalid delay.
    """

    delay_s: int = 1

    def __init__(self, delay: Delay, reason: str = "") -> None:
        super().__init__(reason)
        # A release without delay puts the job at the head of its queue at once.
        self.delay_s = max(1, whole_seconds("delay", delay))


class Bury(TaskDecision):
    """Stop retrying and bury the job, with ``reason``, for a person to look at."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)


class Discard(TaskDecision):
    """Stop retrying and delete the job as if it had succeeded. A log line gives ``reason``."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
