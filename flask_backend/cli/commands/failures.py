"""The command that shows why jobs are buried."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from flask_backend.cli.brokers import broker_option, open_console
from flask_backend.cli.lookup import JobGoneError, find_failures, find_story, nothing_buried
from flask_backend.cli.output import (
    LISTED_QUEUES,
    echo,
    echo_json,
    echo_more,
    echo_table,
    json_option,
)
from flask_backend.cli.parameters import parse_job_id
from flask_backend.cli.stories import echo_story, table_of_groups
from flask_backend.operations.bodies import UNTOLD

if TYPE_CHECKING:
    from flask_backend.operations.console import Console, Failures
    from flask_backend.operations.failures import FailureGroup
    from flask_backend.stories import Story


@click.command()
@click.argument("queue", required=False)
@click.option("--job", "job_id", type=parse_job_id, metavar="ID", help="Show only the story of this job.")
@click.option(
    "--limit",
    type=click.IntRange(min=1),
    default=1000,
    show_default=True,
    metavar="N",
    help="Read at most the newest N stories of each queue.",
)
@json_option
@broker_option
@click.pass_context
def failures(  # noqa: PLR0913  # one parameter for each option
    ctx: click.Context, queue: str | None, job_id: int | None, limit: int, broker_uri: str | None, *, as_json: bool
) -> None:
    """Show why jobs are buried.

    Failures are counted by queue, endpoint and exception, or by what killed the worker; the newest one is shown in
    full. Without QUEUE, all queues are shown. Jobs that another program has buried have no story and are only counted,
    as are those with older stories than --limit.
    """
    if job_id is None:
        _show_failures(ctx, broker_uri, queue, limit, as_json=as_json)
    elif queue is None:
        _show_story(ctx, broker_uri, job_id, as_json=as_json)
    else:
        raise click.UsageError("QUEUE and --job exclude each other: an ID is enough")


def _show_story(ctx: click.Context, broker_uri: str | None, job_id: int, *, as_json: bool) -> None:
    with open_console(ctx, broker_uri) as console:
        note = _find_story(console, job_id)
    if as_json:
        echo_json({"broker": console.address, **asdict(note)})
    else:
        echo_story(note)
        _echo_next_steps(ctx, console.address, note.job)


def _show_failures(ctx: click.Context, broker_uri: str | None, queue: str | None, limit: int, *, as_json: bool) -> None:
    from flask_backend.operations.failures import group

    with open_console(ctx, broker_uri) as console:
        found = find_failures(console, queue, limit)
        if not found:
            echo(nothing_buried(console, queue), err=True)
        groups = group(found)
        if as_json:
            echo_json(_as_dicts(console, groups, found))
        elif found:
            _echo_failures(ctx, console, groups, found)
    if unread := sum(each.unread for each in found):
        read = sum(len(each.stories) for each in found)
        echo(f"\nthe newest {read:,} stories; {unread:,} older ones were not read: --limit N reads more", err=True)


def _echo_failures(
    ctx: click.Context, console: Console, groups: Sequence[FailureGroup], found: Sequence[Failures]
) -> None:
    address = console.address
    echo_table(*table_of_groups(console, groups, found))
    if newest := next(console.read_stories(group.newest for group in groups[:1]), None):
        echo()
        echo_story(newest)
        _echo_next_steps(ctx, address, newest.job)
    with_untold = [each for each in found if each.untold]
    for each in with_untold[:LISTED_QUEUES]:
        echo(
            f"\nburied in {each.queue} without a story: {each.untold:,}; to see them:\n"
            f"  {_command(ctx, address, f'jobs {each.queue} --state buried')}",
            err=True,
        )
    echo_more(len(with_untold))


def _find_story(console: Console, job_id: int) -> Story:
    job = console.job(job_id)
    if job is None:
        raise JobGoneError(job_id)
    if job.state != "buried":
        raise click.ClickException(f"job {job_id} of {job.queue} is {job.state}: only buried jobs have a story")
    story = find_story(console, job)
    if story is None:
        raise click.ClickException(f"job {job_id} of {job.queue} {UNTOLD}")
    return story


def _as_dicts(console: Console, groups: Sequence[FailureGroup], found: Sequence[Failures]) -> Iterator[dict[str, Any]]:
    for group in groups:
        notes = map(asdict, console.read_stories(group.stories))
        yield _as_dict(console, group.queue, group.endpoint, group.kind, len(group.stories), notes)
    for each in found:
        if each.untold:
            yield _as_dict(console, each.queue, None, None, each.untold, [])
        if each.unread:
            yield _as_dict(console, each.queue, None, None, each.unread, [], is_unread=True)


def _as_dict(  # noqa: PLR0913  # one for each field
    console: Console,
    queue: str,
    endpoint: str | None,
    kind: str | None,
    count: int,
    notes: Iterable[Any],
    *,
    is_unread: bool = False,
) -> dict[str, Any]:
    return {
        "broker": console.address,
        "queue": queue,
        "endpoint": endpoint,
        "kind": kind,
        "count": count,
        "is_unread": is_unread,
        "notes": notes,
    }


def _echo_next_steps(ctx: click.Context, address: str, job_id: int) -> None:
    echo(
        f"\nrun it again:  {_command(ctx, address, f'retry {job_id}')}\n"
        f"delete it:     {_command(ctx, address, f'delete {job_id}')}",
        err=True,
    )


def _command(ctx: click.Context, address: str, command: str) -> str:
    """Return a command to type here, with --broker if the command line named the broker or the app."""
    sources = (ctx.get_parameter_source("broker_uri"), ctx.find_root().get_parameter_source("app"))
    told = ParameterSource.COMMANDLINE in sources
    prefix = ctx.parent.command_path if ctx.parent else "flask-backend"
    return f"{prefix} {command}" + (f" --broker {address}" if told else "")
