"""The command that shows the limits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from flask_backend.cli.brokers import broker_option, open_console
from flask_backend.cli.output import Column, echo, echo_json, echo_table, json_option, show_seconds

if TYPE_CHECKING:
    from flask_backend.operations.limits import LimitUse
    from flask_backend.operations.supervisors import Worker


@click.command()
@json_option
@broker_option
@click.pass_context
def limits(ctx: click.Context, broker_uri: str | None, *, as_json: bool) -> None:
    """Show the limits, and which workers use them.

    "used" is how many of n tasks run, or have started within the time of the limit; "waiting" is how many workers, of
    all hosts, have a job and wait. The second table has the workers of this machine; those of other hosts are in the
    output of this command there. Yellow: workers wait.
    """
    from flask_backend.operations import limits, supervisors

    with open_console(ctx, broker_uri) as console:
        found, address = console.limits(), console.address
    running = supervisors.find() if found else []
    workers = {use.name: limits.workers_of(running, address, use.name) for use in found}
    if as_json:
        echo_json([_as_dict(address, use, workers[use.name]) for use in found])
    elif found:
        _echo(found, workers)
    else:
        echo(f"no limits at {address}: no limited task has run there", err=True)


def _echo(found: Sequence[LimitUse], workers: Mapping[str, Sequence[Worker]]) -> None:
    columns = [Column("limit"), *(Column(title, is_number=True) for title in ("used", "n", "per", "waiting"))]
    echo_table(
        columns,
        [
            [use.name, str(use.used), str(use.n), show_seconds(use.per) if use.per else "-", str(use.waiting)]
            for use in found
        ],
        [{"fg": "yellow"} if use.waiting else {} for use in found],
    )
    rows = [
        [use.name, str(worker.process.pid), worker.queue, worker.activity]
        for use in found
        for worker in workers[use.name]
    ]
    if rows:
        echo()
        echo_table([Column("limit"), Column("pid", is_number=True), Column("queue"), Column("does")], rows)
    for use in found:
        if use.missing:
            what = "1 token is" if use.missing == 1 else f"{use.missing} tokens are"
            echo(f"limit {use.name}: {what} gone; a worker that waits replaces them", err=True)


def _as_dict(address: str, use: LimitUse, workers: Sequence[Worker]) -> dict[str, Any]:
    return {
        "broker": address,
        "limit": use.name,
        "n": use.n,
        "per": use.per,
        "used": use.used,
        "missing": use.missing,
        "waiting": use.waiting,
        "workers": [
            {
                "pid": worker.process.pid,
                "queue": worker.queue,
                "task": worker.task,
                "job_id": worker.job,
                "waits": worker.limited_s is not None,
                "for_s": round(worker.limited_s if worker.limited_s is not None else worker.since_s or 0, 1),
            }
            for worker in workers
        ],
    }
