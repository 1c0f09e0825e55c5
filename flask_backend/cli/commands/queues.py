"""The command that shows the queues."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from flask_backend.cli.brokers import broker_option, open_console
from flask_backend.cli.output import Column, echo, echo_json, echo_table, json_option, show_seconds
from flask_backend.operations.records import queue_as_dict
from flask_backend.system.exits import ExitCode
from flask_backend.visible import listed

if TYPE_CHECKING:
    from flask_backend.broker.stats import Queue
    from flask_backend.operations.console import Console, Rates

_TENFOLD = 10  # from here on a rate has no decimals


@click.command()
@click.option(
    "--check",
    "is_check",
    is_flag=True,
    help="Only check, for monitoring: exit code 1 if a queue has ready jobs but no worker.",
)
@click.option(
    "--interval",
    type=click.FloatRange(min=0),
    default=1.0,
    show_default=True,
    metavar="SECONDS",
    help="How long to measure the jobs put (in/s) and deleted (out/s) per second; 0 omits them.",
)
@json_option
@broker_option
@click.pass_context
def queues(ctx: click.Context, interval: float, broker_uri: str | None, *, is_check: bool, as_json: bool) -> None:
    """Show all queues, their jobs and workers.

    Jobs are counted by state. "waits" is how long the next job has been due; "-" if there is none, or if it was
    reserved or kicked before. Workers are the connections that watch a queue; idle ones wait for a job of it. Red: jobs
    are ready, but no worker watches the queue. Yellow: the queue is paused.
    """
    with open_console(ctx, broker_uri) as console:
        found, rates = _look(console, 0 if is_check else interval)
        waits = console.next_waits(found)
    if as_json:
        echo_json(
            [queue_as_dict(console.address, queue, waits.get(queue.name), rates.get(queue.name)) for queue in found]
        )
    elif not is_check and found:
        _echo_queues(found, waits, rates)
    elif not found:
        echo(f"no queues at {console.address}: it has no jobs and no workers", err=True)
    unwatched = [queue for queue in found if queue.is_unwatched]
    if unwatched:
        echo(f"no worker watches {listed([f'{queue.name} ({queue.ready} ready)' for queue in unwatched])}", err=True)
    if is_check and unwatched:
        ctx.exit(ExitCode.FAILED)


def _look(console: Console, interval_s: float) -> tuple[list[Queue], dict[str, Rates]]:
    before, began = console.queues(), time.monotonic()
    if not interval_s:
        return before, {}

    from flask_backend.operations.console import measure_rates

    time.sleep(interval_s)
    after, ended = console.queues(), time.monotonic()
    return after, measure_rates(before, after, ended - began)


def _echo_queues(found: Sequence[Queue], waits: Mapping[str, int], rates: Mapping[str, Rates]) -> None:
    with_pauses = any(queue.is_paused for queue in found)
    columns = [Column("queue")]
    columns += [Column("paused")] if with_pauses else []
    columns += [Column(title, is_number=True) for title in ("ready", "reserved", "delayed", "buried", "waits")]
    columns += [Column(title, is_number=True) for title in ("in/s", "out/s")] if rates else []
    columns += [Column("workers", is_number=True)]
    rows: list[list[str]] = []
    for queue in found:
        row = [queue.name]
        row += [_show_pause(queue)] if with_pauses else []
        row += [str(number) for number in (queue.ready, queue.reserved, queue.delayed, queue.buried)]
        row += [show_seconds(waits[queue.name]) if queue.name in waits else "-"]
        if rates:
            row += [_show_rate(rates[queue.name].put), _show_rate(rates[queue.name].deleted)]
        rows.append([*row, _show_workers(queue)])
    echo_table(columns, rows, [_style(queue) for queue in found])


def _show_pause(queue: Queue) -> str:
    if queue.is_paused_until_resumed:
        return "until resumed"
    return show_seconds(queue.pause_left_s) if queue.is_paused else "-"


def _show_rate(rate: float) -> str:
    return f"{rate:.1f}" if 0 < rate < _TENFOLD else f"{rate:.0f}"


def _show_workers(queue: Queue) -> str:
    return f"{queue.watching}, {queue.waiting} idle" if queue.watching else "none"


def _style(queue: Queue) -> dict[str, Any]:
    if queue.is_unwatched:
        return {"fg": "red"}
    return {"fg": "yellow"} if queue.is_paused else {}
