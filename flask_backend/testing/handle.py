"""The jobs of one app, in the hands of a test."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Any

from flask import Flask

from flask_backend.broker.wire import ReservedJob
from flask_backend.decisions import TaskDecision
from flask_backend.errors import ConfigError, MessageDecodeError, OptionError
from flask_backend.extension import Backend
from flask_backend.inprocess.memory import MemoryBroker, MemoryProducer, Put
from flask_backend.inprocess.sync import InProcessWorker
from flask_backend.job import JobState
from flask_backend.names import failures_tube, is_failures_tube
from flask_backend.stories import Story
from flask_backend.worker.execution import read_call
from flask_backend.worker.settlement import Attempt, bury_undecodable, settle_failure

from .expecting import Target, check_target, expect, expect_any, tell_missing, tell_unwanted
from .records import Buried, Ran, Scheduled, tell


class Memory:
    """What was scheduled by an app whose ``BACKEND_CONNECTION_URI`` is ``memory://``, and a worker to run it.

    With ``sync://`` it tells what was scheduled, too; that has been run already.
    """

    def __init__(self, app: Flask, backend: Backend) -> None:
        producer = backend.producer_of(app)
        if not isinstance(producer, MemoryProducer):
            raise ConfigError(
                f"app {app.name!r} uses {producer.settings.broker}; expected memory://. Have the app made with "
                'BACKEND_CONNECTION_URI="memory://" in its config, before init_app; for an app that is made when its '
                'module is imported, say os.environ["BACKEND_CONNECTION_URI"] = "memory://" in conftest.py before that'
            )
        self._app = app
        self._backend = backend
        self._producer = producer

    def scheduled(self) -> list[Scheduled]:
        """Return all that was scheduled since the beginning, in its order, whatever has become of it."""
        puts = list(self._broker.puts.values())
        return [self._tell(put) for put in puts if not is_failures_tube(put.queue)]

    def assert_scheduled(self, target: Target, /, *args: Any, **kwargs: Any) -> Scheduled:
        """Fail unless a call was scheduled: ``assert_scheduled(hello, "world", delay=60)``; return the first such.

        Arguments are compared by their parameters, with defaults, and options only if they are said. If the task has a
        parameter of an option's name, that is the parameter. For a receiver or another system the target is the queue's
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
        """Fail if such a call was scheduled; without arguments and options, if any call of the task was."""
        __tracebackhide__ = True
        check_target(target)
        expected = expect(target, args, kwargs) if args or kwargs else expect_any(target)
        found = list(filter(expected.covers, self.scheduled()))
        if found:
            raise AssertionError(tell_unwanted(expected, found))

    def drain(self, *, raise_errors: bool = True) -> list[Ran]:
        """Run all jobs that are due, also those that they schedule, as workers would; return what was run.

        By the time from which they are due, then by priority. Each runs in an app context of its own, after the hooks
        of its queue, and without time limits. A job whose task fails is released with a delay, or buried, as its retry
        policy says, and then the error is raised as it is; with ``raise_errors=False`` it is in what is returned, and
        so is in any case what a task has decided itself: ``RetryLater``, ``Bury``, ``Discard``.
        """
        ran: list[Ran] = []
        while (reserved := self._broker.reserve(self._backend.queues)) is not None:
            ran.append(self._execute(*reserved))
            error = ran[-1].error
            if error is None or issubclass(type(error), TaskDecision):
                continue
            # Ctrl-C, and pytest's own ways out, are meant for the test.
            if raise_errors or not issubclass(type(error), Exception | SystemExit):
                raise error
        return ran

    def move_time(self, by: float | timedelta) -> None:
        """Let so much time pass for the broker, seconds or a ``timedelta``: what becomes due then is run by a drain.

        That is true of delays and of retries. The clocks of Python and of the system stay; ``current_job.age`` does
        not.
        """
        seconds = by.total_seconds() if isinstance(by, timedelta) else by
        if not 0 <= seconds < float("inf"):
            raise OptionError(f"time is to be moved by {by!r}; expected seconds or a timedelta, from 0 on")
        self._broker.move_time(seconds)

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
        """Begin anew: forget what was scheduled, delete all jobs, have hooks run again."""
        self._producer.clear()

    # -- inner workings --------------------------------------------------------------------------------------

    @property
    def _broker(self) -> MemoryBroker:
        return self._producer.broker

    def _tell(self, put: Put) -> Scheduled:
        return tell(put, self._backend.queues.get(put.queue), self._producer)

    def _execute(self, queue: str, job: ReservedJob) -> Ran:
        broker, handlers = self._broker, self._backend.queues[queue]
        worker = InProcessWorker(self._app, handlers, broker, self._producer.settings)
        try:
            worker.begin()
        except BaseException:  # as when the worker cannot start
            broker.give_back()
            raise
        scheduled, attempt = self._tell(broker.puts[job.id]), broker.counters(job.id).attempts.number
        return Ran(scheduled, attempt, self._run(worker, queue, job))

    def _run(self, worker: InProcessWorker, queue: str, job: ReservedJob) -> BaseException | None:
        """Run a job and settle it; return what it raised."""
        connection = self._producer.connection()
        try:
            call = read_call(worker.handlers, job.body)
        except MessageDecodeError as error:
            bury_undecodable(connection, queue, job, error)
            return error
        started = time.monotonic()
        failure = worker.try_call(job, call)
        if failure is None:
            connection.delete(job.id)
        else:
            ran_s = time.monotonic() - started
            settle_failure(connection, Attempt(queue, job, call, worker.retry_of(call), ran_s), failure)
        return failure
