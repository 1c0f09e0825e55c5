"""The jobs of one app, for use in a test."""

from __future__ import annotations

import heapq
import threading
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

from flask import Flask

from flask_backend.broker.wire import ReservedJob
from flask_backend.decisions import TaskDecision
from flask_backend.errors import ConfigError, OptionError, TaskInterrupted
from flask_backend.extension import Backend
from flask_backend.inprocess.memory import MemoryBroker, MemoryProducer, Put
from flask_backend.inprocess.sync import InProcessWorker, SyncProducer
from flask_backend.job import JobState
from flask_backend.message import decode
from flask_backend.names import failures_tube, is_failures_tube
from flask_backend.periodic.definition import Definition
from flask_backend.stories import Story

from .expecting import Target, check_target, expect, expect_any, tell_missing, tell_unwanted
from .records import Buried, Ran, Scheduled, tell


class Memory:
    """The scheduled calls of an app whose ``BACKEND_CONNECTION_URI`` is ``memory://``, and a worker to run them.

    With ``sync://`` it also lists the scheduled calls, which have already run.
    """

    def __init__(self, app: Flask, backend: Backend) -> None:
        producer = backend.producer_of(app)
        if not isinstance(producer, MemoryProducer):
            raise ConfigError(
                f"app {app.name!r} uses {producer.settings.broker}; expected memory://. Set "
                'BACKEND_CONNECTION_URI="memory://" in its config before init_app; for an app that is created when its '
                'module is imported, set os.environ["BACKEND_CONNECTION_URI"] = "memory://" in conftest.py before that'
            )
        self._app = app
        self._backend = backend
        self._producer = producer

    def scheduled(self) -> list[Scheduled]:
        """Return all calls and messages since the beginning, in their order, even those already run."""
        puts = list(self._broker.puts.values())
        return [self._tell(put) for put in puts if not is_failures_tube(put.queue)]

    def assert_scheduled(self, target: Target, /, *args: Any, **kwargs: Any) -> Scheduled:
        """Fail unless a call was scheduled: ``assert_scheduled(hello, "world", delay=60)``; return the first match.

        Arguments are compared by parameter, including defaults; options only if given. A name that is both an option
        and a parameter of the task means the parameter. For a receiver or another system the target is the queue's
        name: ``assert_scheduled("com.example/inbox", {"any": "json"})``.
        """
        __tracebackhide__ = True
        check_target(target)
        expected, records = expect(target, args, kwargs), self.scheduled()
        found = next(filter(expected.covers, records), None)
        if found is None:
            raise AssertionError(tell_missing(expected, records))
        return found

    def assert_not_scheduled(self, target: Target, /, *args: Any, **kwargs: Any) -> None:
        """Fail if such a call was scheduled; without arguments and options, if any call of the task was scheduled."""
        __tracebackhide__ = True
        check_target(target)
        expected = expect(target, args, kwargs) if args or kwargs else expect_any(target)
        found = list(filter(expected.covers, self.scheduled()))
        if found:
            raise AssertionError(tell_unwanted(expected, found))

    def drain(self, *, raise_errors: bool = True) -> list[Ran]:
        """Run all due jobs, including the ones that they schedule, as workers do; return the attempts.

        Jobs run by due time, then by priority, each in its own app context, after the hooks of its queue, and without
        time limits. A job whose task fails is released with a delay or buried, according to its retry policy. Then its
        error is raised unchanged; with ``raise_errors=False`` it is in the returned attempt instead. The decisions of a
        task, ``RetryLater``, ``Bury`` and ``Discard``, are never raised, but always returned, and so is
        ``TaskInterrupted``, see :meth:`interrupt`. A call that has expired is deleted, and is not among the attempts.
        A :class:`~flask_backend.Limit` on starts counts by the broker's time: what it does not allow yet is left.
        """
        broker, thread = self._broker, threading.get_ident()
        is_outermost = thread not in broker.draining  # a task may drain too
        broker.draining.add(thread)
        try:
            return self._drain(raise_errors=raise_errors)
        finally:
            if is_outermost:
                broker.draining.discard(thread)

    def _drain(self, *, raise_errors: bool) -> list[Ran]:
        ran: list[Ran] = []
        while (reserved := self._broker.reserve(self._open_queues())) is not None:
            attempt = self._execute(*reserved)
            if attempt is None:
                continue
            ran.append(attempt)
            error = attempt.error
            if error is None or issubclass(type(error), TaskDecision | TaskInterrupted):
                continue
            # Ctrl-C and pytest's own exceptions are meant for the test.
            if raise_errors or not issubclass(type(error), Exception | SystemExit):
                raise error
        return ran

    def _open_queues(self) -> list[str]:
        """Return the queues whose limits allow the start of a task now."""
        queues = self._backend.queues
        return [name for name, handlers in queues.items() if self._broker.allows_start(handlers.limit)]

    def interrupt(self, at: int = 1) -> None:
        """Let a worker stop during the next :meth:`drain`: at the n-th checkpoint from now its task is left.

        It then runs again, in the same :meth:`drain`. ``at`` counts the checkpoints of all jobs, from 1.
        """
        if type(at) is not int or at < 1:
            raise OptionError(f"cannot interrupt at checkpoint {at!r}; expected a whole number from 1")
        self._broker.interrupt_at(at)

    def move_time(self, by: float | timedelta) -> None:
        """Move the broker's time by seconds or a ``timedelta``: the next :meth:`drain` runs the jobs that become due.

        These are delayed jobs and retries; calls with ``expires`` expire by the broker's time too. Periodic tasks are
        scheduled at each of their times on the way, as by a supervisor, but not in ``sync://``; the broker's time
        begins at the real one, when the app is created and at :meth:`clear`. The clocks of Python and the system stay;
        ``current_job.age`` moves with the broker's time.
        """
        seconds = by.total_seconds() if isinstance(by, timedelta) else by
        if not 0 <= seconds < float("inf"):
            raise OptionError(f"cannot move time by {by!r}; expected seconds or a timedelta, 0 or more")
        end = self._broker.now + seconds
        if not isinstance(self._producer, SyncProducer):
            self._schedule_until(end)
        self._broker.move_time(end)

    def buried(self) -> list[Buried]:
        """Return the buried jobs, each with its story: the reason, the exception and its traceback, the attempts."""
        found: list[Buried] = []
        for queue in self._backend.queues:
            for body in self._broker.bodies(failures_tube(queue)):
                note = Story.decode(body)
                scheduled = self._tell(self._broker.puts[note.job])
                if scheduled.job.state() is JobState.BURIED:
                    found.append(Buried(scheduled, note))
        return found

    def clear(self) -> None:
        """Reset: forget all scheduled calls, delete all jobs, and let hooks run again."""
        self._producer.clear()

    # -- inner workings --------------------------------------------------------------------------------------

    def _schedule_until(self, end: float) -> None:
        """Schedule the calls of periodic tasks, each at its time."""
        broker, producer = self._broker, self._producer
        found = [each for queue in self._backend.periodic_of(self._app).values() for each in queue]
        for slot, _, definition in heapq.merge(*(_slots(each, broker.began + broker.now) for each in found)):
            if slot > broker.began + end:
                return
            broker.move_time(max(broker.now, slot - broker.began))
            uid, last = definition.uid(slot), broker.periodic.get(definition.name)
            if not definition.overlap and last is not None:
                last_uid = decode(broker.puts[last].body).headers["id"]
                if producer.state(definition.queue, last, last_uid) not in (None, "buried"):
                    continue
            with self._app.app_context():
                broker.periodic[definition.name] = self._backend.schedule_slot(definition, slot, uid).id

    @property
    def _broker(self) -> MemoryBroker:
        return self._producer.broker

    def _tell(self, put: Put) -> Scheduled:
        return tell(put, self._backend.queues.get(put.queue), self._producer)

    def _execute(self, queue: str, job: ReservedJob) -> Ran | None:
        """Run a job; return the attempt, or None for one that has expired."""
        broker, handlers = self._broker, self._backend.queues[queue]
        worker = InProcessWorker(self._app, handlers, broker, self._producer.settings)
        if worker.discard_if_expired(job):
            return None
        broker.note_start(handlers.limit)
        try:
            worker.begin()
        except BaseException:  # as if the worker could not start
            broker.give_back()
            raise
        scheduled, attempt = self._tell(broker.puts[job.id]), broker.counters(job.id).attempts.number
        return Ran(scheduled, attempt, worker.process(job))


def _slots(definition: Definition, after: float) -> Iterator[tuple[int, str, Definition]]:
    """Yield the slots of a periodic task, in the form in which they are merged with those of others."""
    while True:
        slot = definition.when.next_after(after)
        yield slot, definition.name, definition
        after = slot
