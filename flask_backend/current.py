"""The running job, for its task: ``from flask_backend import current_job``."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from contextvars import ContextVar
from typing import Any, Protocol, cast

from flask import has_app_context
from flask.globals import app_ctx
from werkzeug.local import LocalProxy

from .broker import cursors
from .broker.batches import batch_of
from .broker.cursors import Cursor, CursorConnection, Owner
from .broker.stats import JobCounters
from .errors import BrokerError, CheckpointError, JobNotFoundError, OptionError, TaskInterrupted
from .message import decode_json, scheduled_at, show_value
from .retry import Attempts, Retry
from .system.loggers import get_logger
from .transactions import find_written_session

logger = get_logger("flask_backend.worker")

# How often a cursor is saved. A task that dies repeats at most what it has done in that time.
SAVE_EVERY_S = 5.0


class JobLease(Protocol):
    """The part of its holder that a running job uses."""

    def counters(self) -> JobCounters: ...
    def counters_within(self, wait_s: float) -> JobCounters | None: ...
    def touch(self) -> None: ...
    def keeping(self) -> AbstractContextManager[CursorConnection] | None:
        """Return a connection for cursors; None where they are not kept."""
        ...

    def progress(self, done: int, total: int) -> None: ...
    def is_leaving(self) -> bool:
        """Whether the worker is to stop or has lost the job, so that the task must leave at its checkpoint."""
        ...


_NO_CURSOR = b"null"


class _Checkpoints:
    """The cursor of a running job: the one that is kept, and the newest one."""

    def __init__(self, lease: JobLease, owner: Owner) -> None:
        self.owner = owner
        self.has_left = False  # the task was left at a checkpoint
        self._lease = lease
        self._kept: Cursor | None = None
        self._loaded_from: CursorConnection | None = None
        self._newest = _NO_CURSOR  # as JSON: the task may change an object that it has passed
        self._is_unsaved = False
        self._save_at = time.monotonic() + SAVE_EVERY_S
        self._is_warned = False

    @property
    def is_kept(self) -> bool:
        return self._kept is not None

    def cursor(self) -> Any:
        if not self._is_unsaved and (keeping := self._lease.keeping()) is not None:
            with keeping as connection:
                self._load(connection)
        return decode_json(self._newest)

    def reach(self, cursor: Any) -> None:
        self._newest, self._is_unsaved = cursors.encode(cursor), True
        is_leaving = self._lease.is_leaving()
        if (is_leaving or time.monotonic() >= self._save_at) and self._try_to_save() and is_leaving:
            self.has_left = True
            raise TaskInterrupted("the worker is to stop: the task goes on at this checkpoint in another one")

    def save(self) -> None:
        """Save the newest cursor, if it is not kept yet."""
        if self._is_unsaved and (keeping := self._lease.keeping()) is not None:
            with keeping as connection:
                self._load(connection)
                self._kept = cursors.save(connection, self.owner, decode_json(self._newest), self._kept)
            self._is_unsaved = False
        self._save_at = time.monotonic() + SAVE_EVERY_S

    def _try_to_save(self) -> bool:
        try:
            self.save()
        except JobNotFoundError:
            raise
        except BrokerError as error:  # the task goes on meanwhile
            self._save_at = time.monotonic() + SAVE_EVERY_S
            if not self._is_warned:
                logger.warning("the cursor of job %d is not saved: %s", self.owner.job, error)
            self._is_warned = True
            return False
        return True

    def _load(self, connection: CursorConnection) -> None:
        if self._loaded_from is connection:
            return
        self._kept = cursors.load(connection, self.owner)
        # On a new connection it is read again: before the job was reserved again, another worker may have had it, and a
        # cursor may have been kept whose reply was lost.
        if self._loaded_from is None and self._kept is not None and not self._is_unsaved:
            self._newest = cursors.encode(self._kept.value)
        self._loaded_from = connection


class CurrentJob:
    """A job while its task or receiver runs.

    ``id`` is Beanstalkd's id; ``endpoint`` is the task's endpoint in ``queue``, or the name of a receiver's function;
    ``headers`` are the headers of the task's message, with its own ``id``; they may be empty.
    """

    __slots__ = ("_checkpoints", "_counters", "_lease", "_retry", "endpoint", "has_logged", "headers", "id", "queue")

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
        self._checkpoints: _Checkpoints | None = None

    @property
    def attempt(self) -> int:
        """The number of this attempt, from 1, as the broker counts.

        The first access asks the broker. Raises :exc:`BrokerConnectionError` if the broker does not answer, and
        :exc:`JobNotFoundError` if the worker no longer holds the job.
        """
        return self._known().attempts.number

    @property
    def batch(self) -> str | None:
        """The id of the batch that the job belongs to, or whose callback it is; None for other jobs."""
        return batch_of(self.headers)

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

    @property
    def cursor(self) -> Any:
        """The newest cursor given to :meth:`checkpoint`, also by an earlier run of this job; None without one.

        The first access asks the broker. Raises :exc:`BrokerConnectionError` if it does not answer, and
        :exc:`JobNotFoundError` if the worker no longer holds the job. In ``sync://`` and ``run()`` it is None.
        """
        return self._checkpointed().cursor()

    def checkpoint(self, cursor: Any) -> None:
        """Record how far the task has come. If its worker must stop, the task is left here and continues in another.

        ``cursor`` is JSON of at most 8 KB, for example the key of the last row that was done: commit that first. It is
        saved at most every 5 seconds, before the task is left, and when it fails. So a task that was left, killed,
        stopped at its time limit or retried continues at its last saved ``cursor``; later work runs again.

        The task is left by raising :exc:`TaskInterrupted`, which ``except Exception`` does not catch. It is the same
        job afterwards, and no attempt is counted. Raises :exc:`MessageEncodeError` for another cursor, and
        :exc:`JobNotFoundError` if the worker no longer holds the job, so that another one may run it. A broker that is
        away is logged, and the task goes on. Raises :exc:`CheckpointError`, each time, if the session of the app's
        Flask-SQLAlchemy has changes that are not committed. In ``sync://`` and ``run()`` a checkpoint does nothing.
        """
        _check_committed()
        self._checkpointed().reach(cursor)

    def progress(self, done: int, total: int) -> None:
        """Show how much of its work the task has done, such as 3 of 10: in ``status``, ``top`` and the process title.

        It costs less than a microsecond, and the broker is not asked. Both are whole numbers from 0. Raises
        :exc:`OptionError` for others. In ``memory://``, ``sync://`` and ``run()`` it only checks them.
        """
        check_progress(done, total)
        self._lease.progress(done, total)

    @property
    def checkpoints(self) -> _Checkpoints | None:
        """For the worker: what the task has done with its cursor, if anything."""
        return self._checkpoints

    def _checkpointed(self) -> _Checkpoints:
        if self._checkpoints is None:
            self._checkpoints = _Checkpoints(self._lease, self.cursor_owner)
        return self._checkpoints

    @property
    def cursor_owner(self) -> Owner:
        return Owner.with_headers(self.id, self.queue, self.headers)

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

_NO_JOB = (
    "No job is running here: current_job is set in a task or receiver that a worker runs, and false elsewhere, for "
    "example in hello.run()."
)

# A proxy like flask.current_app: false if no job is running; using it then raises RuntimeError.
current_job = cast("CurrentJob", LocalProxy(job_being_run, unbound_message=_NO_JOB))


def _check_committed() -> None:
    """Raise :exc:`CheckpointError` if the app has changes in its database that are not committed."""
    if has_app_context() and find_written_session(app_ctx.app) is not None:
        raise CheckpointError(
            "the session has changes that are not committed: commit what the cursor covers before the checkpoint, or a "
            "task that is left here would lose them"
        )


_MOST = 2**63  # it is shown from a word of 64 bits


def check_progress(done: int, total: int) -> None:
    for name, number in (("done", done), ("total", total)):
        if type(number) is not int or not 0 <= number < _MOST:
            raise OptionError(f"progress: {name} is {show_value(number)}; expected a whole number from 0")


class _JobAround:
    """The current job inside ``hello.run()``: that of the calling task, if any, but without its cursor and progress."""

    __slots__ = ("_job",)

    def __init__(self, job: CurrentJob | None) -> None:
        self._job = job

    cursor = None

    def checkpoint(self, cursor: Any) -> None:
        cursors.encode(cursor)

    def progress(self, done: int, total: int) -> None:
        check_progress(done, total)

    def __getattr__(self, name: str) -> Any:
        if self._job is None:
            raise RuntimeError(_NO_JOB)
        return getattr(self._job, name)

    def __bool__(self) -> bool:
        return bool(self._job)

    def __repr__(self) -> str:
        return repr(self._job) if self._job else "<no job>"


def job_inside_run() -> CurrentJob:
    """Return the current job for a function that ``run()`` calls."""
    return cast("CurrentJob", _JobAround(job_being_run.get(None)))
