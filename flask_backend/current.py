"""The job that is being run, for the task that runs it: ``from flask_backend import current_job``."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any, Protocol, cast

from werkzeug.local import LocalProxy

from .broker.stats import JobCounters
from .errors import BrokerError
from .message import scheduled_at
from .retry import Retry


class JobLease(Protocol):
    """What a job that is being run needs of who holds it."""

    def counters(self) -> JobCounters: ...
    def counters_within(self, wait_s: float) -> JobCounters | None: ...
    def touch(self) -> None: ...


class CurrentJob:
    """A job while its task or receiver runs.

    ``id`` is Beanstalkd's; ``queue`` and ``endpoint`` say what is run, for a receiver its function's name;
    ``headers`` are those of the task's message, with its own ``id``, empty if it has none.
    """

    __slots__ = ("_counters", "_lease", "_retry", "endpoint", "has_logged", "headers", "id", "queue")

    def __init__(  # noqa: PLR0913  # a record, made for every job
        self,
        id: int,  # noqa: A002  # its name in the public class
        queue: str,
        endpoint: str,
        headers: Mapping[str, Any],
        retry: Retry,
        lease: JobLease,
    ) -> None:
        self.id = id
        self.queue = queue
        self.endpoint = endpoint
        self.headers = headers
        self.has_logged = False  # a line that tells of this job
        self._retry = retry
        self._lease = lease
        self._counters: JobCounters | None = None

    @property
    def attempt(self) -> int:
        """Which attempt this is, from 1, as the broker counts.

        Asked for when it is first wanted: raises :exc:`BrokerConnectionError` if the broker is away by then, and
        :exc:`JobNotFoundError` if the job is no longer held.
        """
        return self._known().attempts.number

    @property
    def will_retry(self) -> bool:
        """Whether another attempt follows if this one raises what is retried. Raises as ``attempt``."""
        return self._retry.allows_another(self._known().attempts)

    @property
    def age(self) -> float:
        """The seconds since it was scheduled, by the clocks of that machine and this one. Raises as ``attempt``."""
        if (at := scheduled_at(self.headers)) is not None:
            return max(0.0, time.time() - at)
        return self._lease.counters().age_s

    def touch(self) -> None:
        """Have the job's time to run start again. Workers do so by themselves; this one tells whether it is still held.

        Raises :exc:`JobNotFoundError` if it is not, since the broker gave it to another worker, and
        :exc:`BrokerConnectionError`.
        """
        self._lease.touch()

    def attempt_for_logs(self) -> int | None:
        """Return the attempt, or None if that cannot be known now: a log line must neither wait nor fail."""
        self.has_logged = True
        if self._counters is None:
            try:
                self._counters = self._lease.counters_within(0.1)
            except BrokerError:
                return None
        return self._counters.attempts.number if self._counters else None

    def _known(self) -> JobCounters:
        if self._counters is None:
            self._counters = self._lease.counters()
        return self._counters

    def __repr__(self) -> str:
        return f"<job {self.id} ({self.endpoint}) of {self.queue}>"


job_being_run: ContextVar[CurrentJob] = ContextVar("flask_backend.current_job")

# A proxy, as flask.current_app: false where no job is being run, and then each use of it raises RuntimeError.
current_job = cast(
    "CurrentJob",
    LocalProxy(
        job_being_run,
        unbound_message="No job is being run here: current_job is there in a task or receiver that a worker runs, and "
        "false elsewhere, for example in hello.run().",
    ),
)
