"""The command that explains why a job has not run."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from flask_backend.cli.apps import AppLoadError, LoadedApp, load_app
from flask_backend.cli.brokers import broker_option, find_settings, names_an_app
from flask_backend.cli.lookup import find_story
from flask_backend.cli.output import echo, echo_json, json_option, terminal_width, wrapped
from flask_backend.cli.parameters import parse_job_id

if TYPE_CHECKING:
    from flask_backend.config import Settings


@click.command()
@click.argument("job_id", metavar="ID", type=parse_job_id)
@json_option
@broker_option
@click.pass_context
def explain(ctx: click.Context, job_id: int, broker_uri: str | None, *, as_json: bool) -> None:
    """Explain why a job has not run.

    If an app is named, or found in app.py or wsgi.py, it is loaded to find out whether it has the job's task, and how
    often that task is tried.
    """
    from flask_backend.operations import explanation
    from flask_backend.operations.console import Console
    from flask_backend.operations.masking import Masking

    loaded = _load_app_if_any(ctx, broker_uri)
    known = explanation.KnownApp(loaded.backend.queues, loaded.backend.settings_of(loaded.app)) if loaded else None
    masking = Masking(known.settings.mask, known.queues) if known else None
    with Console(_settings(ctx, loaded, broker_uri), masking) as console:
        record, body = console.job(job_id), console.body(job_id)
        facts = None
        if record is not None and body is not None:
            facts = explanation.gather(console, record, body, find_story(console, record), known)
        address = console.address
    reason = explanation.explain(facts) if facts else explanation.gone(job_id)
    if as_json:
        record = facts.record if facts else None
        where = {
            "broker": address,
            "job": job_id,
            "queue": record.queue if record else None,
            "state": record.state if record else None,
        }
        echo_json({**where, "reason": reason.code, "text": reason.text, **reason.numbers})
    else:
        echo(wrapped(reason.text, terminal_width()))


def _load_app_if_any(ctx: click.Context, broker_uri: str | None) -> LoadedApp | None:
    """Load the app, if any. If that fails, go on with fewer facts, unless only the app knows the broker's address."""
    if not names_an_app(ctx):
        return None
    try:
        return load_app(ctx)
    except AppLoadError as error:
        if broker_uri is None:
            raise AppLoadError(
                f"{error.message}\n\nTo go on without the app, pass the address of Beanstalkd with --broker."
            ) from error
        echo(f"Warning: going on without the app: {error.message}", err=True)
        return None


def _settings(ctx: click.Context, loaded: LoadedApp | None, broker_uri: str | None) -> Settings:
    if loaded is None or broker_uri is not None:
        return find_settings(ctx, broker_uri)
    return loaded.backend.settings_of(loaded.app)
