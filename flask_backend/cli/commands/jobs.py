"""The command that lists the jobs of a queue."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

import click

from flask_backend.cli.bodies import show_body
from flask_backend.cli.brokers import broker_option, open_console
from flask_backend.cli.lookup import no_such_queue
from flask_backend.cli.output import Column, echo, echo_json, echo_table, json_option, show_seconds
from flask_backend.cli.records import attempts_made, job_as_dict
from flask_backend.cli.scanning import Search, scan_option
from flask_backend.message import cut

if TYPE_CHECKING:
    from flask_backend.broker.stats import JobRecord

STATES = ("ready", "reserved", "delayed", "buried")

_MAX_CALL = 1000  # characters, if a terminal does not limit them

_MIN_CALL = 20


@click.command()
@click.argument("queue")
@click.option(
    "--state",
    "states",
    type=click.Choice(STATES),
    multiple=True,
    help="Only jobs in this state. May be repeated.",
)
@click.option(
    "--limit", type=click.IntRange(min=1), default=50, show_default=True, metavar="N", help="Show at most the newest N."
)
@scan_option
@json_option
@broker_option
@click.pass_context
def jobs(  # noqa: PLR0913  # one parameter for each option
    ctx: click.Context,
    queue: str,
    states: tuple[str, ...],
    limit: int,
    bound: int,
    broker_uri: str | None,
    *,
    as_json: bool,
) -> None:
    """List the jobs of QUEUE, newest first.

    Beanstalkd cannot list jobs: this asks for each id, from the newest down, until it has found as many as the server
    counts. It reserves no job.
    """
    with open_console(ctx, broker_uri) as console:
        search = Search(console, [queue], states or STATES, bound)
        found = [(record, cut(show_body(body), _MAX_CALL)) for record, body in islice(search.with_bodies(), limit)]
        address = console.address
        missing = "" if search.counted or console.queue(queue) else f": {no_such_queue(console, queue)}"
    is_cut = len(found) == limit < search.counted
    if as_json:
        echo_json(
            {
                "broker": address,
                "queue": queue,
                "jobs": [{**job_as_dict(address, record), "call": call} for record, call in found],
                "counted": search.counted,
                "looked_at": search.looked_at,
                "is_complete": search.is_complete and not is_cut,
            }
        )
    elif found:
        _echo_jobs(found)
    elif search.is_complete:
        which = " or ".join(states) + " " if states else ""
        echo(f"no {which}jobs in {queue}{missing}", err=True)
    if is_cut:
        echo(f"the newest {len(found):,} of {search.counted:,} jobs: --limit N shows more", err=True)
    else:
        search.warn_if_incomplete()


def _echo_jobs(found: list[tuple[JobRecord, str]]) -> None:
    columns = [Column("id", is_number=True), Column("state"), Column("age", is_number=True)]
    has_due = any(record.state == "delayed" for record, _ in found)
    columns += [Column("due in", is_number=True)] if has_due else []
    columns += [Column("attempts", is_number=True), Column("call", least=_MIN_CALL)]
    rows: list[list[str]] = []
    for record, call in found:
        due = show_seconds(record.time_left_s) if record.state == "delayed" else "-"
        row = [str(record.id), record.state, show_seconds(record.age_s)]
        rows += [[*row, *([due] if has_due else []), str(attempts_made(record)), call]]
    echo_table(columns, rows)
