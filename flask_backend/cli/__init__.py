"""The command line: parse, call, print. ``flask-backend``, and the same commands as ``flask backend``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from flask_backend.errors import BackendError

from .broker_server import broker
from .calling import call
from .checking import check
from .dev import dev
from .explain import explain
from .failures import delete, failures, retry
from .jobs import jobs, peek
from .queues import pause, queues, resume
from .workers import supervise, worker


class Commands(click.Group):
    """A group whose commands end in a line, not in a traceback, when the broker or an argument is at fault."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BackendError as error:
            raise click.ClickException(str(error)) from error


@click.group(cls=Commands)
def commands() -> None:
    """Run the workers of Flask-Backend, see what their jobs come to, and act on them."""


for command in (
    dev,
    supervise,
    worker,
    check,
    peek,
    jobs,
    explain,
    call,
    queues,
    failures,
    retry,
    delete,
    pause,
    resume,
    broker,
):
    commands.add_command(command)


@click.group(cls=Commands, commands=commands.commands, help=commands.help)
@click.option(
    "--app",
    "-A",
    envvar="FLASK_APP",
    show_envvar=True,
    help="The Flask app or factory, as in `flask --app`: MODULE, MODULE:NAME, FILE. Default: app.py or wsgi.py.",
)
@click.version_option(package_name="flask-backend")
def main(app: str | None) -> None:  # noqa: ARG001  # load_app asks the context for it
    load_dotenv_files()


def load_dotenv_files() -> None:
    """Read .env and .flaskenv as Flask does, where there are any: options may have their values from there."""
    here = Path.cwd()
    if any((folder / name).is_file() for folder in (here, *here.parents) for name in (".env", ".flaskenv")):
        from flask.cli import load_dotenv

        load_dotenv()
