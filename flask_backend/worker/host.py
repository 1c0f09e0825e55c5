"""The interface from a worker to the program that runs it, and its implementation for an unsupervised worker."""

from __future__ import annotations

from typing import Protocol

from flask_backend.outcome import Ending
from flask_backend.system.loggers import get_logger
from flask_backend.system.titles import show_worker

from . import wording

logger = get_logger("flask_backend.worker")

# For a worker that may be silent as long as the network makes it wait: half the range of the scoreboard's words.
UNBOUNDED_NS = 1 << 63


class Host(Protocol):
    """The events that a worker reports to its host, the program that runs it."""

    def accept_signals(self) -> None:
        """Record that the worker has installed its signal handlers."""

    def ready(self) -> None:
        """Record that the hooks have run and the worker is about to reserve."""

    def lend(self, fd: int) -> None:
        """Take a duplicate of the connection to the broker, before the first job arrives on it."""

    def live(self, silent_ns: int = 0) -> None:
        """Record a turn of the worker's loop, which may now be silent for ``silent_ns`` longer than usual."""

    def show_broker(self, *, is_away: bool) -> None:
        """Record that the broker is away, or back."""

    def show_limit(self, *, is_waiting: bool) -> None:
        """Record that the worker waits for a limit before it starts its job, or no longer does."""

    def was_told_to_drain(self) -> bool:
        """Return whether the worker must drain, even if the signal for it has not arrived."""
        ...

    def heard_drain(self) -> None:
        """Record that the worker drains."""

    def begin(self, job_id: int) -> None:
        """Record that the worker has begun a job."""

    def run(self, label: str, kill_at: float | None) -> None:
        """Record the job's call, and when its process may be killed, in seconds on the monotonic clock."""

    def progress(self, done: int, total: int) -> None:
        """Record how much of its work the task has done, as it says itself."""

    def end(self, ending: Ending | None) -> None:
        """Record how the job was settled, if this worker has settled it."""

    def count_wait(self, label: str, waited_us: int, jobs: int) -> None:
        """Record that jobs have waited so long for their first attempt."""

    def leaving(self) -> None:
        """Record that the worker no longer holds a job or a connection."""

    def recycle_due(self) -> None:
        """Record that the worker has done ``max_tasks`` jobs and asks to be drained."""

    def show(self, activity: str) -> None:
        """Show the worker's activity in the process title; an empty text means idle."""


class Foreground:
    """The host of an unsupervised worker."""

    def __init__(self, queue: str) -> None:
        self._queue = queue

    def accept_signals(self) -> None:
        pass

    def ready(self) -> None:
        self.show("")
        logger.info(wording.READY, self._queue)

    def lend(self, fd: int) -> None:
        pass

    def live(self, silent_ns: int = 0) -> None:
        pass

    def show_broker(self, *, is_away: bool) -> None:
        pass

    def show_limit(self, *, is_waiting: bool) -> None:
        pass

    def was_told_to_drain(self) -> bool:
        return False

    def heard_drain(self) -> None:
        pass

    def begin(self, job_id: int) -> None:
        pass

    def run(self, label: str, kill_at: float | None) -> None:
        pass

    def progress(self, done: int, total: int) -> None:
        pass

    def end(self, ending: Ending | None) -> None:
        pass

    def count_wait(self, label: str, waited_us: int, jobs: int) -> None:
        pass

    def leaving(self) -> None:
        self.show("ending")

    def recycle_due(self) -> None:
        pass

    def show(self, activity: str) -> None:
        show_worker(self._queue, activity)
