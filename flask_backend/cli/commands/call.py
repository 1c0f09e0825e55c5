"""The command that schedules a call, or sends a message to a receiver."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import click

from flask_backend.cli.apps import check_queue, load_app
from flask_backend.cli.output import confirm, echo, echo_json, json_option, show_seconds, yes_option
from flask_backend.errors import OptionError, TaskArgumentsError
from flask_backend.functions import bind, signature_of
from flask_backend.message import cut, show_call
from flask_backend.visible import visible

if TYPE_CHECKING:
    from flask_backend.extension import Backend
    from flask_backend.options import Options
    from flask_backend.registry import Handler, Handlers

_MAX_SHOWN = 1000  # characters of the call in the question
_SHOWN_NAMES = 10


@click.command()
@click.argument("endpoint")
@click.argument("arguments", metavar="[ARGS]", required=False)
@click.argument("keywords", metavar="[KWARGS]", required=False)
@click.option("--queue", "-q", help="The queue, if several have the endpoint.")
@click.option(
    "--delay", type=click.FloatRange(min=0), metavar="SECONDS", help="Run it this much later, rounded up to seconds."
)
@click.option(
    "--priority", type=click.IntRange(0, 2**32 - 1), metavar="N", help="0 is the most urgent. Default: 65536."
)
@click.option(
    "--ttr",
    type=click.FloatRange(min=1),
    metavar="SECONDS",
    help="How long its worker may be silent before another worker gets the job. Default: BACKEND_TTR.",
)
@click.option(
    "--expires",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    help="Delete it without running it if no worker has started it by then.",
)
@yes_option
@json_option
@click.pass_context
def call(  # noqa: PLR0913  # one parameter for each option
    ctx: click.Context,
    endpoint: str,
    arguments: str | None,
    keywords: str | None,
    queue: str | None,
    delay: float | None,
    priority: int | None,
    ttr: float | None,
    expires: float | None,
    *,
    yes: bool,
    as_json: bool,
) -> None:
    """Schedule a call of the task ENDPOINT, and print the job's id.

    ARGS is a JSON array, or a JSON object for keyword arguments; KWARGS is an object after an array:

    \b
      flask-backend call hello '["world"]'
      flask-backend call hello '{"target": "world"}' --delay 60

    For a receiver, ENDPOINT is the name of its function, and ARGS is the message: any JSON value.
    """  # noqa: D301  # \b keeps click from rewrapping these lines
    from flask_backend.task import Task

    loaded = load_app(ctx)
    if queue is not None:
        check_queue(loaded, queue)
    handlers, handler = find_handler(loaded.backend, endpoint, queue)
    if expires is not None and handler is handlers.receiver:
        raise click.UsageError(f"{endpoint} is a receiver: a message cannot expire")
    options = _options(handler, delay, priority, ttr, expires)
    where = _where(handlers, options.resolve(1).delay_s)
    if handler is handlers.receiver:
        if keywords is not None:
            raise click.UsageError(f"{endpoint} is a receiver: it takes one message")
        message = _read_message(arguments)
        confirm(f"Send {_shown(json.dumps(message, ensure_ascii=False))} to {where}?", yes=yes)
        with loaded.app.app_context():
            job = loaded.backend.send(handlers.queue, message, delay=delay, priority=priority, ttr=ttr)
    else:
        args, kwargs = _read_arguments(arguments, keywords)
        _check_arguments(handler, args, kwargs)
        confirm(f"Schedule {_shown(show_call(endpoint, args, kwargs))} on {where}?", yes=yes)
        task = Task(loaded.backend, handlers.queue, endpoint, handler.function, options)
        with loaded.app.app_context():
            job = task(*args, **kwargs)
    if as_json:
        address = str(loaded.backend.settings_of(loaded.app).address)
        echo_json({"broker": address, "job": job.id, "queue": job.queue, "uid": job.uid})
    else:
        echo(job.id)


def _options(
    handler: Handler, delay: float | None, priority: int | None, ttr: float | None, expires: float | None
) -> Options:
    from flask_backend.options import Options

    try:
        return Options(delay, priority, ttr, expires).over(handler.defaults)
    except OptionError as error:
        raise click.UsageError(str(error)) from error


def find_handler(backend: Backend, endpoint: str, queue: str | None) -> tuple[Handlers, Handler]:
    """Return the task or receiver of that name; if several queues have it, ``queue`` must choose one."""
    wanted = [handlers for handlers in backend.queues.values() if queue in (None, handlers.queue)]
    found = [(each, handler) for each in wanted if (handler := _handler(each, endpoint)) is not None]
    match found:
        case [(handlers, handler)]:
            return handlers, handler
        case []:
            raise click.BadParameter(_unknown(endpoint, wanted), param_hint="'ENDPOINT'")
        case _:
            named = " or ".join(f"--queue {handlers.queue}" for handlers, _ in found)
            raise click.UsageError(f"several queues have {endpoint!r}: pass {named}")


def _handler(handlers: Handlers, endpoint: str) -> Handler | None:
    if handlers.receiver is not None:
        return handlers.receiver if handlers.receiver.name == endpoint else None
    return handlers.tasks.get(endpoint)


def _unknown(endpoint: str, wanted: list[Handlers]) -> str:
    import difflib

    names = sorted({name for handlers in wanted for name in handlers.names})
    close_first = difflib.get_close_matches(endpoint, names, n=len(names) or 1, cutoff=0)
    shown = "\n".join(f"  {name}" for name in close_first[:_SHOWN_NAMES]) or "  none"
    more = f"\n  and {len(names) - _SHOWN_NAMES} more: see `flask-backend check`" if len(names) > _SHOWN_NAMES else ""
    return f"no task or receiver {endpoint!r}. Known names, closest first:\n{shown}{more}"


def _read_arguments(text: str | None, keywords: str | None) -> tuple[Sequence[Any], Mapping[str, Any]]:
    value = _read_json("[]" if text is None else text)
    named: Any = {} if keywords is None else _read_json(keywords)
    if not isinstance(named, dict) or (keywords is not None and not isinstance(value, list)):
        raise _bad_arguments("two values must be a JSON array and a JSON object")
    if isinstance(value, list):
        return cast("Sequence[Any]", value), cast("Mapping[str, Any]", named)
    if isinstance(value, dict):
        return [], cast("Mapping[str, Any]", value)
    shown = visible(cut(text or "", 60))
    raise _bad_arguments(f"{shown} is neither a JSON array nor an object: pass a single argument as '[{shown}]'")


def _read_message(text: str | None) -> Any:
    if text is None:
        raise _bad_arguments("a receiver needs a message: pass it as JSON")
    return _read_json(text)


def _read_json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _bad_arguments(
            f'{cut(text, 60)!r} is not JSON ({error}): pass \'["world"]\' or \'{{"target": "world"}}\', in shell quotes'
        ) from error


def _check_arguments(handler: Handler, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Refuse arguments that do not fit, before asking for confirmation."""
    try:
        bind(handler.name, signature_of(handler.function), args, kwargs)
    except TaskArgumentsError as error:
        raise _bad_arguments(str(error)) from error


def _bad_arguments(message: str) -> click.BadParameter:
    return click.BadParameter(message, param_hint="'ARGS'")


def _where(handlers: Handlers, delay_s: int) -> str:
    return handlers.queue + (f" in {show_seconds(delay_s)}" if delay_s else "")


def _shown(text: str) -> str:
    return visible(cut(text, _MAX_SHOWN))
