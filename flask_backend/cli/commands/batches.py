"""The command that shows the batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from flask_backend.cli.brokers import broker_option, open_console
from flask_backend.cli.output import Column, echo, echo_json, echo_table, json_option, show_seconds
from flask_backend.visible import MAX_NAME, visible

if TYPE_CHECKING:
    from flask_backend.operations.batches import BatchProgress

_MIN_CALLBACK = 12


@click.command()
@click.option(
    "--limit", type=click.IntRange(min=1), default=50, show_default=True, metavar="N", help="Show at most the oldest N."
)
@json_option
@broker_option
@click.pass_context
def batches(ctx: click.Context, limit: int, broker_uri: str | None, *, as_json: bool) -> None:
    """List the batches that are not complete, oldest first.

    "done" counts the calls that are finished. The callback starts when all are; a buried call holds it up, unless the
    batch was made with when="ended". "-" as the number of buried calls: too many calls to look at. Yellow: calls are
    buried, or the batch is not sent completely.
    """
    with open_console(ctx, broker_uri) as console:
        found = console.batches(limit)
        address = console.address
    if as_json:
        echo_json([{"broker": address, **asdict(batch)} for batch in found.found])
    elif found.found:
        _echo_batches(found.found)
    else:
        echo(f"no batches at {address}: all are complete", err=True)
    if len(found.found) < found.count:
        echo(f"the oldest {len(found.found):,} of {found.count:,} batches: --limit N shows more", err=True)


def _echo_batches(found: Sequence[BatchProgress]) -> None:
    columns = [Column("batch"), Column("callback", least=_MIN_CALLBACK)]
    columns += [Column(title, is_number=True) for title in ("done", "buried", "age")]
    rows = [
        [
            batch.id,
            visible(batch.callback, MAX_NAME),
            "being sent" if batch.is_open else f"{batch.done} of {batch.members}",
            "-" if batch.buried is None else str(batch.buried),
            show_seconds(batch.age_s),
        ]
        for batch in found
    ]
    echo_table(columns, rows, [{"fg": "yellow"} if batch.buried or batch.is_open else {} for batch in found])
