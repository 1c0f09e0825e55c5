"""Compose a supervisor from the app and the options, with work that it knows only as callables.

This imports Flask and all that workers need.
"""

from __future__ import annotations

import dataclasses
import gc
import os
import traceback
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NoReturn

import click

from flask_backend import signals, tracing
from flask_backend.outcome import Ending
from flask_backend.supervisor import (
    SETTLED,
    SETTLED_FOR_GOOD,
    ChildContext,
    Descriptors,
    Event,
    EventName,
    EventSink,
    Handover,
    HandoverError,
    Notifier,
    Pool,
    Service,
    ServiceManager,
    Supervisor,
    SupervisorOptions,
    Terminal,
    Work,
    is_check,
)
from flask_backend.system import page
from flask_backend.system.exits import ExitCode, leave, leave_at_once
from flask_backend.system.loggers import delivery, get_logger
from flask_backend.system.streams import WORKER_PATIENCE_S, streams
from flask_backend.transactions import forget_connections
from flask_backend.worker import postmortem
from flask_backend.worker.event_loop import EventLoop
from flask_backend.worker.execution import Runner, prepare
from flask_backend.worker.options import WorkerOptions
from flask_backend.worker.outcomes import announce
from flask_backend.worker.worker import Worker

from .apps import AppLoadError, LoadedApp, load_app_of_workers, refuse_patch, users_traceback, warn_of_threads
from .demand import QueueReader
from .metrics import check_metrics, open_metrics
from .periodic import make_scheduler, scheduled_queues
from .pools import check_descriptors, memory_to_share, plan_pools
from .stopping import StopSignalsWhileLoading

if TYPE_CHECKING:
    from flask_backend.deaths import Death
    from flask_backend.logs import LogFormat
    from flask_backend.metrics.endpoint import Endpoint

logger = get_logger("flask_backend.supervisor")

_SIGNALS = {
    EventName.WORKER_EXITED: signals.worker_exited,
    EventName.SUPERVISOR_READY: signals.supervisor_ready,
    EventName.SUPERVISOR_RELOADED: signals.supervisor_reloaded,
}


@dataclass(frozen=True, slots=True)
class Request:
    """The options of `supervise`, under their names. All times are in seconds."""

    queues: tuple[tuple[str, tuple[int, int] | None], ...]  # with the minimum and the maximum of workers
    workers: tuple[int, int] | None
    max_memory: int | Literal["auto"] | None
    max_memory_hard: int | None
    max_tasks: int | None
    prefetch: int
    time_limit: float | None
    kill_grace: float
    boot_timeout: float
    give_up_after: int | None
    give_up_within: float
    drain_timeout: float
    metrics: Endpoint | None
    log_format: LogFormat


def run_supervisor(ctx: click.Context, request: Request) -> NoReturn:
    """Load the app, run its workers until a signal stops them, and end the process."""
    handover = Handover.take()
    signals = StopSignalsWhileLoading(may_exit=handover is None)
    notifier = Notifier(handover.manager if handover else ServiceManager.take())
    terminal = Terminal.find(was_there=handover.had_terminal if handover else None)
    # Imported objects live as long as the process. The garbage collector must not visit them: its marks would unshare
    # the pages of every worker.
    gc.disable()
    loaded = load_app_of_workers(ctx, request.log_format)
    signals.exit_if_one_came()
    signals.warn_of_others()
    pools = plan_pools(loaded, request.queues, request.workers)
    warn_of_threads()
    check_metrics(request.metrics)
    service = open_metrics(loaded, request.metrics, handover)
    scheduler = make_scheduler(loaded, [pool.name for pool in pools])
    options = _make_options(request, _count_descriptors(pools, handover), terminal, service, scheduler)
    worker_options = WorkerOptions(
        request.drain_timeout, request.time_limit, request.kill_grace, request.max_tasks, request.prefetch
    )
    supervisor = Supervisor(pools, _make_work(loaded, pools, worker_options), options, notifier, handover)
    _warm_up(loaded, pools)
    gc.freeze()
    gc.enable()
    signals.pass_on()
    delivery.limit()
    status = supervisor.run()
    leave(status, supervisor.leave_within_s, supervisor.wait_for_stop)


def is_only_to_check() -> bool:
    """Whether a running supervisor has started this process to test whether it could take over."""
    try:
        return is_check()
    except HandoverError as error:
        raise AppLoadError(str(error)) from error


def check_supervisor(ctx: click.Context, request: Request) -> NoReturn:
    """Load the app and do all that could fail before its workers are ready; end the process."""
    loaded = load_app_of_workers(ctx, request.log_format)
    pools = plan_pools(loaded, request.queues, request.workers)
    check_metrics(request.metrics)
    logger.info("%s", check_descriptors(Descriptors.count(), pools))
    _try_hooks(loaded, pools)
    leave_at_once(ExitCode.OK)


def _count_descriptors(pools: list[Pool], handover: Handover | None) -> Descriptors:
    """Count the open descriptors, check that the workers can have enough, and raise the limit."""
    if handover:  # whose check has passed
        descriptors = Descriptors.count(soft=handover.soft_limit, ours=len(handover.descriptors()))
    else:
        descriptors = Descriptors.count()
        logger.info("%s", check_descriptors(descriptors, pools))
    descriptors.raise_limit()
    return descriptors


def _make_options(
    request: Request,
    descriptors: Descriptors,
    terminal: Terminal,
    service: Service | None,
    scheduler: Service | None,
) -> SupervisorOptions:
    return SupervisorOptions(
        drain_timeout_s=request.drain_timeout,
        boot_timeout_s=request.boot_timeout,
        max_memory_bytes=None if request.max_memory == "auto" else request.max_memory,
        shared_memory_bytes=memory_to_share() if request.max_memory == "auto" else None,
        max_memory_hard_bytes=request.max_memory_hard,
        give_up_after=request.give_up_after,
        give_up_within_s=request.give_up_within,
        descriptors=descriptors,
        page_folder=page.folder_for(os.environ),
        service=service,
        scheduler=scheduler,
        terminal=terminal,
    )


def _make_work(loaded: LoadedApp, pools: list[Pool], options: WorkerOptions) -> Work:
    """Return the work of the children, for a supervisor that knows neither Flask nor Beanstalkd."""
    settings = loaded.backend.settings_of(loaded.app)

    def work(context: ChildContext) -> int:
        forget_connections(loaded.app)
        streams.wait_for_readers(WORKER_PATIENCE_S)
        own = dataclasses.replace(options, lifeline=context.lifeline)
        status = Worker(loaded.app, settings, loaded.backend.queues[context.pool], context, own).run()
        # The supervisor ends a worker that exits too slowly, unless it waits for the reason why one cannot start.
        leave(status, None if status == ExitCode.OK else options.drain_timeout_s)

    def settle(fd: int, death: Death, crashes: int) -> int:
        forget_connections(loaded.app)
        settled = postmortem.settle(settings, loaded.backend.queues[death.pool], fd, death, crashes)
        if settled is None:
            return ExitCode.OK
        postmortem.announce_crash(loaded.app, settings, settled, death)
        return SETTLED_FOR_GOOD if settled.ending is Ending.BURIED else SETTLED

    def send(event: Event) -> None:
        forget_connections(loaded.app)
        announce(loaded.app, _SIGNALS[event.name], description=event.description, **event.facts)

    growing = {pool.name: loaded.backend.queues[pool.name].limit for pool in pools if not pool.bounds.is_fixed}
    look = QueueReader(settings, growing)
    labels = {pool.name: loaded.backend.queues[pool.name].names for pool in pools}
    events = EventSink(lambda name: bool(_SIGNALS[name].receivers), send, tracing.flush)
    limits = {pool.name: limit.name for pool in pools if (limit := loaded.backend.queues[pool.name].limit)}
    facts = {
        "app": loaded.app.name,
        "broker": str(settings.address),
        "limits": limits,
        "scheduled_queues": scheduled_queues(loaded, labels),
    }
    return Work(work, labels, settle, events, facts, look)


def _try_hooks(loaded: LoadedApp, pools: list[Pool]) -> None:
    """Run the hooks of all queues, as their workers would."""
    base_url = loaded.backend.settings_of(loaded.app).base_url
    for pool in pools:
        with closing(EventLoop()) as event_loop:
            try:
                Runner(loaded.app, loaded.backend.queues[pool.name], event_loop, base_url).run_hooks()
            except BaseException as error:  # also SystemExit: no worker could start
                raise AppLoadError(f"a hook of {pool.name} failed.\n\n{users_traceback(error)}") from error
            finally:
                refuse_patch()


def _warm_up(loaded: LoadedApp, pools: list[Pool]) -> None:
    """Import, once for all workers, the modules that the first connection and the first failure import."""
    "localhost".encode("idna")  # as the socket module does with every host
    try:
        int("")
    except ValueError:
        traceback.format_exc()
    for pool in pools:
        prepare(loaded.backend.queues[pool.name])
