"""The command line: parse, call, print. ``flask-backend``, and the same commands as ``flask backend``."""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path
from typing import Any

import click

from flask_backend.errors import BackendError
from flask_backend.system.exits import ExitCode, limit_end, lingering_threads
from flask_backend.system.launch import launched
from flask_backend.system.patched import find_patch
from flask_backend.system.streams import streams
from flask_backend.visible import visible_lines

from .interrupts import abort_on_interrupt

# Before any .env is read, and before an app can change the folder or the environment.
launched()

# Each command, which has a module of its name, and its summary: `--help` imports none of the modules.
COMMANDS = {
    "batches": "List the batches that are not complete, oldest first.",
    "broker": "Run the embedded broker: for development, tests and small installs on one machine.",
    "call": "Schedule a call of the task ENDPOINT, and print the job's id.",
    "check": "Load the app and show its queues and tasks, without running any.",
    "dashboard": "Serve the dashboard of a broker on this machine, and print the link to it.",
    "delete": "Delete jobs, after confirmation.",
    "dev": "Run everything an app needs during development, in one terminal.",
    "explain": "Explain why a job has not run.",
    "failures": "Show why jobs are buried.",
    "health": "Check whether the supervisors here are alive and ready, for probes.",
    "jobs": "List the jobs of QUEUE, newest first.",
    "limits": "Show the limits, and which workers use them.",
    "pause": "Stop workers from taking jobs of QUEUE.",
    "peek": "Show everything known about a job, with its call or message.",
    "queues": "Show all queues, their jobs and workers.",
    "reload": "Let a supervisor take new code, and wait until that serves or is refused.",
    "resume": "End the pause of QUEUE.",
    "retry": "Run buried or delayed jobs again, now, after confirmation.",
    "schedules": "Show all periodic tasks: when they are due, what was scheduled, and who watches.",
    "status": "Show the supervisors on this machine, their workers, tasks and memory.",
    "supervise": "Import the app once, fork workers for each queue, and keep them running.",
    "top": "Show a supervisor and its queues, live, in a terminal; ? shows the keys.",
    "worker": "Run one worker of QUEUE in the foreground, without a supervisor.",
}

# How long threads of the app may delay the end of a command that has finished.
END_S = 1.0


class CommandGroup(click.Group):
    """A group that imports each command on first use.

    An error of the broker or in an argument ends a command with one line, not with a traceback.
    """

    is_program = False

    def __call__(self, *args: Any, **options: Any) -> Any:
        """Run as a program that ends with its command; click's test runner calls ``main`` instead."""
        self.is_program = True
        return super().__call__(*args, **options)

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        streams.install()  # on every way to start, before any other file is opened
        return super().make_context(*args, **kwargs)

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  # not needed here
        return list(COMMANDS)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002  # not needed here
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002  # not needed here
        if cmd_name not in COMMANDS:
            return None
        with abort_on_interrupt():
            module = importlib.import_module(f"{__name__}.commands.{cmd_name}")
        command: click.Command = getattr(module, cmd_name)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS and _is_queue(ctx, args[0]):
            args = ["worker", *args]  # `flask backend QUEUE`, as in the last versions of the original
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        status: int = ExitCode.OK
        try:
            return self._invoke(ctx)
        except BaseException as error:
            status = _status_of(error)
            raise
        finally:
            # If the standard library is patched, threads are greenlets: one that waits would block all others.
            if ends_with_command(ctx) and find_patch() is None and lingering_threads():
                limit_end(status, END_S)

    def _invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BackendError as error:
            raise click.ClickException(visible_lines(str(error))) from error


def _is_queue(ctx: click.Context, name: str) -> bool:
    """Whether Flask's command line has an app with this queue, or an app that the worker will fail to load."""
    of_flask = sys.modules.get("flask.cli")
    if of_flask is None or name.startswith("-"):
        return False
    info = ctx.find_object(of_flask.ScriptInfo)
    if info is None:
        return False
    try:
        backend = info.load_app().extensions.get("backend")
    except of_flask.NoAppException:
        return False
    except Exception:
        return True
    return name in getattr(backend, "queues", ())


def ends_with_command(ctx: click.Context) -> bool:
    """Whether the process ends with the command, because our entry point or Flask's has started it."""
    root = ctx.find_root().command
    of_flask = sys.modules.get("flask.cli")
    return (isinstance(root, CommandGroup) and root.is_program) or (of_flask is not None and root is of_flask.cli)


def _status_of(error: BaseException) -> int:
    """Return the exit status with which click ends a command that raises this exception."""
    code = getattr(error, "exit_code", getattr(error, "code", ExitCode.FAILED))
    if code is None:
        return ExitCode.OK
    return code if isinstance(code, int) else ExitCode.FAILED


@click.group(cls=CommandGroup)
def commands() -> None:
    """Run the workers of Flask-Backend, and inspect and manage their jobs."""


@click.group(cls=CommandGroup, help=commands.help)
@click.option(
    "--app",
    "-A",
    envvar="FLASK_APP",
    show_envvar=True,
    help="The Flask app or factory, as in `flask --app`: MODULE, MODULE:NAME, FILE. Default: app.py or wsgi.py.",
)
@click.version_option(package_name="flask-backend")
def main(app: str | None) -> None:  # noqa: ARG001  # load_app reads it from the context
    os.environ["FLASK_RUN_FROM_CLI"] = "true"  # as `flask` does: Flask then ignores an app.run() in the app's module
    load_dotenv_files()


def load_dotenv_files() -> None:
    """Read .env and .flaskenv, if present, as Flask does: options may get their values from them.

    FLASK_SKIP_DOTENV prevents it, as in Flask.
    """
    try:
        here = Path.cwd()
    except OSError:  # the folder was deleted
        return
    if any((folder / name).is_file() for folder in (here, *here.parents) for name in (".env", ".flaskenv")):
        with abort_on_interrupt():
            from flask.cli import load_dotenv
            from flask.helpers import get_load_dotenv

        if get_load_dotenv():
            load_dotenv()
