"""Compose the work of a supervisor's children, which it knows only as callables."""

from __future__ import annotations

import dataclasses
import traceback
from contextlib import closing
from typing import TYPE_CHECKING

from flask_backend.system.exits import ExitCode, leave
from flask_backend.system.streams import WORKER_PATIENCE_S, streams

from .apps import AppLoadError, LoadedApp, refuse_patch, users_traceback

if TYPE_CHECKING:
    from flask_backend.deaths import Death
    from flask_backend.supervisor import ChildContext, Pool, Work
    from flask_backend.worker.worker import Limits


def make_work(loaded: LoadedApp, pools: list[Pool], limits: Limits) -> Work:
    """Return the work of the children, for a supervisor that knows neither Flask nor Beanstalkd."""
    from flask_backend.outcome import Ending
    from flask_backend.supervisor import SETTLED, SETTLED_FOR_GOOD, Work
    from flask_backend.worker import postmortem
    from flask_backend.worker.worker import Worker

    settings = loaded.backend.settings_of(loaded.app)

    def work(context: ChildContext) -> int:
        streams.wait_for_readers(WORKER_PATIENCE_S)
        own_limits = dataclasses.replace(limits, lifeline=context.lifeline)
        status = Worker(loaded.app, settings, loaded.backend.queues[context.pool], context, own_limits).run()
        # The supervisor ends a worker that exits too slowly, unless it waits for the reason why one cannot start.
        leave(status, None if status == ExitCode.OK else limits.drain_timeout_s)

    def settle(fd: int, death: Death, crashes: int) -> int:
        match postmortem.settle(settings, loaded.backend.queues[death.pool], fd, death, crashes):
            case Ending.RETRIED:
                return SETTLED
            case Ending.BURIED:
                return SETTLED_FOR_GOOD
            case _:
                return ExitCode.OK

    return Work(work, {pool.name: loaded.backend.queues[pool.name].names for pool in pools}, settle)


def try_hooks(loaded: LoadedApp, pools: list[Pool]) -> None:
    """Run the hooks of all queues, as their workers would."""
    from flask_backend.worker.event_loop import EventLoop
    from flask_backend.worker.execution import Runner

    base_url = loaded.backend.settings_of(loaded.app).base_url
    for pool in pools:
        with closing(EventLoop()) as event_loop:
            try:
                Runner(loaded.app, loaded.backend.queues[pool.name], event_loop, base_url).run_hooks()
            except BaseException as error:  # also SystemExit: no worker could start
                raise AppLoadError(f"a hook of {pool.name} failed.\n\n{users_traceback(error)}") from error
            finally:
                refuse_patch()


def warm_up(loaded: LoadedApp, pools: list[Pool]) -> None:
    """Import, once for all workers, the modules that the first connection and the first failure import."""
    from flask_backend.worker.execution import prepare

    "localhost".encode("idna")  # as the socket module does with every host
    try:
        int("")
    except ValueError:
        traceback.format_exc()
    for pool in pools:
        prepare(loaded.backend.queues[pool.name])
