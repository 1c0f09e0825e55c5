"""The results of scheduling: one job, or many."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import NoReturn, Protocol, overload

from .bulk import BulkOutcome
from .durations import exact_seconds
from .errors import BackendError, OptionError, restore_error
from .message import show_value


class JobState(StrEnum):
    """The state of a job. ``DONE`` means that the server does not have it: it was finished, cancelled or deleted.

    Two are of calls with ``after_commit``, and of those in a batch: ``UNSENT`` before they are sent, or if the broker
    did not take them, and ``DROPPED`` after a rollback, or if the batch was not sent.
    """

    READY = "ready"
    DELAYED = "delayed"
    RESERVED = "reserved"
    BURIED = "buried"
    DONE = "done"
    UNSENT = "unsent"
    DROPPED = "dropped"


_LAST_STATES = (JobState.DONE, JobState.BURIED)


class JobControl(Protocol):
    """The part of its producer that a job uses."""

    @property
    def uri(self) -> str: ...
    def state(self, queue: str, job_id: int, uid: str | None) -> str | None: ...
    def cancel(self, queue: str, job_id: int, uid: str | None) -> bool: ...
    def runs_elsewhere(self) -> bool: ...


# How long a wait pauses between two questions to the server: it begins with the first and doubles up to the second.
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.05, 1.0


@dataclass(frozen=True, slots=True)
class Job:
    """A job that Beanstalkd has accepted: its ``queue``, and ``id``, the number that Beanstalkd gave it.

    ``uid`` is the id in a task's message, a string; unlike ``id`` it is never reused. It is None for a message to
    another system. ``broker`` is the URI of the server that has the job: each server counts its ids itself. A pickled
    job keeps only these four: after unpickling it has no connection to query.
    """

    queue: str
    id: int
    uid: str | None = field(default=None, compare=False)
    broker: str | None = field(default=None, repr=False)
    _control: JobControl | None = field(default=None, compare=False, repr=False)

    def state(self) -> JobState:
        """Ask the server for the current state of the job.

        Raises :exc:`BrokerConnectionError` if the server does not answer.
        """
        state = self._asked().state(self.queue, self.id, self.uid)
        return JobState.DONE if state is None else JobState(state)

    def cancel(self) -> bool:
        """Delete the job unless a worker has it; return whether it was deleted, and so does not run (again).

        Also deletes a job that waits for its retry, or is buried. Raises :exc:`BrokerConnectionError` if the server
        does not answer: the job may or may not be deleted.
        """
        return self._asked().cancel(self.queue, self.id, self.uid)

    def wait(self, timeout: float | timedelta) -> JobState:
        """Wait until the job is done or buried, at most for ``timeout``, seconds or a ``timedelta``; return its state.

        For scripts and tests; a request that waits occupies its process. ``JobState.DONE`` says only that the server no
        longer has the job, not that its task has succeeded. The server is asked after 50 ms, then less and less often,
        at least each second; with a ``timeout`` of 0, once. Raises :exc:`TimeoutError`, which names the last state, at
        once if the job is in ``memory://`` and no other thread drains it; :exc:`OptionError` for an invalid
        ``timeout``; and :exc:`BrokerConnectionError` if the server does not answer.
        """
        timeout_s = exact_seconds("timeout", timeout)
        if timeout_s < 0 or isinstance(timeout, datetime):
            raise OptionError(f"timeout is {show_value(timeout)}; expected seconds or a timedelta, 0 or more")
        until = time.monotonic() + timeout_s
        pause_s = _FIRST_PAUSE_S
        while (state := self.state()) not in _LAST_STATES:
            if not self._asked().runs_elsewhere():
                raise TimeoutError(
                    f"job {self.id} of {self.queue} is {state}, and in memory:// it runs only in drain(): call "
                    "testing.drain() before wait()"
                )
            left_s = until - time.monotonic()
            if left_s <= 0:
                raise TimeoutError(f"job {self.id} of {self.queue} is {state} after {timeout_s:g} s")
            time.sleep(min(pause_s, left_s))  # between two questions: the server does not tell of changes
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
        return state

    def _asked(self) -> JobControl:
        if self._control is None:
            raise TypeError(f"{self!r} was not scheduled by this process: it has no connection to query")
        return self._control

    def __reduce__(self) -> tuple[object, ...]:
        return Job, (self.queue, self.id, self.uid, self.broker)

    def __copy__(self) -> Job:
        return self

    def __deepcopy__(self, _memo: object) -> Job:
        return self

    def __bool__(self) -> NoReturn:  # noqa: PLE0304  # it always raises
        self._refuse()

    def _refuse(self, *_: object) -> NoReturn:
        raise TypeError(
            f"{self!r} is a scheduled job, not the return value of its task: the task has not run yet. "
            "Compare with None, call its state(), or call the task's run() to run it here"
        )


# Set here and not defined in the class, so that type checkers still reject these operations.
for _name in (
    *("add", "radd", "sub", "rsub", "mul", "rmul", "truediv", "rtruediv", "floordiv", "rfloordiv", "mod", "rmod"),
    *("pow", "rpow", "neg", "pos", "abs", "int", "float", "index", "round", "lt", "le", "gt", "ge"),
    *("and", "rand", "or", "ror", "xor", "rxor", "lshift", "rlshift", "rshift", "rrshift"),
    *("iter", "len", "getitem", "contains", "await"),
):
    setattr(Job, f"__{_name}__", Job._refuse)  # noqa: SLF001  # its own  # pyright: ignore[reportPrivateUsage]


class PendingCall(Protocol):
    """The part of a call that is not sent yet which its job uses."""

    @property
    def queue(self) -> str: ...
    @property
    def uid(self) -> str | None: ...
    @property
    def broker(self) -> str: ...
    @property
    def job(self) -> Job | None: ...
    @property
    def state(self) -> JobState: ...
    @property
    def waits_for(self) -> str: ...
    def withdraw(self) -> bool: ...


class DeferredJob(Job):
    """The job of a call that waits for a commit, or for the end of its batch. ``id`` is known once it is sent."""

    __slots__ = ("_call",)
    _call: PendingCall

    def __init__(self, call: PendingCall) -> None:
        for name, value in (("queue", call.queue), ("uid", call.uid), ("broker", call.broker), ("_call", call)):
            object.__setattr__(self, name, value)

    @property
    def id(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Beanstalkd's number. Raises :exc:`RuntimeError` before the call is sent."""
        return self._sent().id

    def state(self) -> JobState:
        return self._call.state if self._call.job is None else self._call.job.state()

    def cancel(self) -> bool:
        return self._call.withdraw() if self._call.job is None else self._call.job.cancel()

    def wait(self, timeout: float | timedelta) -> JobState:
        if self._call.job is not None:
            return self._call.job.wait(timeout)
        if self._call.state is JobState.DROPPED:
            return JobState.DROPPED
        raise TimeoutError(f"{self!r}: call wait() after that")

    def _sent(self) -> Job:
        if self._call.job is None:
            raise RuntimeError(f"{self!r}, and so has no id: use its uid")
        return self._call.job

    def __eq__(self, other: object) -> bool:
        return isinstance(other, DeferredJob) and other._call is self._call

    def __hash__(self) -> int:
        return hash(id(self._call))

    def __reduce__(self) -> tuple[object, ...]:
        return self._sent().__reduce__()

    def __repr__(self) -> str:
        if self._call.job is not None:
            return repr(self._call.job)
        waits = f"it waits for {self._call.waits_for}"
        return f"<job {self.uid or 'without uid'} of {self.queue} is {self._call.state}: {waits}>"


@dataclass(frozen=True, slots=True)
class BulkCall:
    """The jobs of many items, each created on access."""

    queue: str
    outcome: BulkOutcome
    control: JobControl
    uid_prefix: str | None

    def job(self, index: int) -> Job | None:
        job_id = self.outcome.accepted.find(index)
        if job_id is None:
            return None
        uid = None if self.uid_prefix is None else bulk_uid(self.uid_prefix, index)
        return Job(self.queue, job_id, uid, self.control.uri, self.control)


def bulk_uid(prefix: str, index: int) -> str:
    """Return the id of one message of a bulk call. It has the usual length, and can be computed again when needed."""
    return f"{prefix}{index:08x}"


class AnyBulkCall(Protocol):
    """The part of a bulk call that its jobs use."""

    @property
    def queue(self) -> str: ...
    @property
    def outcome(self) -> BulkOutcome: ...
    def job(self, index: int) -> Job | None: ...


class Jobs(Sequence[Job]):
    """The jobs of all items, in their order. Takes memory only where another producer interrupted: 24 bytes each."""

    def __init__(self, call: AnyBulkCall) -> None:
        self._call = call

    def __len__(self) -> int:
        return len(self._call.outcome.accepted)

    @overload
    def __getitem__(self, index: int) -> Job: ...
    @overload
    def __getitem__(self, index: slice) -> list[Job]: ...
    def __getitem__(self, index: int | slice) -> Job | list[Job]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        job = self._call.job(index if index >= 0 else index + len(self))
        if job is None:
            raise IndexError(f"there are {len(self)} jobs: index {index} is out of range")
        return job

    def __reduce__(self) -> tuple[object, ...]:
        return list, (list(self),)

    def __copy__(self) -> Jobs:
        return self

    def __deepcopy__(self, _memo: object) -> Jobs:
        return self

    def __repr__(self) -> str:
        return f"<Jobs {len(self)} on {self._call.queue}>"


class BulkError(BackendError):
    """Some items of a bulk call were not accepted; the message names them and the reason.

    ``jobs`` maps the index of each accepted item to its job; ``reasons`` maps the indexes of at most the first hundred
    refused items to their errors; ``refused`` has the indexes of all refused items as ranges. ``unknown`` has the
    ranges of items that were sent before the connection broke: they may or may not be scheduled. ``unsent_from`` is
    the index of the first item that was not sent, if any.
    """

    def __init__(self, call: AnyBulkCall) -> None:
        outcome = call.outcome
        super().__init__(str(outcome))
        self.jobs: Mapping[int, Job] = _JobsByIndex(call)
        self.reasons: Mapping[int, BackendError] = outcome.reasons
        self.refused: Sequence[range] = list(outcome.refused)
        self.unknown: Sequence[range] = list(outcome.unknown)
        self.unsent_from: int | None = outcome.unsent_from
        self.__cause__ = outcome.failure or next(iter(outcome.reasons.values()), None)

    def __reduce__(self) -> tuple[object, ...]:
        state = {**self.__dict__, "jobs": dict(self.jobs), "reasons": dict(self.reasons)}
        return restore_error, (type(self), self.args), state


class _JobsByIndex(Mapping[int, Job]):
    def __init__(self, call: AnyBulkCall) -> None:
        self._call = call

    def __len__(self) -> int:
        return len(self._call.outcome.accepted)

    def __iter__(self) -> Iterator[int]:
        return iter(self._call.outcome.accepted)

    def __getitem__(self, index: int) -> Job:
        job = self._call.job(index)
        if job is None:
            raise KeyError(index)
        return job
