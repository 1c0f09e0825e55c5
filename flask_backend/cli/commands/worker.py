"""The command that runs one worker."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from flask_backend.cli.apps import check_queue, load_app_of_workers
from flask_backend.cli.output import count_of
from flask_backend.cli.parameters import drain_timeout_option, kill_grace_option, log_format_option, time_limit_option
from flask_backend.cli.stopping import StopSignalsWhileLoading
from flask_backend.system.exits import leave
from flask_backend.system.loggers import delivery, get_logger
from flask_backend.system.streams import WORKER_PATIENCE_S, streams

if TYPE_CHECKING:
    from flask_backend.logs import LogFormat

logger = get_logger("flask_backend.worker")


@click.command()
@click.argument("queue")
@click.option(
    "--no-fork",
    is_flag=True,
    expose_value=False,
    help="Run in this process, so that breakpoint() has the terminal. This command always does.",
)
@time_limit_option
@kill_grace_option
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
    prints the Python stacks. breakpoint() in a task stops in pdb, while its job stays reserved. Periodic tasks are
    scheduled by supervisors only, not by this command.
    """
    delivery.protect()
    streams.expect_no_results()
    signals = StopSignalsWhileLoading()

    from flask_backend.cli import debugger

    debugger.install()
    loaded = load_app_of_workers(ctx, log_format)
    signals.exit_if_one_came()
    signals.warn_of_others()
    check_queue(loaded, queue)
    if periodic := loaded.backend.periodic_of(loaded.app).get(queue):
        logger.warning(
            "a single worker does not schedule the %s of %s: `flask-backend supervise` does",
            count_of(len(periodic), "periodic task"),
            queue,
        )

    from flask_backend.system.stacks import dump_on_signal
    from flask_backend.worker.host import Foreground
    from flask_backend.worker.options import WorkerOptions
    from flask_backend.worker.worker import Worker

    streams.wait_for_readers(WORKER_PATIENCE_S)
    dump_on_signal()
    options = WorkerOptions(drain_timeout, time_limit_s=time_limit, kill_grace_s=kill_grace)
    settings = loaded.backend.settings_of(loaded.app)
    leave(Worker(loaded.app, settings, loaded.backend.queues[queue], Foreground(queue), options).run(), drain_timeout)
