"""The command that shows a job."""

from __future__ import annotations

import base64
import dataclasses
import json
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from flask_backend.cli.brokers import broker_option, open_console
from flask_backend.cli.lookup import JobGoneError, find_story
from flask_backend.cli.output import (
    LABEL,
    count_of,
    cut_to_width,
    echo,
    echo_json,
    json_option,
    labelled,
    show_seconds,
    show_time,
    terminal_width,
    width_of,
)
from flask_backend.cli.parameters import parse_job_id
from flask_backend.errors import MessageDecodeError
from flask_backend.message import decode_json, expires_at, scheduled_at
from flask_backend.operations.bodies import (
    call_in,
    expiry_in,
    show_arguments,
    show_at_length,
    show_body,
    show_cursor,
    show_expiry,
    show_story,
)
from flask_backend.operations.records import attempts_made, job_as_dict
from flask_backend.visible import visible

if TYPE_CHECKING:
    from flask_backend.broker.stats import JobRecord
    from flask_backend.stories import Story

_MIN_CALL = 20


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
        story, cursor = find_story(console, record), console.cursor_of(record, body)
        address, size = console.address, len(body)
        body = console.masking.body(record.queue, body)
        kept = console.masking.value(cursor.value) if cursor is not None else None
    if as_json:
        told = dataclasses.asdict(story) if story else None
        content = {"bytes": size, **_content(body)}
        more = {"expires_at": expiry_in(body), **content, "cursor": kept, "story": told}
        echo_json({**job_as_dict(address, record), **more})
        return
    for line in (*_described(record, story), *_described_body(body, size)):
        echo(line)
    if cursor is not None:
        echo(labelled("cursor", show_cursor(kept)))


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
    yield labelled("job", record.id)
    yield labelled("queue", record.queue)
    yield labelled("state", record.state)
    yield labelled("priority", record.priority)
    yield labelled("age", show_seconds(record.age_s))
    yield labelled("ttr", show_seconds(record.ttr_s))
    if record.state in ("reserved", "delayed"):
        left_s = record.time_left_s
        yield labelled("time left", show_seconds(left_s) if left_s >= 0 else f"expired {show_seconds(-left_s)} ago")
    yield labelled("attempts", attempts_made(record))
    counters = ("reserves", "timeouts", "releases", "buries", "kicks")
    yield labelled("counters", ", ".join(f"{name} {getattr(record, name)}" for name in counters))
    if story is not None:
        yield labelled("story", cut_to_width(show_story(story), max(_MIN_CALL, terminal_width() - LABEL)))
        yield labelled("", f"flask-backend failures --job {record.id}")


def _described_body(body: bytes, size: int) -> Iterator[str]:
    call = call_in(body)
    if call is None:
        yield labelled("body", count_of(size, "byte"))
        yield from (f"  {line}" for line in show_at_length(body))
        return
    if (at := scheduled_at(call.headers)) is not None:
        yield labelled("scheduled", show_time(at))
    if (until := expires_at(call.headers)) is not None:
        yield labelled("expires", show_expiry(until, time.time()))
    if call.headers:
        yield labelled("headers", visible(json.dumps(call.headers, ensure_ascii=False)))
    line = labelled("call", show_body(body))
    if width_of(line) <= terminal_width():
        yield line
        return
    yield labelled("call", visible(f"{call.endpoint}("))
    for argument in show_arguments(call.args, call.kwargs):
        yield labelled("", visible(f"  {argument},"))
    yield labelled("", ")")
