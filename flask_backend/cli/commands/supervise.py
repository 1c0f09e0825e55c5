"""The command that runs a supervisor."""

from __future__ import annotations

from typing import Any

import click

from flask_backend.cli.interrupts import abort_on_interrupt
from flask_backend.cli.parameters import (
    drain_timeout_option,
    env_option,
    kill_grace_option,
    log_format_option,
    parse_endpoint,
    parse_queue,
    parse_size,
    parse_size_or_auto,
    parse_workers,
    time_limit_option,
)
from flask_backend.system.loggers import delivery
from flask_backend.system.streams import streams

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
    help="A queue to serve, with its own number of workers or range if given. May be repeated. Default: all queues of "
    "the app.",
)
@env_option(
    "BACKEND_WORKERS",
    "--workers",
    "-w",
    type=parse_workers,
    metavar="N|MIN..MAX",
    help="Workers for each queue: a number, or a range such as 2..8. In a range, a queue gets one more after each few "
    "seconds in which jobs are ready and no worker waits, and one fewer after each minute in which some worker was "
    "idle.  [default: the CPUs this process may use]",
)
@env_option(
    "BACKEND_MAX_MEMORY",
    "--max-memory",
    type=parse_size_or_auto,
    metavar="SIZE|auto",
    help="Recycle a worker after its task if its private memory is larger: 200M, 1.5G. auto takes nine tenths of the "
    "memory of the control group or machine, less that of the app itself, and shares it evenly among the most workers "
    "that there may be.",
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
@env_option(
    "BACKEND_GIVE_UP_AFTER",
    "--give-up-after",
    type=click.IntRange(min=1),
    metavar="DEATHS",
    help="Give up, with exit code 5, when this many workers of a queue have died within the time of --give-up-within "
    "and finished no job in between.  [default: 10, or twice the workers of the queue if that is more]",
)
@env_option(
    "BACKEND_GIVE_UP_WITHIN",
    "--give-up-within",
    type=click.FloatRange(min=0, min_open=True),
    default=60.0,
    metavar="SECONDS",
    help="The time for --give-up-after.",
)
@drain_timeout_option
@env_option(
    "BACKEND_METRICS",
    "--metrics",
    type=parse_endpoint,
    metavar="ADDRESS",
    help="Serve metrics for Prometheus at /metrics on this address: a port of the loopback interface such as 9464, "
    "HOST:PORT such as 0.0.0.0:9464 or [::]:9464, or unix:/PATH. Needs the extra `metrics`.",
)
@log_format_option
@click.pass_context
def supervise(ctx: click.Context, /, **options: Any) -> None:
    """Import the app once, fork workers for each queue, and keep them running.

    TERM or INT drains: workers take no new tasks; tasks that still run after the drain timeout are given back. A second
    signal, or QUIT, gives them back at once. HUP reloads the app if its new code works; if the terminal that started
    this is gone, HUP drains. TTIN and TTOU add and remove a worker for each queue, or move both ends of its range;
    USR1 prints every Python stack.

    Exit codes: 0 stopped on request; 1 failed; 2 wrong usage; 3 the app cannot be loaded or its workers cannot start;
    4 stopped on request, but some tasks were given back unfinished; 5 gave up because the workers kept dying.
    """
    delivery.protect()
    streams.expect_no_results()
    with abort_on_interrupt():
        from flask_backend.cli.composition import Request, check_supervisor, is_only_to_check, run_supervisor

    run = check_supervisor if is_only_to_check() else run_supervisor
    run(ctx, Request(**options))
