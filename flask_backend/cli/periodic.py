"""The scheduler of periodic tasks, as a service of the supervisor."""

from __future__ import annotations

import time
from collections.abc import Collection
from typing import TYPE_CHECKING

from flask_backend import tracing
from flask_backend.periodic.definition import Definition
from flask_backend.periodic.token import Release
from flask_backend.supervisor import Service
from flask_backend.system.titles import show_scheduler
from flask_backend.transactions import forget_connections

from .apps import LoadedApp

if TYPE_CHECKING:
    from flask_backend.supervisor.process import AcceptSignals


# How long a queue without another supervisor may be without a scheduler that keeps dying, in seconds.
MOST_EVERY_S = 5.0


def scheduled_queues(loaded: LoadedApp, queues: Collection[str]) -> list[str]:
    """Return which of these queues have periodic tasks."""
    return [queue for queue in loaded.backend.periodic_of(loaded.app) if queue in queues]


def make_scheduler(loaded: LoadedApp, queues: Collection[str]) -> Service | None:
    """Return the service that schedules the periodic tasks of the served queues, if there are some."""
    backend, app = loaded.backend, loaded.app
    definitions = {queue: each for queue, each in backend.periodic_of(app).items() if queue in queues}
    if not definitions:
        return None
    release = Release.now(time.time())

    def fire(definition: Definition, slot: int, uid: str) -> int:
        with app.app_context():
            return backend.schedule_slot(definition, slot, uid).id

    def serve(accept_signals: AcceptSignals, lifeline: int) -> int:
        from flask_backend.periodic import scheduler

        show_scheduler(list(definitions))
        forget_connections(app)
        try:
            return scheduler.serve(backend.settings_of(app), release, definitions, fire, accept_signals, lifeline)
        finally:
            tracing.flush()

    return Service("schedules periodic tasks", serve, most_every_s=MOST_EVERY_S)
