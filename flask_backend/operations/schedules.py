"""The periodic tasks of all queues, as the tokens on the broker have them: read, run, pause, resume, forget.

Reading changes nothing on the broker, and needs no app.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Self

from flask_backend.broker.connection import Connection
from flask_backend.config import Settings
from flask_backend.errors import BackendError
from flask_backend.message import new_uid
from flask_backend.names import is_schedule_tube, schedule_tube
from flask_backend.periodic.due import next_slot
from flask_backend.periodic.keeping import Standing, check_standing, find_newest, is_unfinished, read, replace_token
from flask_backend.periodic.token import Entry, Token

# A token is held for milliseconds by the scheduler that acts on it: then look again, for at most so long.
WITHIN_S = 5.0
_AGAIN_S = 0.02


class ScheduleError(BackendError):
    """A periodic task cannot be changed or run: there is none of this name, or it is busy."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """A periodic task. Times are in seconds since the epoch.

    ``expression`` is as written, ``words`` in words, and ``timezone`` the one of its times. ``last`` is the time for
    which it was last scheduled, as the job ``last_job``; ``next`` is None while it is paused, if it is retired, or if
    this installation lacks cronsim. Times that passed are counted as ``scheduled``, as ``missed`` (found too late, or
    caught up by one later call) or as ``skipped`` (its last call was unfinished). A retired one is not in the newest
    release of the app, is not scheduled, and is forgotten after a day.
    """

    queue: str
    name: str
    endpoint: str
    expression: str
    words: str
    timezone: str
    last: int | None
    last_job: int | None
    next: int | None
    catch_up: str
    overlap: bool
    grace_s: int | None
    scheduled: int
    missed: int
    skipped: int
    is_paused: bool
    is_retired: bool

    @classmethod
    def of(cls, entry: Entry) -> Schedule:
        definition = entry.definition
        return cls(
            definition.queue,
            definition.name,
            definition.endpoint,
            str(definition.when),
            definition.when.words(),
            definition.zone,
            entry.ran,
            entry.job,
            next_slot(entry),
            definition.catch_up,
            definition.overlap,
            definition.most_late_s,
            entry.scheduled,
            entry.missed,
            entry.skipped,
            entry.is_paused,
            entry.retired is not None,
        )


@dataclass(frozen=True, slots=True)
class ScheduledQueue:
    """A queue with periodic tasks: those, by name, and how many schedulers watch them. Without one, none is scheduled.

    ``schedules`` is empty if the token was held all the time while it was looked for, or is missing.
    """

    name: str
    schedulers: int
    schedules: Sequence[Schedule]


@dataclass(frozen=True, slots=True)
class Started:
    """The job of a call that was scheduled by hand: Beanstalkd's id, and our own."""

    job: int
    uid: str


class Schedules:
    """A connection to read and change periodic tasks. All its methods raise :exc:`BrokerError`."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._connection = Connection(settings.address, settings.timeout_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _tb: TracebackType | None
    ) -> None:
        self._connection.close()

    @property
    def address(self) -> str:
        return str(self._settings.address)

    def queues(self, names: Iterable[str] | None = None, within_s: float = WITHIN_S) -> list[ScheduledQueue]:
        """Return the queues with periodic tasks, by name; ``names`` are the ones to look at, by default all.

        For the tokens that are held it waits for at most ``within_s`` seconds in all.
        """
        until = time.monotonic() + within_s
        if names is None:
            suffix = schedule_tube("")
            names = [tube.removesuffix(suffix) for tube in self._connection.list_tubes() if is_schedule_tube(tube)]
        found = (self._queue(name, until) for name in sorted(names))
        return [queue for queue in found if queue is not None]

    def find(self, name: str, queue: str | None = None) -> Schedule:
        """Return the periodic task of this name; raise :exc:`ScheduleError` if there is none, or more than one."""
        found = [
            schedule
            for each in self.queues(None if queue is None else [queue])
            for schedule in each.schedules
            if schedule.name == name
        ]
        if not found:
            raise ScheduleError(f"there is no periodic task {name!r}{f' on {queue}' if queue else ''}")
        if len(found) > 1:
            queues = ", ".join(each.queue for each in found)
            raise ScheduleError(f"several queues have a periodic task {name!r}: {queues}; say which one with --queue")
        return found[0]

    def run(self, queue: str, name: str) -> Started:
        """Schedule one call now, beside its times; a pause does not matter.

        It is not sent through the app's middleware. Raises :exc:`ScheduleError`, also if its calls may not overlap and
        the last one is unfinished.
        """
        uid = new_uid()

        def call(entry: Entry) -> Entry:
            definition = entry.definition
            if not definition.overlap and is_unfinished(self._connection, entry):
                raise ScheduleError(
                    f"job {entry.job}, the last call of {name}, is unfinished: its calls may not overlap"
                )
            options = definition.options.resolve(self._settings.ttr_s)
            job = self._connection.put(queue, definition.body(uid, None), options)
            return replace(entry, job=job, uid=uid)

        return Started(self._change(queue, name, call).job or 0, uid)

    def pause(self, queue: str, name: str) -> Schedule:
        """Schedule no calls until :meth:`resume`; the times that pass are left out. Raises :exc:`ScheduleError`."""
        return Schedule.of(self._change(queue, name, lambda entry: replace(entry, is_paused=True)))

    def resume(self, queue: str, name: str) -> Schedule:
        """End a pause: the next call is that of the next time. Raises :exc:`ScheduleError`."""
        return Schedule.of(self._change(queue, name, lambda entry: entry.resumed(time.time())))

    def forget(self, queue: str, name: str) -> None:
        """Remove a periodic task that no scheduler has any more; without a last one, the queue's token goes too.

        Raises :exc:`ScheduleError` if a scheduler that watches the queue may still schedule it.
        """

        def change(token: Token) -> Token:
            entry = _known_entry(token, name)
            if entry.retired is None and self._count_schedulers(queue):
                raise ScheduleError(
                    f"{name} is still scheduled by supervisors that serve {queue}: remove it from the app, and reload "
                    "or restart them first"
                )
            return token.without(name)

        self._replace(queue, change)

    # -- inner workings ----------------------------------------------------------------------------------------

    def _queue(self, name: str, until: float) -> ScheduledQueue | None:
        while counts := self._connection.stats_tube([schedule_tube(name)]):
            if found := find_newest(self._connection, name):
                schedules = [Schedule.of(entry) for entry in found[1]]
                return ScheduledQueue(name, counts[0].watching, sorted(schedules, key=lambda each: each.name))
            if not counts[0].jobs or time.monotonic() > until:
                return ScheduledQueue(name, counts[0].watching, ())
            time.sleep(_AGAIN_S)  # a scheduler holds the token for milliseconds
        return None

    def _count_schedulers(self, queue: str) -> int:
        return sum(counts.watching for counts in self._connection.stats_tube([schedule_tube(queue)]))

    def _change(self, queue: str, name: str, change: Callable[[Entry], Entry]) -> Entry:
        """Change an entry; return it as it is then."""
        token = self._replace(queue, lambda token: token.next_written([change(_active_entry(token, name))]))
        return token.entries[name]

    def _replace(self, queue: str, change: Callable[[Token], Token]) -> Token:
        """Replace the token while no scheduler holds it, in the order of writes of a scheduler; return the new one."""
        until = time.monotonic() + WITHIN_S
        while time.monotonic() < until:
            if (found := find_newest(self._connection, queue)) is None:
                if not self._queue(queue, until):
                    break
            elif (held := self._connection.reserve_job(found[0].id)) is not None:
                try:
                    token = read(held)
                    if token and check_standing(self._connection, queue, held, token) is Standing.ONLY:
                        changed = change(token)
                        if changed.entries or self._count_schedulers(queue):
                            replace_token(self._connection, held, changed, time.time())
                        else:
                            self._connection.delete_each([held.id])
                        return changed
                finally:
                    self._give_back(held.id)
            time.sleep(_AGAIN_S * random.random())  # likewise, and others may try too
        raise ScheduleError(
            f"there are no periodic tasks on {queue}, or a scheduler has held their state for {WITHIN_S:g} s; try again"
        )

    def _give_back(self, job_id: int) -> None:
        """Release the token if it is still held: it was not replaced."""
        if self._connection.is_usable and (held := self._connection.stats_job([job_id])):
            self._connection.release(job_id, held[0].priority, 0)


def _known_entry(token: Token, name: str) -> Entry:
    entry = token.entries.get(name)
    if entry is None:
        raise ScheduleError(f"there is no periodic task {name!r} on {token.queue}")
    return entry


def _active_entry(token: Token, name: str) -> Entry:
    entry = _known_entry(token, name)
    if entry.retired is not None:
        raise ScheduleError(f"the periodic task {name!r} is not in the newest release of the app, and is not scheduled")
    return entry
