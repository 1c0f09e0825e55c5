"""Check whether the jobs that wait on the broker fit this version of the app, before it is deployed."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from flask_backend.broker.stats import JobRecord
from flask_backend.errors import MessageDecodeError
from flask_backend.extension import Backend
from flask_backend.message import cut, decode, is_expired
from flask_backend.operations.compatibility import Fault, Incompatibility, check_compatibility
from flask_backend.operations.console import Console
from flask_backend.visible import visible

from .apps import LoadedApp
from .output import count_of, echo, terminal_width, wrapped
from .scanning import Search

_MAX_NEEDS = 200  # characters of a call without its values


@dataclass(slots=True)
class IncompatibleJobs:
    """Jobs of a queue that do not fit for the same reason: how many wait, how many are buried, and an example."""

    queue: str
    misfit: Incompatibility
    example: int
    jobs: int = 0
    buried: int = 0


class Waiting:
    """Counts of the waiting jobs of all queues of an app.

    Buried jobs wait for a person, and expired ones will be deleted: they count separately.
    """

    def __init__(self, backend: Backend) -> None:
        self._queues = backend.queues
        self._groups: dict[tuple[str, Fault, str | None], IncompatibleJobs] = {}
        self.jobs = 0
        self.buried = 0
        self.expired = 0

    def add(self, record: JobRecord, body: bytes) -> None:
        is_buried = record.state == "buried"
        handlers = self._queues[record.queue]
        # One that was started may have a cursor, and then it never expires.
        if not is_buried and not record.reserves and handlers.receiver is None and _is_expired(body):
            self.expired += 1
            return
        self.buried += is_buried
        self.jobs += not is_buried
        misfit = check_compatibility(handlers, body)
        if misfit is not None:
            kind = (record.queue, misfit.fault, misfit.signature and cut(misfit.signature, _MAX_NEEDS))
            group = self._groups.setdefault(kind, IncompatibleJobs(record.queue, misfit, record.id))
            group.buried += is_buried
            group.jobs += not is_buried

    @property
    def groups(self) -> list[IncompatibleJobs]:
        """The jobs that do not fit, the largest groups first."""
        return sorted(self._groups.values(), key=lambda group: group.jobs + group.buried, reverse=True)


def _is_expired(body: bytes) -> bool:
    try:
        return is_expired(decode(body).headers, time.time())
    except MessageDecodeError:
        return False


def look(loaded: LoadedApp, bound: int) -> tuple[Waiting, Search]:
    """Check the jobs that wait in the app's queues; return their counts and the finished search. Keeps no job."""
    waiting = Waiting(loaded.backend)
    with Console(loaded.backend.settings_of(loaded.app)) as console:
        search = Search(console, list(loaded.backend.queues), ("ready", "delayed", "buried"), bound)
        for record, body in search.with_bodies():
            waiting.add(record, body)
    return waiting, search


def as_dict(waiting: Waiting, search: Search) -> dict[str, Any]:
    misfits = [
        {
            "queue": group.queue,
            "reason": group.misfit.fault,
            "needs": group.misfit.signature,
            "why": group.misfit.why,
            "jobs": group.jobs,
            "buried": group.buried,
            "example": group.example,
        }
        for group in waiting.groups
    ]
    return {
        "jobs": waiting.jobs,
        "buried": waiting.buried,
        "expired": waiting.expired,
        "misfits": misfits,
        "counted": search.counted,
        "looked_at": search.looked_at,
        "is_complete": search.is_complete,
    }


def show(waiting: Waiting, search: Search) -> None:
    for line in (*_told_groups(waiting), _summary(waiting, search)):
        echo(wrapped(line, terminal_width(), "  "))


def _told_groups(waiting: Waiting) -> Iterator[str]:
    for group in waiting.groups:
        is_one = group.jobs + group.buried == 1
        signature = visible(cut(group.misfit.signature or "", _MAX_NEEDS))
        why = f": {visible(group.misfit.why)}"
        match group.misfit.fault:
            case Fault.UNKNOWN_ENDPOINT:
                what, why = f"{'calls' if is_one else 'call'} {signature}, which this version lacks", ""
            case Fault.BAD_ARGUMENTS:
                what = f"{'needs' if is_one else 'need'} {signature}, which this version lacks"
            case Fault.BAD_BODY:
                what = f"{'has' if is_one else 'have'} a body that no version can read"
        yield f"{_count(group.jobs, group.buried)} {what} (of {group.queue}), e.g. job {group.example}{why}"


def _count(jobs: int, buried: int) -> str:
    if not jobs:
        return count_of(buried, "buried job")
    return count_of(jobs, "job") + (f" and {buried:,} buried" if buried else "")


def _summary(waiting: Waiting, search: Search) -> str:
    expired = f"; {count_of(waiting.expired, 'job')} expired and will be deleted" if waiting.expired else ""
    return _told_fit(waiting, search) + expired


def _told_fit(waiting: Waiting, search: Search) -> str:
    found = "" if search.is_complete else f" that {'was' if waiting.jobs == 1 else 'were'} found"
    buried = f"{waiting.buried:,} buried {'one' if waiting.buried == 1 else 'ones'}"
    if waiting.groups:
        misfits = [sum(group.jobs for group in waiting.groups), sum(group.buried for group in waiting.groups)]
        told = f"{misfits[0]:,} of {count_of(waiting.jobs, 'waiting job')}{found} do not fit"
        return told + (f"; {misfits[1]:,} of {buried}" if waiting.buried else "")
    if not waiting.jobs:
        told = "no jobs are waiting"
    elif waiting.jobs == 1:
        told = f"the only waiting job{found} fits"
    else:
        told = f"all {waiting.jobs:,} waiting jobs{found} fit"
    return told + (f"; {buried} as well" if waiting.buried else "")
