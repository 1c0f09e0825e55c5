"""The command that checks the app without running it."""

from __future__ import annotations

from typing import Any

import click
from click.core import ParameterSource

from flask_backend.cli import ends_with_command
from flask_backend.cli.apps import LoadedApp, load_app_of_workers, warn_of_threads
from flask_backend.cli.output import echo, echo_json, json_option
from flask_backend.cli.scanning import scan_option
from flask_backend.functions import shown_name
from flask_backend.system.exits import ExitCode, leave_at_once

from .supervise import supervise


@click.command()
@click.option(
    "--waiting",
    is_flag=True,
    help="Also check the jobs that wait in the app's queues, and list the ones that this version cannot run.",
)
@scan_option
@json_option
@click.pass_context
def check(ctx: click.Context, bound: int, *, waiting: bool, as_json: bool) -> None:
    """Load the app and show its queues and tasks, without running any.

    Also show how many file descriptors `supervise` needs for the number of workers in its environment variables.

    With --waiting, compare the calls of all ready, delayed and buried jobs with the app's tasks, without reserving a
    job.

    Exit codes: 3 if the app cannot be loaded; with --waiting, 1 if it cannot run one of the jobs, buried ones included.
    """
    if not waiting and ctx.get_parameter_source("bound") is not ParameterSource.DEFAULT:
        raise click.UsageError("--scan needs --waiting: pass both")
    loaded = load_app_of_workers(ctx)
    descriptors = _check_descriptors(ctx, loaded)
    if as_json and not waiting:
        echo_json(_as_dict(loaded))
    if not as_json:
        _echo(loaded)
    if not as_json and not waiting and descriptors:
        echo(descriptors)
    status = _check_waiting(loaded, bound, as_json=as_json) if waiting else ExitCode.OK
    if ends_with_command(ctx):
        warn_of_threads()
        leave_at_once(status)
    ctx.exit(status)


def _check_descriptors(ctx: click.Context, loaded: LoadedApp) -> str | None:
    """Return the needs of `supervise`, unless the app has no queues or the variables of `supervise` are wrong."""
    from flask_backend.cli.pools import check_descriptors, plan_pools
    from flask_backend.supervisor import Descriptors

    try:
        options = supervise.make_context("supervise", [], parent=ctx).params
    except click.UsageError:
        return None
    if not loaded.backend.queues:
        return None
    pools = plan_pools(loaded, options["queues"], options["workers"])
    return check_descriptors(Descriptors.count(), pools)


def _check_waiting(loaded: LoadedApp, bound: int, *, as_json: bool) -> ExitCode:
    from flask_backend.cli.waiting import as_dict, look, show

    jobs, search = look(loaded, bound)
    if as_json:
        echo_json({**_as_dict(loaded), "waiting": as_dict(jobs, search)})
    else:
        show(jobs, search)
    search.warn_if_incomplete()
    return ExitCode.FAILED if jobs.groups else ExitCode.OK


def _as_dict(loaded: LoadedApp) -> dict[str, Any]:
    periodic = loaded.backend.periodic_of(loaded.app)
    return {
        "app": loaded.app.name,
        "broker": str(loaded.backend.settings_of(loaded.app).address),
        "queues": [
            {
                "queue": handlers.queue,
                "tasks": sorted(handlers.tasks),
                "receiver": handlers.receiver.name if handlers.receiver else None,
                "before_first_task": [shown_name(hook) for hook in handlers.hooks],
                "periodic": [
                    {"name": each.name, "task": each.endpoint, "when": str(each.when), "timezone": each.zone}
                    for each in periodic.get(handlers.queue, ())
                ],
            }
            for handlers in loaded.backend.queues.values()
        ],
    }


def _echo(loaded: LoadedApp) -> None:
    echo(f"app:    {loaded.app.name}\nbroker: {loaded.backend.settings_of(loaded.app).address}")
    periodic = loaded.backend.periodic_of(loaded.app)
    for handlers in loaded.backend.queues.values():
        echo(f"queue:  {handlers.queue}")
        for name in sorted(handlers.tasks):
            echo(f"  task {name}")
        if handlers.receiver:
            echo(f"  receiver {handlers.receiver.name}")
        for hook in handlers.hooks:
            echo(f"  before first task {shown_name(hook)}")
        for each in periodic.get(handlers.queue, ()):
            echo(f"  periodic {each.name}: {each.when.words()} ({each.zone})")
    if not loaded.backend.queues:
        echo("no tasks and no receivers")
