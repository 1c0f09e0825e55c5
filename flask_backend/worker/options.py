"""The options of a worker."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class WorkerOptions:
    """How long a task may take, how many jobs a worker reserves at a time, and when it ends by itself.

    It ends after ``max_tasks`` jobs, ``kill_grace_s`` after a task's limit, and ``drain_timeout_s`` after the drain
    began. While its supervisor lives, a supervised worker leaves the last two to it: ``lifeline`` is a descriptor that
    becomes readable when the supervisor is gone.
    """

    drain_timeout_s: float
    time_limit_s: float | None = None  # for tasks without a limit of their own
    kill_grace_s: float = 5.0
    max_tasks: int | None = None
    prefetch: int = 1
    lifeline: int | None = None
