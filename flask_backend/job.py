"""What a caller has in hand after scheduling: a job, or many."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NoReturn, Protocol, overload

from .bulk import Outcome
from .errors import BackendError, restore_error


class JobState(StrEnum):
    """Where a job is. ``DONE`` says that the server does not have it: it was finished, cancelled or deleted."""

    READY = "ready"
    DELAYED = "delayed"
    RESERVED = "reserved"
    BURIED = "buried"
    DONE = "done"


class JobControl(Protocol):
    """What a job needs of its producer."""

    def state(self, queue: str, job_id: int, uid: str | None) -> str | None: ...
    def cancel(self, queue: str, job_id: int, uid: str | None) -> bool: ...


@dataclass(frozen=True, slots=True)
class Job:
    """A job that Beanstalkd has accepted: its queue, and the id that Beanstalkd gave it.

    ``uid`` is the id that a task's message carries, unlike the other one never used twice; a message to another system
    has none. A pickled job keeps these three only: where it is unpickled there is no server to ask.
    """

    queue: str
    id: int
    uid: str | None = field(default=None, compare=False)
    _control: JobControl | None = field(default=None, compare=False, repr=False)

    def state(self) -> JobState:
        """Ask the server where the job is now.

        Raises :exc:`BrokerConnectionError` if it does not answer.
        """
        state = self._asked().state(self.queue, self.id, self.uid)
        return JobState.DONE if state is None else JobState(state)

    def cancel(self) -> bool:
        """Delete the job unless a worker has it; return whether it was deleted, and so will not run, or not again.

        A job that waits for its retry, or is buried, is deleted too. Raises :exc:`BrokerConnectionError` if the server
        does not answer: then it is open whether the job was deleted.
        """
        return self._asked().cancel(self.queue, self.id, self.uid)

    def _asked(self) -> JobControl:
        if self._control is None:
            raise TypeError(f"{self!r} was not scheduled by this process: it knows no server to ask")
        return self._control

    def __reduce__(self) -> tuple[object, ...]:
        return Job, (self.queue, self.id, self.uid)

    def __copy__(self) -> Job:
        return self

    def __deepcopy__(self, _memo: object) -> Job:
        return self

    def __bool__(self) -> NoReturn:  # noqa: PLE0304  # it refuses
        self._refuse()

    def _refuse(self, *_: object) -> NoReturn:
        raise TypeError(
            f"{self!r} is a job that is scheduled, and not what its task returns: the task has not run yet. "
            "Compare with None, ask its state(), or call the task's run() to have it run here"
        )


# Set here and not written above, so that type checkers go on refusing them.
for _name in (
    *("add", "radd", "sub", "rsub", "mul", "rmul", "truediv", "rtruediv", "floordiv", "rfloordiv", "mod", "rmod"),
    *("pow", "rpow", "neg", "pos", "abs", "int", "float", "index", "round", "lt", "le", "gt", "ge"),
    *("and", "rand", "or", "ror", "xor", "rxor", "lshift", "rlshift", "rshift", "rrshift"),
    *("iter", "len", "getitem", "contains", "await"),
):
    setattr(Job, f"__{_name}__", Job._refuse)  # noqa: SLF001  # its own  # pyright: ignore[reportPrivateUsage]


@dataclass(frozen=True, slots=True)
class Batch:
    """The jobs of many items, each made when it is asked for."""

    queue: str
    outcome: Outcome
    control: JobControl
    uid_prefix: str | None

    def job(self, index: int) -> Job | None:
        job_id = self.outcome.accepted.find(index)
        if job_id is None:
            return None
        uid = None if self.uid_prefix is None else batch_uid(self.uid_prefix, index)
        return Job(self.queue, job_id, uid, self.control)


def batch_uid(prefix: str, index: int) -> str:
    """Return the id of one message of many: as long as others, and computed where it is needed again."""
    return f"{prefix}{index:08x}"


class Jobs(Sequence[Job]):
    """The jobs of all items, in their order. Takes 24 bytes for each interruption by another producer, else none."""

    def __init__(self, batch: Batch) -> None:
        self._batch = batch

    def __len__(self) -> int:
        return len(self._batch.outcome.accepted)

    @overload
    def __getitem__(self, index: int) -> Job: ...
    @overload
    def __getitem__(self, index: slice) -> list[Job]: ...
    def __getitem__(self, index: int | slice) -> Job | list[Job]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        job = self._batch.job(index if index >= 0 else index + len(self))
        if job is None:
            raise IndexError(f"there are {len(self)} jobs, and none with index {index}")
        return job

    def __reduce__(self) -> tuple[object, ...]:
        return list, (list(self),)

    def __copy__(self) -> Jobs:
        return self

    def __deepcopy__(self, _memo: object) -> Jobs:
        return self

    def __repr__(self) -> str:
        return f"<Jobs {len(self)} on {self._batch.queue}>"


class BulkError(BackendError):
    """Some items of many were not accepted; the message tells which, and why.

    ``jobs`` has the accepted ones by the index of their item; ``reasons`` the errors of the refused ones, of at most
    the first hundred; ``refused`` their indexes as ranges. ``unknown`` has the ranges of those that were sent before
    the connection broke: they are scheduled or not. From ``unsent_from`` on nothing was sent; None if all was.
    """

    def __init__(self, batch: Batch) -> None:
        outcome = batch.outcome
        super().__init__(str(outcome))
        self.jobs: Mapping[int, Job] = _JobsByIndex(batch)
        self.reasons: Mapping[int, BackendError] = outcome.reasons
        self.refused: Sequence[range] = list(outcome.refused)
        self.unknown: Sequence[range] = list(outcome.unknown)
        self.unsent_from: int | None = outcome.unsent_from
        self.__cause__ = outcome.failure or next(iter(outcome.reasons.values()), None)

    def __reduce__(self) -> tuple[object, ...]:
        state = {**self.__dict__, "jobs": dict(self.jobs), "reasons": dict(self.reasons)}
        return restore_error, (type(self), self.args), state


class _JobsByIndex(Mapping[int, Job]):
    def __init__(self, batch: Batch) -> None:
        self._batch = batch

    def __len__(self) -> int:
        return len(self._batch.outcome.accepted)

    def __iter__(self) -> Iterator[int]:
        return iter(self._batch.outcome.accepted)

    def __getitem__(self, index: int) -> Job:
        job = self._batch.job(index)
        if job is None:
            raise KeyError(index)
        return job
