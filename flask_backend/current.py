"""The running job, for its task: ``from flask_backend import current_job``."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any, Protocol, cast

from werkzeug.local import LocalProxy

from .broker.stats import JobCounters
from .errors import BrokerError
from .message import scheduled_at
from .retry import Attempts, Retry


class JobLease(Protocol):
    """The part of its holder that a running job uses."""

    def counters(self) -> JobCounters: ...
    def counters_within(self, wait_s: float) -> JobCounters | None: ...
    def touch(self) -> None: ...


class CurrentJob:
    """A job while its task or receiver runs.

    ``id`` is Beanstalkd's id; ``endpoint`` is the task's endpoint in ``queue``, or the name of a receiver's function;
    ``headers`` are the headers of the task's message, with its own ``id``; they may be empty.
    """

    __slots__ = ("_counters", "_lease", "_retry", "endpoint", "has_logged", "headers", "id", "queue")

    def __init__(  # noqa: PLR0913  # a record, created for every job
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
        self.has_logged = False  # whether a log line has named this job
        self._retry = retry
        self._lease = lease
        self._counters: JobCounters | None = None

    @property
    def attempt(self) -> int:
        """The number of this attempt, from 1, as the broker counts.

        The first access asks the broker. Raises :exc:`BrokerConnectionError` if the broker does not answer, and
        :exc:`JobNotFoundError` if the worker no longer holds the job.
        """
        return self._known().attempts.number

    @property
    def will_retry(self) -> bool:
        """Whether another attempt follows if this one raises a retried exception. Raises the errors of ``attempt``."""
        return self._retry.allows_another(self._known().attempts)

    @property
    def age(self) -> float:
        """The seconds since scheduling, by the clocks of both machines. Raises the errors of ``attempt``."""
        if (at := scheduled_at(self.headers)) is not None:
            return max(0.0, time.time() - at)
        return self._lease.counters().age_s

    def touch(self) -> None:
        """Restart the job's TTR. Workers do this on their own; call it to check that the job is still reserved.

        Raises :exc:`JobNotFoundError` if it is not, because the broker gave it to another worker, and
        :exc:`BrokerConnectionError`.
        """
        self._lease.touch()

    def learn(self, counters: JobCounters) -> None:
        """Take the job's counters, so that its attempt stays known when the job is no longer held."""
        self._counters = counters

    @property
    def known_attempts(self) -> Attempts | None:
        """The earlier attempts, if the broker was asked for them."""
        return self._counters.attempts if self._counters else None

    def attempt_for_logs(self) -> int | None:
        """Return the attempt, if the broker answers soon: a log line must neither wait nor fail."""
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

# A proxy like flask.current_app: false if no job is running; using it then raises RuntimeError.
current_job = cast(
    "CurrentJob",
    LocalProxy(
        job_being_run,
        unbound_message="No job is running here: current_job is set in a task or receiver that a worker runs, and "
        "false elsewhere, for example in hello.run().",
    ),
)
