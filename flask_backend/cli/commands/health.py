"""The health check as a command. The entry points dispatch its plain form themselves, before click is imported."""

from __future__ import annotations

import click

from flask_backend.system.health import Request, report
from flask_backend.system.procfs import PROC_IS_THERE


@click.command()
@click.option("--live", is_flag=True, help="Only whether they are alive: a reason to restart them.")
@click.option("--ready", is_flag=True, help="Only whether they are ready: each queue has a worker with a connection.")
@click.option("--pid", type=click.IntRange(min=1), help="Check this supervisor. Default: all of this user, or of root.")
@click.option(
    "--stuck-after",
    type=click.IntRange(min=1),
    metavar="SECONDS",
    help="Not alive if a job takes longer. Without it, only if a job is still running 10 s after it had to be killed.",
)
@click.pass_context
def health(ctx: click.Context, *, live: bool, ready: bool, pid: int | None, stuck_after: int | None) -> None:
    """Check whether the supervisors here are alive and ready, for probes.

    It reads the status page, and imports neither click nor Flask nor the app. A supervisor is alive unless it is
    frozen, or a job is stuck. It is ready if each of its queues has a ready worker whose broker is not away, and if it
    does not drain: without a broker it is alive but not ready.

    Exit codes: 0 all is well; 1 not alive, not ready, or no supervisor runs here, with the reason on stderr; 2 wrong
    usage.
    """
    if not PROC_IS_THERE:
        raise click.ClickException("health reads /proc, which only Linux has")
    both = live is ready
    ctx.exit(report(Request(live=live or both, ready=ready or both, pid=pid, stuck_after_s=stuck_after or 0)))
