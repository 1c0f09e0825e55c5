"""The command that reloads a supervisor and waits for the outcome."""

from __future__ import annotations

import time

import click

from flask_backend.cli.output import echo
from flask_backend.cli.summary import choose
from flask_backend.operations import control
from flask_backend.system import page as pages
from flask_backend.system.procfs import PROC_IS_THERE

# The page has no way to wake a reader; a look takes less than a millisecond.
_LOOK_S = 0.05
# Beside two boot timeouts: one for the check of the new code, one for its workers.
MARGIN_S = 10.0


@click.command()
@click.option(
    "--pid", type=click.IntRange(min=1), help="The supervisor. Default: the only one of this user, or of root."
)
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    help="How long to wait for the outcome. Default: twice the supervisor's boot timeout, and 10 s.",
)
def reload(*, pid: int | None, timeout: float | None) -> None:
    """Let a supervisor take new code, and wait until that serves or is refused.

    It sends HUP. The supervisor checks the new code first; if the check fails, the old code goes on, and this command
    shows what the check wrote: the traceback of the app.

    Exit codes: 0 the new code serves; 1 the reload failed or its outcome is unknown; 2 wrong usage.
    """
    if not PROC_IS_THERE:
        raise click.ClickException("reload reads /proc, which only Linux has")
    found = choose(pid)
    checks = found.page.checks
    control.reload(found.pid)
    if timeout is None:
        timeout = 2 * float(found.page.facts().get("boot_timeout_s", 60.0)) + MARGIN_S
    _wait(found.pid, checks, timeout)


def _wait(pid: int, checks: int, timeout_s: float) -> None:
    """Wait for the outcome of a check that began after the first ``checks``."""
    until = time.monotonic() + timeout_s
    while time.monotonic() < until:
        time.sleep(_LOOK_S)
        found = pages.find(pid).get(pid)
        if found is None:
            raise click.ClickException(f"supervisor {pid} has ended during the reload: see its log")
        outcome = found.page.facts().get("reload")
        if outcome and outcome["check"] > checks:
            if not outcome["has_failed"]:
                echo(outcome["outcome"])
                return
            echo(outcome["output"].rstrip("\n"), err=True)
            raise click.ClickException(outcome["outcome"])
        if found.page.state in ("draining", "stopped"):
            raise click.ClickException(f"supervisor {pid} is stopping: see its log")
    raise click.ClickException(
        f"no outcome within {timeout_s:g} s: the reload may still go on, see `flask-backend status`"
    )
