"""The commands that run workers, as the app and the options define them."""

from __future__ import annotations

import dataclasses
import gc
import sys
import threading
import traceback
from contextlib import closing
from typing import TYPE_CHECKING, Any, Literal

import click

from flask_backend.cli.apps import (
    AppLoadError,
    LoadedApp,
    StopSignalsWhileLoading,
    check_queue,
    load_app_of_workers,
    refuse_patch,
    users_traceback,
)
from flask_backend.cli.parameters import (
    drain_timeout_option,
    log_format_option,
    parse_queue,
    parse_size,
    parse_size_or_auto,
    time_limit_options,
)
from flask_backend.system.exits import ExitCode, leave, leave_at_once
from flask_backend.system.loggers import delivery, get_logger
from flask_backend.system.machine import available_cpus, available_memory
from flask_backend.system.streams import WORKER_PATIENCE_S, streams

logger = get_logger("flask_backend.supervisor")

if TYPE_CHECKING:
    from flask_backend.deaths import Death
    from flask_backend.logs import LogFormat
    from flask_backend.supervisor import ChildContext, Descriptors, Pool, Work
    from flask_backend.worker.worker import Limits

# More jobs are not faster, and all of them wait if the first one takes long.
MAX_PREFETCH = 100


@click.command()
@click.option(
    "--queue",
    "-q",
    "queues",
    type=parse_queue,
    metavar="NAME[=WORKERS]",
    multiple=True,
    envvar="BACKEND_QUEUES",
    show_envvar=True,
    help="A queue to serve, with its own number of workers if given. May be repeated. Default: all queues of the app.",
)
@click.option(
    "--workers",
    "-w",
    type=click.IntRange(min=1),
    envvar="BACKEND_WORKERS",
    show_envvar=True,
    help="Workers for each queue.  [default: the CPUs this process may use]",
)
@click.option(
    "--max-memory",
    type=parse_size_or_auto,
    metavar="SIZE|auto",
    envvar="BACKEND_MAX_MEMORY",
    show_envvar=True,
    help="Recycle a worker after its task if its private memory is larger: 200M, 1.5G. auto takes nine tenths of the "
    "memory of the control group or machine, less that of the app itself, and shares it evenly among the workers.",
)
@click.option(
    "--max-memory-hard",
    type=parse_size,
    metavar="SIZE",
    envvar="BACKEND_MAX_MEMORY_HARD",
    show_envvar=True,
    help="Kill a worker if its private memory is larger, even during a task.",
)
@click.option(
    "--max-tasks",
    type=click.IntRange(min=1),
    envvar="BACKEND_MAX_TASKS",
    show_envvar=True,
    help="Recycle a worker after this many tasks.",
)
@click.option(
    "--prefetch",
    type=click.IntRange(min=1, max=MAX_PREFETCH),
    default=1,
    envvar="BACKEND_PREFETCH",
    show_envvar=True,
    show_default=True,
    metavar="N",
    help="Let a worker reserve up to N jobs at a time. This is faster for tiny tasks but less fair: a job that one "
    "worker holds waits for the jobs before it, even if another worker is idle.",
)
@time_limit_options
@click.option(
    "--boot-timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=60.0,
    envvar="BACKEND_BOOT_TIMEOUT",
    show_envvar=True,
    show_default=True,
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


def check_descriptors(descriptors: Descriptors, pools: list[Pool]) -> str:
    """Return how many descriptors the workers need; raise :exc:`AppLoadError` if the system allows fewer."""
    from flask_backend.supervisor import TooFewDescriptorsError

    workers = sum(pool.size for pool in pools)
    try:
        descriptors.check(workers)
    except TooFewDescriptorsError as error:
        raise AppLoadError(str(error)) from error
    return descriptors.tell(workers)


def is_only_to_check() -> bool:
    """Whether a running supervisor has started this process to test whether it could take over."""
    from flask_backend.supervisor import HandoverError, is_check

    try:
        return is_check()
    except HandoverError as error:
        raise AppLoadError(str(error)) from error


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


def plan_pools(loaded: LoadedApp, queues: tuple[tuple[str, int | None], ...], workers: int | None) -> list[Pool]:
    from flask_backend.supervisor import Pool

    wanted = queues or tuple((name, None) for name in loaded.backend.queues)
    if not wanted:
        raise AppLoadError(f"app {loaded.app.name!r} registers no task and no receiver")
    of_each = workers or available_cpus()
    pools = [Pool(name, count or of_each) for name, count in wanted]
    for pool in pools:
        check_queue(loaded, pool.name)
    if len({pool.name for pool in pools}) < len(pools):
        raise click.UsageError("a queue is named twice: pass each once, as --queue NAME=WORKERS")
    return pools


def share_of_memory(pools: list[Pool]) -> int:
    """Return the private memory each worker may have, so that all of them fit beside their shared memory."""
    import psutil

    shared = psutil.Process().memory_info().rss
    return max(1, int(available_memory() * 0.9) - shared) // sum(pool.size for pool in pools)


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


def warn_of_threads() -> None:
    others = [thread.name for thread in threading.enumerate() if thread is not threading.main_thread()]
    if others:
        logger.warning(
            "importing the app has started threads (%s); they do not run in the workers, and locks that they hold "
            "stay locked there. Start them in a before_first_task hook.",
            ", ".join(others),
        )
    listeners = getattr(sys.modules.get("logging.handlers"), "QueueListener", ())  # only if the app has imported it
    for thread in threading.enumerate():
        listener: Any = getattr(getattr(thread, "_target", None), "__self__", None)
        if isinstance(listener, listeners):
            logger.warning(
                "importing the app has started a %s (thread %s), which does not run in the workers: records that "
                "they log to its queue never reach its handlers (%s). Start it in a before_first_task hook, with a new "
                "queue.",
                type(listener).__name__,
                thread.name,
                ", ".join(type(handler).__name__ for handler in listener.handlers),
            )


@click.command()
@click.argument("queue")
@click.option(
    "--no-fork",
    is_flag=True,
    expose_value=False,
    help="Run in this process, so that breakpoint() has the terminal. This command always does.",
)
@time_limit_options
@drain_timeout_option
@log_format_option
@click.pass_context
def worker(  # noqa: PLR0913  # one parameter for each option
    ctx: click.Context,
    queue: str,
    time_limit: float | None,
    kill_grace: float,
    drain_timeout: float,
    log_format: LogFormat,
) -> None:
    """Run one worker of QUEUE in the foreground, without a supervisor.

    TERM or INT finishes the running task and exits; a second signal, or QUIT, gives it back and exits at once. USR1
    prints the Python stacks. breakpoint() in a task stops in pdb, while its job stays reserved.
    """
    from flask_backend.cli import debugger

    signals = StopSignalsWhileLoading()
    debugger.install()
    loaded = load_app_of_workers(ctx, log_format)
    signals.exit_if_one_came()
    signals.warn_of_others()
    check_queue(loaded, queue)

    from flask_backend.system.stacks import dump_on_signal
    from flask_backend.worker.host import Foreground
    from flask_backend.worker.worker import Limits, Worker

    streams.wait_for_readers(WORKER_PATIENCE_S)
    dump_on_signal()
    limits = Limits(drain_timeout, time_limit_s=time_limit, kill_grace_s=kill_grace)
    settings = loaded.backend.settings_of(loaded.app)
    leave(Worker(loaded.app, settings, loaded.backend.queues[queue], Foreground(queue), limits).run(), drain_timeout)
