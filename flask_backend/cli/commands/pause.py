"""The command that pauses a queue."""

from __future__ import annotations

import click

from flask_backend.cli.brokers import broker_option, open_console
from flask_backend.cli.lookup import find_queue
from flask_backend.cli.output import confirm, echo, echo_json, json_option, show_seconds, yes_option
from flask_backend.cli.pausing import describe, set_pause
from flask_backend.operations.records import queue_as_dict


@click.command()
@click.argument("queue")
@click.option(
    "--for",
    "seconds",
    type=click.IntRange(1, 2**32 - 1),
    metavar="SECONDS",
    help="How long.  [default: until it is resumed]",
)
@yes_option
@json_option
@broker_option
@click.pass_context
def pause(  # noqa: PLR0913  # one parameter for each option
    ctx: click.Context, queue: str, seconds: int | None, broker_uri: str | None, *, yes: bool, as_json: bool
) -> None:
    """Stop workers from taking jobs of QUEUE.

    Jobs can still be put, and running ones go on. The server forgets a pause when it restarts, and when the queue is
    empty and no client uses it.
    """
    from flask_backend.broker.stats import UNTIL_RESUMED_S

    with open_console(ctx, broker_uri) as console:
        known = find_queue(console, queue)
        how_long = f" for {show_seconds(seconds)}" if seconds else ""
        confirm(f"Pause {describe(known)}{how_long}?", yes=yes)
        paused = set_pause(console, queue, seconds or UNTIL_RESUMED_S)
        if as_json:
            echo_json(queue_as_dict(console.address, paused))
        else:
            echo(f"paused {queue}{how_long or ' until it is resumed'}")
