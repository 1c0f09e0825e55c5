"""The command that lists the jobs of a queue."""

from __future__ import annotations

import time
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

import click

from flask_backend.cli.brokers import broker_option, open_console
from flask_backend.cli.lookup import no_such_queue
from flask_backend.cli.output import Column, echo, echo_json, echo_table, json_option, show_seconds
from flask_backend.cli.scanning import Search, scan_option
from flask_backend.message import cut
from flask_backend.operations.bodies import expiry_in, show_body
from flask_backend.operations.records import attempts_made, job_as_dict

if TYPE_CHECKING:
    from flask_backend.broker.stats import JobRecord


@dataclass(frozen=True, slots=True)
class _Found:
    record: JobRecord
    call: str
    expires_at: float | None


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
        found = [
            _Found(record, cut(show_body(console.masking.body(queue, body)), _MAX_CALL), expiry_in(body))
            for record, body in islice(search.with_bodies(), limit)
        ]
        address = console.address
        missing = "" if search.counted or console.queue(queue) else f": {no_such_queue(console, queue)}"
    is_cut = len(found) == limit < search.counted
    if as_json:
        echo_json(
            {
                "broker": address,
                "queue": queue,
                "jobs": [
                    {**job_as_dict(address, each.record), "expires_at": each.expires_at, "call": each.call}
                    for each in found
                ],
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


def _echo_jobs(found: list[_Found]) -> None:
    now = time.time()
    columns = [Column("id", is_number=True), Column("state"), Column("age", is_number=True)]
    has_due = any(each.record.state == "delayed" for each in found)
    columns += [Column("due in", is_number=True)] if has_due else []
    has_expiry = any(each.expires_at is not None for each in found)
    columns += [Column("expires in", is_number=True)] if has_expiry else []
    columns += [Column("attempts", is_number=True), Column("call", least=_MIN_CALL)]
    rows: list[list[str]] = []
    for each in found:
        record = each.record
        due = show_seconds(record.time_left_s) if record.state == "delayed" else "-"
        row = [str(record.id), record.state, show_seconds(record.age_s)]
        row += [due] if has_due else []
        row += [_show_expiry(each.expires_at, now)] if has_expiry else []
        rows.append([*row, str(attempts_made(record)), each.call])
    echo_table(columns, rows)


def _show_expiry(at: float | None, now: float) -> str:
    if at is None:
        return "-"
    return show_seconds(at - now) if at > now else "expired"
