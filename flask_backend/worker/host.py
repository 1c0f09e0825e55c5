"""Who runs a worker: what the worker tells it, and the host of one that nobody supervises."""

from __future__ import annotations

from typing import Protocol

from flask_backend.outcome import Ending
from flask_backend.system.loggers import get_logger
from flask_backend.system.titles import show_worker

logger = get_logger("flask_backend.worker")

# For a worker that may be silent for as long as the network has it wait; half of what the scoreboard's words can hold.
UNBOUNDED_NS = 1 << 63


class Host(Protocol):
    """What a worker tells whoever runs it."""

    def accept_signals(self) -> None:
        """Hear that the worker has installed its signal handlers."""

    def ready(self) -> None:
        """Hear that the hooks have run and that the worker is about to reserve."""

    def lend(self, fd: int) -> None:
        """Get a duplicate of the connection to the broker, before the first job comes over it."""

    def live(self, silent_ns: int = 0) -> None:
        """Hear that the worker's loop turns, and for how much longer than usual it may be silent from now on."""

    def was_told_to_drain(self) -> bool:
        """Say whether the worker is to drain, even if the signal for that has not reached it."""
        ...

    def heard_drain(self) -> None:
        """Hear that the worker drains."""

    def begin(self, job_id: int) -> None:
        """Hear that a job is there."""

    def run(self, label: str, kill_at: float | None) -> None:
        """Hear what the job is, and when the process may be killed for it, in seconds of the monotonic clock."""

    def end(self, ending: Ending | None) -> None:
        """Hear how the job was settled; None if it was not, or not by this worker."""

    def leaving(self) -> None:
        """Hear that the worker holds no job and has no connection any more."""

    def recycle_due(self) -> None:
        """Hear that the worker has done as many jobs as it should, and asks to be drained."""

    def show(self, activity: str) -> None:
        """Tell in the process title what the worker does; an empty text for nothing."""


class Foreground:
    """The host of a worker that nobody supervises."""

    def __init__(self, queue: str) -> None:
        self._queue = queue

    def accept_signals(self) -> None:
        pass

    def ready(self) -> None:
        self.show("")
        logger.info("ready: %s", self._queue)

    def lend(self, fd: int) -> None:
        pass

    def live(self, silent_ns: int = 0) -> None:
        pass

    def was_told_to_drain(self) -> bool:
        return False

    def heard_drain(self) -> None:
        pass

    def begin(self, job_id: int) -> None:
        pass

    def run(self, label: str, kill_at: float | None) -> None:
        pass

    def end(self, ending: Ending | None) -> None:
        pass

    def leaving(self) -> None:
        self.show("ending")

    def recycle_due(self) -> None:
        pass

    def show(self, activity: str) -> None:
        show_worker(self._queue, activity)
