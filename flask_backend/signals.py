"""Signals of Blinker, for code that watches tasks, workers and the supervisor.

The sender is the app, the object itself and not ``current_app``. A receiver takes the sender and keyword arguments;
take ``**extra`` too, since later versions may add some::

    from flask_backend.signals import task_failed

    @task_failed.connect
    def count_failure(app, job, error, **extra):
        ...

An exception of a receiver is logged, and has no other effect. Receivers run in the process and the thread
that the signal is about, so they must be quick, and cannot be ``async``.

``job`` is a :class:`~flask_backend.current.CurrentJob`. Its ``attempt`` is known after a failure; its endpoint is empty
if its body could not be decoded.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Coroutine
from inspect import iscoroutine
from typing import Any

from blinker import NamedSignal, Namespace
from flask import Flask

from .functions import shown_name
from .system.loggers import get_logger
from .tracebacks import log_failure, told

logger = get_logger("flask_backend.signals")

_signals = Namespace()

task_scheduled = _signals.signal(
    "task-scheduled",
    """Calls of a task are on the broker: ``endpoint``, and ``jobs``, a collection of :class:`~flask_backend.Job`.

    Sent in the caller, once for each call and once for each ``map``, also if it accepted only some of its items.""",
)
task_not_sent = _signals.signal(
    "task-not-sent",
    """A call that waited for a commit could not be put on the broker: ``job``, a :class:`~flask_backend.Job` with its
    ``uid`` and without an ``id``, ``endpoint`` (None for a message), ``error``, and ``command``, the line to send it.

    The transaction is committed. Sent in the process that has committed it.""",
)
task_started = _signals.signal(
    "task-started",
    "A worker is about to run ``job``. Its time limit begins after this.",
)
task_succeeded = _signals.signal(
    "task-succeeded",
    "The task of ``job`` has returned, after ``ran_s`` seconds.",
)
task_failed = _signals.signal(
    "task-failed",
    """The task of ``job`` has failed with ``error``, after ``ran_s`` seconds. :data:`task_retried` or
    :data:`task_buried` follows, unless the broker is away or has given the job to another worker.

    If the job crashed its worker, ``error`` is a :exc:`~flask_backend.errors.WorkerDiedError`, and a short-lived
    process sends this. Not sent for the decisions of a task: ``RetryLater``, ``Bury`` and ``Discard``.""",
)
task_retried = _signals.signal(
    "task-retried",
    "``job`` was released, to run again in ``delay_s`` seconds, because of ``error`` or the decision in ``error``.",
)
task_buried = _signals.signal(
    "task-buried",
    "``job`` was buried, for ``reason``, because of ``error`` or the decision in ``error``.",
)
task_interrupted = _signals.signal(
    "task-interrupted",
    "The task of ``job`` was left at its checkpoint after ``ran_s`` seconds, because its worker is to stop.",
)
task_discarded = _signals.signal(
    "task-discarded",
    """``job`` was deleted because its task raised ``Discard``: ``reason`` and ``error``; or without being run, because
    it had expired: ``reason`` is ``"expired"``, and ``error`` is None.""",
)
worker_started = _signals.signal(
    "worker-started",
    "A worker of ``queue`` has run its hooks and begins to reserve jobs. Sent in the worker.",
)
worker_stopping = _signals.signal(
    "worker-stopping",
    "A worker of ``queue`` has settled its last job and is about to end. Sent in the worker, unless it is killed.",
)

worker_exited = _signals.signal(
    "worker-exited",
    """A worker has ended. ``description`` is the reason in words. The facts are ``queue``, ``worker_pid``,
    ``exit_kind`` (``planned``, ``cannot_work``, ``died_idle`` or ``died_busy``), ``exit_status``, ``exit_signal``,
    ``lived_s``, ``job_id``, ``task``, ``running_s``, ``user_s``, ``system_s``, ``max_rss_bytes``, ``private_bytes``,
    ``was_given_back`` (it was stopped, and its job, if any, returned to the queue), ``is_old`` (it ran the code from
    before a reload), ``generation`` (the number of reloads) and ``supervisor_pid``.

    Like the two below it is sent in a short-lived process, which is killed after 10 seconds.""",
)
supervisor_ready = _signals.signal(
    "supervisor-ready",
    """Each queue has its first workers ready: ``description``, ``queues`` (a mapping of their names to the number of
    their workers), ``generation`` and ``supervisor_pid``.""",
)
supervisor_reloaded = _signals.signal(
    "supervisor-reloaded",
    "The new code serves after a reload. The facts are those of :data:`supervisor_ready`.",
)

dashboard_action = _signals.signal(
    "dashboard-action",
    """A person has acted in the dashboard, or tried to: ``action``, one of the rights, ``what`` was done in words, and
    ``outcome``, which is ``"done"``, or begins with ``"denied"`` or ``"failed"``. The facts are ``user`` (None unless
    the dashboard was given one), ``queue`` and ``pattern``, if the action is about one, ``count``, how many jobs,
    queues or processes it has affected, and ``ids``, of at most 20 of these jobs. Sent in the web process.""",
)


def send(
    signal: NamedSignal,
    app: Flask,
    /,
    *,
    catching: type[BaseException] = Exception,
    run: Callable[[Coroutine[Any, Any, object]], object] | None = None,
    **facts: Any,
) -> None:
    """Call the receivers of a signal; log their exceptions. For Flask-Backend itself.

    ``run`` runs the coroutine of an async receiver; without it such a receiver fails.

    Blinker's own ``send`` would skip the receivers after one that raises.
    """
    if signal.is_muted:
        return
    for receiver in signal.receivers_for(app):
        try:
            result = receiver(app, **facts)
            if iscoroutine(result):
                if run is None:
                    result.close()
                    raise TypeError("a receiver of this signal cannot be async: connect a function")
                run(result)
        except catching as error:
            name = told(functools.partial(shown_name, receiver), "?")
            log_failure(logger, logging.ERROR, "receiver %s of the signal %s failed", name, signal.name, error=error)
