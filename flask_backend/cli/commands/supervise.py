"""The command that runs a supervisor."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING, Literal

import click

from flask_backend.cli.apps import AppLoadError, StopSignalsWhileLoading, load_app_of_workers, warn_of_threads
from flask_backend.cli.composition import make_work, try_hooks, warm_up
from flask_backend.cli.interrupts import abort_on_interrupt
from flask_backend.cli.parameters import (
    drain_timeout_option,
    env_option,
    kill_grace_option,
    log_format_option,
    parse_queue,
    parse_size,
    parse_size_or_auto,
    time_limit_option,
)
from flask_backend.cli.pools import check_descriptors, plan_pools, share_of_memory
from flask_backend.system.exits import ExitCode, leave, leave_at_once
from flask_backend.system.loggers import delivery, get_logger
from flask_backend.system.streams import streams

if TYPE_CHECKING:
    from flask_backend.logs import LogFormat

logger = get_logger("flask_backend.supervisor")

# More jobs are not faster, and all of them wait if the first one takes long.
MAX_PREFETCH = 100


@click.command()
@env_option(
    "BACKEND_QUEUES",
    "--queue",
    "-q",
    "queues",
    type=parse_queue,
    metavar="NAME[=WORKERS]",
    multiple=True,
    help="A queue to serve, with its own number of workers if given. May be repeated. Default: all queues of the app.",
)
@env_option(
    "BACKEND_WORKERS",
    "--workers",
    "-w",
    type=click.IntRange(min=1),
    help="Workers for each queue.  [default: the CPUs this process may use]",
)
@env_option(
    "BACKEND_MAX_MEMORY",
    "--max-memory",
    type=parse_size_or_auto,
    metavar="SIZE|auto",
    help="Recycle a worker after its task if its private memory is larger: 200M, 1.5G. auto takes nine tenths of the "
    "memory of the control group or machine, less that of the app itself, and shares it evenly among the workers.",
)
@env_option(
    "BACKEND_MAX_MEMORY_HARD",
    "--max-memory-hard",
    type=parse_size,
    metavar="SIZE",
    help="Kill a worker if its private memory is larger, even during a task.",
)
@env_option(
    "BACKEND_MAX_TASKS", "--max-tasks", type=click.IntRange(min=1), help="Recycle a worker after this many tasks."
)
@env_option(
    "BACKEND_PREFETCH",
    "--prefetch",
    type=click.IntRange(min=1, max=MAX_PREFETCH),
    default=1,
    metavar="N",
    help="Let a worker reserve up to N jobs at a time. This is faster for tiny tasks but less fair: a job that one "
    "worker holds waits for the jobs before it, even if another worker is idle.",
)
@time_limit_option
@kill_grace_option
@env_option(
    "BACKEND_BOOT_TIMEOUT",
    "--boot-timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=60.0,
    metavar="SECONDS",
    help="Kill a worker whose before_first_task hooks take longer.",
)
@drain_timeout_option
@log_format_option
@click.pass_context
def supervise(  # noqa: PLR0913  # one parameter for each option
    ctx: click.Context,
    queues: tuple[tuple[str, int | None], ...],
    workers: int | None,
    max_memory: int | Literal["auto"] | None,
    max_memory_hard: int | None,
    max_tasks: int | None,
    prefetch: int,
    time_limit: float | None,
    kill_grace: float,
    boot_timeout: float,
    drain_timeout: float,
    log_format: LogFormat,
) -> None:
    """Import the app once, fork workers for each queue, and keep them running.

    TERM or INT drains: workers take no new tasks; tasks that still run after the drain timeout are given back. A second
    signal, or QUIT, gives them back at once. HUP reloads the app if its new code works; if the terminal that started
    this is gone, HUP drains. TTIN and TTOU add and remove a worker for each queue; USR1 prints every Python stack.

    Exit codes: 0 stopped on request; 1 failed; 2 wrong usage; 3 the app cannot be loaded or its workers cannot start;
    4 stopped on request, but some tasks were given back unfinished; 5 gave up because the workers kept dying.
    """
    delivery.protect()
    streams.expect_no_results()
    with abort_on_interrupt():
        from flask_backend.supervisor import Descriptors, Handover, Notifier, Supervisor, SupervisorOptions, Terminal
        from flask_backend.worker.worker import Limits

    if is_only_to_check():
        loaded = load_app_of_workers(ctx, log_format)
        pools = plan_pools(loaded, queues, workers)
        logger.info("%s", check_descriptors(Descriptors.count(), pools))
        try_hooks(loaded, pools)
        leave_at_once(ExitCode.OK)
    handover = Handover.take()
    signals = StopSignalsWhileLoading(may_exit=handover is None)
    notifier = Notifier(handover.notify_address if handover else None)
    terminal = Terminal.find(was_there=handover.had_terminal if handover else None)
    # Imported objects live as long as the process. The garbage collector must not visit them: its marks would unshare
    # the pages of every worker.
    gc.disable()
    loaded = load_app_of_workers(ctx, log_format)
    signals.exit_if_one_came()
    signals.warn_of_others()
    pools = plan_pools(loaded, queues, workers)
    warn_of_threads()
    if handover:
        descriptors = Descriptors.count(soft=handover.soft_limit, ours=len(handover.descriptors()))
    else:
        descriptors = Descriptors.count()
        logger.info("%s", check_descriptors(descriptors, pools))
    descriptors.raise_limit()
    options = SupervisorOptions(
        drain_timeout_s=drain_timeout,
        boot_timeout_s=boot_timeout,
        max_memory_bytes=share_of_memory(pools) if max_memory == "auto" else max_memory,
        max_memory_hard_bytes=max_memory_hard,
        descriptors=descriptors,
        terminal=terminal,
    )
    limits = Limits(drain_timeout, time_limit, kill_grace, max_tasks, prefetch)
    try:
        supervisor = Supervisor(pools, make_work(loaded, pools, limits), options, notifier, handover)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    warm_up(loaded, pools)
    gc.freeze()
    gc.enable()
    signals.pass_on()
    delivery.limit()
    status = supervisor.run()
    leave(status, supervisor.leave_within_s, supervisor.wait_for_stop)


def is_only_to_check() -> bool:
    """Whether a running supervisor has started this process to test whether it could take over."""
    from flask_backend.supervisor import HandoverError, is_check

    try:
        return is_check()
    except HandoverError as error:
        raise AppLoadError(str(error)) from error
