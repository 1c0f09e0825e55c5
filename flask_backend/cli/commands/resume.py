"""The command that ends the pause of a queue."""

from __future__ import annotations

import click

from flask_backend.cli.brokers import broker_option, open_console
from flask_backend.cli.lookup import find_queue
from flask_backend.cli.output import confirm, echo, echo_json, json_option, yes_option
from flask_backend.cli.pausing import describe, set_pause
from flask_backend.operations.records import queue_as_dict


@click.command()
@click.argument("queue")
@yes_option
@json_option
@broker_option
@click.pass_context
def resume(ctx: click.Context, queue: str, broker_uri: str | None, *, yes: bool, as_json: bool) -> None:
    """End the pause of QUEUE."""
    with open_console(ctx, broker_uri) as console:
        known = find_queue(console, queue)
        if known.is_paused:
            confirm(f"Resume {describe(known)}?", yes=yes)
            known = set_pause(console, queue, 0)
            done = f"resumed {queue}"
        else:
            done = f"{queue} is not paused"
        if as_json:
            echo_json(queue_as_dict(console.address, known))
        else:
            echo(done)
