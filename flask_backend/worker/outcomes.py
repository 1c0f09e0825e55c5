"""What became of a job after an attempt, and the signals about it."""

from __future__ import annotations

import logging
import os
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any

from blinker import NamedSignal
from flask import Flask

from flask_backend import signals
from flask_backend.current import CurrentJob
from flask_backend.decisions import TaskDecision
from flask_backend.outcome import Ending
from flask_backend.retry import BuryJob, DiscardJob, ReleaseJob, Retry
from flask_backend.system.exits import leave_after
from flask_backend.tracebacks import log_failure

from .event_loop import apart_from_running_loop, run_in_loop
from .execution import Call

EXPIRED = "expired"  # the reason in the signal


@dataclass(frozen=True, slots=True)
class Attempt:
    """A finished call of a job, which ran for ``ran_s`` seconds, and its retry policy."""

    job: CurrentJob
    call: Call
    retry: Retry
    ran_s: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """The action that followed an attempt at a job.

    An ``action`` of None means that the job was not settled here: with ``is_lost`` its reservation had ended before,
    with ``is_refused`` the broker did not do it, for example because its disk is full; else the connection broke, and
    the broker gives it to another worker.
    """

    action: ReleaseJob | BuryJob | DiscardJob | None = None
    is_lost: bool = False
    is_refused: bool = False

    @property
    def ending(self) -> Ending | None:
        """What the scoreboard counts."""
        match self.action:
            case ReleaseJob():
                return Ending.RETRIED
            case BuryJob():
                return Ending.BURIED
            case DiscardJob():
                return Ending.DISCARDED
            case None:
                return None


def announce_failure(app: Flask, job: CurrentJob, outcome: Outcome, error: BaseException, ran_s: float | None) -> None:
    """Send the signals about an attempt that did not succeed."""
    if not issubclass(type(error), TaskDecision):
        announce(app, signals.task_failed, job=job, error=error, ran_s=ran_s)
    match outcome.action:
        case ReleaseJob(delay_s):
            announce(app, signals.task_retried, job=job, error=error, delay_s=delay_s)
        case BuryJob(reason):
            announce(app, signals.task_buried, job=job, error=error, reason=reason)
        case DiscardJob(reason):
            announce(app, signals.task_discarded, job=job, error=error, reason=reason)
        case None:
            pass


def announce_expiry(app: Flask, job: CurrentJob) -> None:
    """Send the signal about a job that was deleted because it had expired."""
    announce(app, signals.task_discarded, job=job, error=None, reason=EXPIRED)


def announce(app: Flask, signal: NamedSignal, **facts: object) -> None:
    """Send a signal from a worker, in an app context of its own; no exception leaves this.

    Async receivers run in the worker's event loop, so that they can close what a hook has opened there.
    """
    if not signal.receivers:
        return
    pid = os.getpid()
    failure: BaseException | None = None
    try:
        with app.app_context():
            signals.send(signal, app, catching=BaseException, run=_run, **facts)
    except BaseException as error:  # a function of the app that runs at the end of a context
        failure = error
        log_failure(signals.logger, logging.ERROR, "the app context of the signal %s failed", signal.name, error=error)
    if os.getpid() != pid:  # a receiver has forked, and this process must not become a second worker
        leave_after(failure)


def _run(receiver: Coroutine[Any, Any, object]) -> None:
    apart_from_running_loop(run_in_loop, receiver)  # one runs if an async test drains a queue
