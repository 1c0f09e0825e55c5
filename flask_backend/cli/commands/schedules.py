"""The command that shows the periodic tasks, and those that run, pause, resume and forget one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from flask_backend.cli.brokers import broker_option, find_settings
from flask_backend.cli.output import confirm, count_of, echo, echo_json, echo_table, json_option, yes_option
from flask_backend.cli.schedule_table import styles_of, table_of
from flask_backend.visible import listed

if TYPE_CHECKING:
    from flask_backend.operations.schedules import Schedule, ScheduledQueue, Schedules

queue_option = click.option("--queue", "-q", metavar="QUEUE", help="The queue, if several have a task of this name.")


@click.group(invoke_without_command=True)
@json_option
@broker_option
@click.pass_context
def schedules(ctx: click.Context, broker_uri: str | None, *, as_json: bool) -> None:
    """Show all periodic tasks: when they are due, what was scheduled, and who watches.

    Times are in the time zone of the task. "last" is the time for which it was last scheduled. "made" counts the calls;
    "missed" the times that passed without one, such as while no scheduler ran; "skipped" those at which the last call
    was unfinished, with overlap=False. A scheduler runs in each supervisor that serves the queue: without one, nothing
    is scheduled.
    """
    if ctx.invoked_subcommand is not None:
        ctx.meta[_BROKER] = broker_uri
        return
    with _open(ctx, broker_uri) as opened:
        found = opened.queues()
        if as_json:
            echo_json([_queue_as_dict(opened.address, queue) for queue in found])
        elif not found:
            echo(f"no periodic tasks at {opened.address}: no scheduler has run there", err=True)
        for number, queue in enumerate([] if as_json else found):
            if number:
                echo()
            _echo_queue(queue)
    if unwatched := [queue.name for queue in found if not queue.schedulers]:
        echo(
            f"no scheduler watches {listed(unwatched)}: its periodic tasks are not scheduled; start a supervisor that "
            "serves the queue, or use `flask-backend schedules forget NAME` if a task was removed from the app",
            err=True,
            fg="red",
        )


def _act_options(function: Callable[..., None]) -> Callable[..., None]:
    """Add the parameters of a command that acts on one periodic task."""
    return click.argument("name")(queue_option(yes_option(json_option(broker_option(function)))))


@schedules.command()
@_act_options
@click.pass_context
def run(  # noqa: PLR0913  # one parameter for each option
    ctx: click.Context, name: str, queue: str | None, broker_uri: str | None, *, yes: bool, as_json: bool
) -> None:
    """Schedule one call of the periodic task NAME now, and print the job's id."""
    with _open(ctx, broker_uri) as opened:
        known = opened.find(name, queue)
        confirm(f"Run {known.name} ({known.endpoint} on {known.queue}) now?", yes=yes)
        started = opened.run(known.queue, known.name)
        if as_json:
            echo_json({"broker": opened.address, "queue": known.queue, **asdict(started)})
        else:
            echo(started.job)


@schedules.command()
@_act_options
@click.pass_context
def pause(  # noqa: PLR0913  # one parameter for each option
    ctx: click.Context, name: str, queue: str | None, broker_uri: str | None, *, yes: bool, as_json: bool
) -> None:
    """Schedule no calls of the periodic task NAME, until it is resumed.

    The times that pass are left out. The pause stays through restarts and new code.
    """
    with _open(ctx, broker_uri) as opened:
        known = opened.find(name, queue)
        if not known.is_paused:
            confirm(f"Pause {known.name} ({_sentence(known)}, on {known.queue})?", yes=yes)
            known = opened.pause(known.queue, known.name)
        _echo_changed(opened, known, f"paused {known.name} until it is resumed", as_json=as_json)


@schedules.command()
@_act_options
@click.pass_context
def resume(  # noqa: PLR0913  # one parameter for each option
    ctx: click.Context, name: str, queue: str | None, broker_uri: str | None, *, yes: bool, as_json: bool
) -> None:
    """End the pause of the periodic task NAME."""
    with _open(ctx, broker_uri) as opened:
        known, done = opened.find(name, queue), f"{name} is not paused"
        if known.is_paused:
            confirm(f"Resume {known.name} ({_sentence(known)}, on {known.queue})?", yes=yes)
            known, done = opened.resume(known.queue, known.name), f"resumed {known.name}"
        _echo_changed(opened, known, done, as_json=as_json)


@schedules.command()
@_act_options
@click.pass_context
def forget(  # noqa: PLR0913  # one parameter for each option
    ctx: click.Context, name: str, queue: str | None, broker_uri: str | None, *, yes: bool, as_json: bool
) -> None:
    """Remove the state of the periodic task NAME, which was removed from the app.

    It is refused while a supervisor that serves the queue has the task. Its jobs stay.
    """
    with _open(ctx, broker_uri) as opened:
        known = opened.find(name, queue)
        confirm(f"Forget {known.name} ({_sentence(known)}, on {known.queue})?", yes=yes)
        opened.forget(known.queue, known.name)
        _echo_changed(opened, known, f"forgot {known.name}", as_json=as_json)


_BROKER = "flask_backend.broker"


def _open(ctx: click.Context, broker_uri: str | None) -> Schedules:
    from flask_backend.operations.schedules import Schedules

    return Schedules(find_settings(ctx, broker_uri if broker_uri is not None else ctx.meta.get(_BROKER)))


def _echo_changed(opened: Schedules, schedule: Schedule, done: str, *, as_json: bool) -> None:
    if as_json:
        echo_json({"broker": opened.address, **asdict(schedule)})
    else:
        echo(done)


def _queue_as_dict(address: str, queue: ScheduledQueue) -> dict[str, Any]:
    return {
        "broker": address,
        "queue": queue.name,
        "schedulers": queue.schedulers,
        "schedules": [asdict(schedule) for schedule in queue.schedules],
    }


def _echo_queue(queue: ScheduledQueue) -> None:
    echo(f"{queue.name}, {count_of(queue.schedulers, 'scheduler')}", bold=True)
    echo_table(*table_of(queue), styles_of(queue))


def _sentence(schedule: Schedule) -> str:
    return schedule.words[:1].lower() + schedule.words[1:]
