"""What a task may raise to decide itself what becomes of its job.

They are no failures: error trackers skip them by their one base, ``ignore_errors=[TaskDecision]`` for Sentry's.
"""

from __future__ import annotations

from .durations import Delay, whole_seconds
from .errors import restore_error


class TaskDecision(Exception):  # noqa: N818  # no error: a decision
    """The base of what a task may raise to decide what becomes of its job. Not to be raised itself."""

    reason: str = ""  # of a subclass, too, that does not call our __init__

    def __init__(self, reason: str = "") -> None:
        super().__init__(reason)
        self.reason = reason

    def __reduce__(self) -> tuple[object, ...]:
        """Let a pool of processes carry it back to the task that used the pool."""
        return restore_error, (type(self), self.args), self.__dict__


class RetryLater(TaskDecision):
    """Try again after ``delay``: seconds, a ``timedelta``, or an aware ``datetime``; one second at least.

    It counts as an attempt: when the retries of the task are used up the job is buried. A task that may wait for as
    long as it takes has ``retry=Retry(max_retries=None)``. Raises :exc:`OptionError` for what is no delay.
    """

    delay_s: int = 1

    def __init__(self, delay: Delay, reason: str = "") -> None:
        super().__init__(reason)
        # A release without delay puts the job in front of all others, at once.
        self.delay_s = max(1, whole_seconds("delay", delay))


class Bury(TaskDecision):
    """Try no more: bury the job, with ``reason``, for a person to look at. No retry is left."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)


class Discard(TaskDecision):
    """Try no more: delete the job, for ``reason``, as if it had succeeded. One line of the log tells so."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
