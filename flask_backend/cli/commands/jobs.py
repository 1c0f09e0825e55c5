"""The commands that show jobs: one job, or the jobs of a queue. They do not use the app's tasks."""

from __future__ import annotations

import base64
import dataclasses
import json
from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any

import click

from flask_backend.cli.bodies import call_in, show_arguments, show_at_length, show_body
from flask_backend.cli.brokers import broker_option, open_console
from flask_backend.cli.output import (
    Column,
    count_of,
    cut_to_width,
    echo,
    echo_json,
    echo_table,
    json_option,
    show_seconds,
    show_time,
    terminal_width,
    width_of,
)
from flask_backend.cli.parameters import parse_job_id
from flask_backend.cli.scanning import Search, scan_option
from flask_backend.errors import MessageDecodeError
from flask_backend.message import cut, decode_json, scheduled_at
from flask_backend.visible import visible

from .queues import no_such_queue

if TYPE_CHECKING:
    from flask_backend.broker.stats import JobRecord
    from flask_backend.operations.console import Console
    from flask_backend.stories import Story

STATES = ("ready", "reserved", "delayed", "buried")

_MAX_CALL = 1000  # characters, if a terminal does not limit them
_MIN_CALL = 20
_LABEL = 11  # columns of a line's label


class JobGoneError(click.ClickException):
    """The job does not exist on the server."""

    def __init__(self, job_id: int) -> None:
        from flask_backend.cli.explanation import GONE

        super().__init__(f"job {job_id} {GONE}")


@click.command()
@click.argument("job_id", metavar="ID", type=parse_job_id)
@click.option("--raw", is_flag=True, help="Write only the bytes of the body.")
@json_option
@broker_option
@click.pass_context
def peek(ctx: click.Context, job_id: int, broker_uri: str | None, *, raw: bool, as_json: bool) -> None:
    """Show everything known about a job, with its call or message.

    Exit code 1 if the job does not exist.
    """
    if raw and as_json:
        raise click.UsageError("--raw and --json exclude each other")
    with open_console(ctx, broker_uri) as console:
        record, body = console.job(job_id), console.body(job_id)
        if record is None or body is None:
            raise JobGoneError(job_id)
        if raw:
            click.echo(body, nl=False)
            return
        story = find_story(console, record)
        address = console.address
    if as_json:
        told = dataclasses.asdict(story) if story else None
        echo_json({**as_dict(address, record), "bytes": len(body), **_content(body), "story": told})
        return
    for line in (*_described(record, story), *_described_body(body)):
        echo(line)


def find_story(console: Console, record: JobRecord) -> Story | None:
    """Return the story of a job, if it is buried and has one."""
    if record.state != "buried":
        return None
    stories = console.failures(record.queue).stories
    return next((stored.note for stored in stories if stored.note.job == record.id), None)


def attempts_made(record: JobRecord) -> int:
    """Return how often a job was tried, including a running attempt."""
    return record.attempts.number - (record.state != "reserved")


def as_dict(address: str, record: JobRecord) -> dict[str, Any]:
    told = dataclasses.asdict(record)
    return {"broker": address, "job": told.pop("id"), **told, "attempts": attempts_made(record)}


def _content(body: bytes) -> dict[str, Any]:
    """Return a body as JSON, text or bytes: the first that fits."""
    try:
        return {"body": decode_json(body)}
    except MessageDecodeError:
        pass
    try:
        return {"text": body.decode()}
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(body).decode()}


def _described(record: JobRecord, story: Story | None) -> Iterator[str]:
    yield _line("job", record.id)
    yield _line("queue", record.queue)
    yield _line("state", record.state)
    yield _line("priority", record.priority)
    yield _line("age", show_seconds(record.age_s))
    yield _line("ttr", show_seconds(record.ttr_s))
    if record.state in ("reserved", "delayed"):
        left_s = record.time_left_s
        yield _line("time left", show_seconds(left_s) if left_s >= 0 else f"expired {show_seconds(-left_s)} ago")
    yield _line("attempts", attempts_made(record))
    counters = ("reserves", "timeouts", "releases", "buries", "kicks")
    yield _line("counters", ", ".join(f"{name} {getattr(record, name)}" for name in counters))
    if story is not None:
        from flask_backend.cli.explanation import show_story

        yield _line("story", cut_to_width(show_story(story), max(_MIN_CALL, terminal_width() - _LABEL)))
        yield _line("", f"flask-backend failures --job {record.id}")


def _described_body(body: bytes) -> Iterator[str]:
    call = call_in(body)
    if call is None:
        yield _line("body", count_of(len(body), "byte"))
        yield from (f"  {line}" for line in show_at_length(body))
        return
    if (at := scheduled_at(call.headers)) is not None:
        yield _line("scheduled", show_time(at))
    if call.headers:
        yield _line("headers", visible(json.dumps(call.headers, ensure_ascii=False)))
    line = _line("call", show_body(body))
    if width_of(line) <= terminal_width():
        yield line
        return
    yield _line("call", visible(f"{call.endpoint}("))
    for argument in show_arguments(call.args, call.kwargs):
        yield _line("", visible(f"  {argument},"))
    yield _line("", ")")


def _line(name: str, value: object) -> str:
    return f"{f'{name}:' if name else '':<{_LABEL}}{value}"


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
                "jobs": [{**as_dict(address, record), "call": call} for record, call in found],
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
