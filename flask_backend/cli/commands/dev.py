"""The command for development."""

from __future__ import annotations

import os
import socket
import sys
from contextlib import nullcontext
from pathlib import Path

import click

from flask_backend.cli.apps import PatchedError, check_folder, load_app_of_workers
from flask_backend.cli.parameters import drain_timeout_option, env_option, parse_workers
from flask_backend.errors import BrokerConnectionError
from flask_backend.system.streams import streams


def parse_workers_or_none(value: str) -> str | None:
    """Check a value for the option of `supervise`; return None for 0."""
    if value == "0":
        return None
    parse_workers(value)
    return value


@click.command()
@env_option("FLASK_RUN_HOST", "--host", "-h", default="127.0.0.1", help="The address of the web server.")
@env_option(
    "FLASK_RUN_PORT",
    "--port",
    "-p",
    type=click.IntRange(0, 65535),
    default=5000,
    help="The port of the web server; 0 picks a free one and prints it.",
)
@env_option(
    "BACKEND_DEV_WEB",
    "--web/--no-web",
    default=True,
    show_default=False,
    help="Run Flask's development server, or not, if the app's web server runs elsewhere.  [default: web]",
)
@env_option(
    "BACKEND_WORKERS",
    "--workers",
    "-w",
    type=parse_workers_or_none,
    metavar="N|MIN..MAX",
    default="1",
    help="Workers for each queue, as for `supervise`; 0 if you run them yourself, e.g. `worker --no-fork` with a "
    "breakpoint.",
)
@env_option(
    "BACKEND_BROKER_FILE",
    "--file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="The database in which the embedded broker, if needed, keeps the jobs. Default: in memory only.",
)
@env_option(
    "BACKEND_DEV_DASHBOARD",
    "--dashboard/--no-dashboard",
    default=True,
    show_default=False,
    help="Serve the dashboard on 127.0.0.1, and print a link to it.  [default: dashboard]",
)
@env_option(
    "BACKEND_DEV_WATCH",
    "--watch",
    type=click.Path(exists=True),
    multiple=True,
    help="Another file or folder to watch: a change in it reloads the app. May be repeated.",
)
@drain_timeout_option
@click.pass_context
def dev(  # noqa: PLR0913  # one parameter for each option
    ctx: click.Context,
    host: str,
    port: int,
    file: Path | None,
    workers: str | None,
    watch: tuple[str, ...],
    drain_timeout: float,
    *,
    web: bool,
    dashboard: bool,
) -> None:
    """Run everything an app needs during development, in one terminal.

    This starts Flask's development server, a supervisor for all queues of the app, the dashboard, and a broker, if the
    app expects one on this machine and it does not answer. When a Python file changes that is below this folder or that
    the app imports, the web server and the supervisor reload. If the new code does not load, its error is shown and the
    old code goes on. Ctrl-C stops everything and lets running tasks finish; a second one kills them.

    Set other options of `supervise` through their environment variables.
    """
    from flask_backend.development import NAMES, Development, DevelopmentPlan, Transcript, asked

    if (fd := asked()) is not None:
        answer_about_app(ctx, fd)
        return
    check_folder()
    os.environ.setdefault("FLASK_DEBUG", "1")  # for the workers too: they should behave like the web server
    is_coloured = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    with listen(host, port) if web else nullcontext() as listener:
        plan = DevelopmentPlan(
            app_arguments=name_app(ctx),
            workers=workers,
            drain_timeout_s=drain_timeout,
            broker_file=file,
            folder=str(Path.cwd()),
            extra=[str(Path(path).absolute()) for path in watch],
            listener=listener,
            has_dashboard=dashboard,
        )
        status = Development(plan, Transcript(streams.stdout, NAMES, is_coloured=is_coloured)).run()
    streams.report_losses()
    sys.exit(status)


def name_app(ctx: click.Context) -> list[str]:
    """Return the arguments with which another command finds the same app."""
    info = ctx.obj  # Flask's, of `flask backend` and of Flask-Script
    if info and info.create_app:
        raise click.UsageError("dev starts programs that load the app by its name: use `flask-backend --app NAME dev`")
    app = info.app_import_path if info else ctx.find_root().params.get("app")
    return ["--app", app] if app else []


def listen(host: str, port: int) -> socket.socket:
    """Open the socket of the web server: each one inherits it, also after a change."""
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        reason = str(error.strerror or error).partition(" (while")[0]  # without the address, which our message has
        raise click.ClickException(
            f"cannot listen on {host}, port {port}: {reason}; "
            "stop the program that listens there, or choose another --port or --host, or --no-web"
        ) from error


def answer_about_app(ctx: click.Context, fd: int) -> None:
    """Load the app and report its needs to the process that asks for them."""
    from flask_backend.broker.connection import Connection
    from flask_backend.development import App, answer

    try:
        loaded = load_app_of_workers(ctx)
    except BaseException as error:  # any error comes from the app, whose files are then watched
        answer(fd, None, error, is_refused=isinstance(error, PatchedError))
        raise
    settings = loaded.backend.settings_of(loaded.app)
    try:
        Connection(settings.address, settings.timeout_s).close()
        answers = True
    except BrokerConnectionError:
        answers = False
    answer(fd, App(str(settings.address), answers, list(loaded.backend.queues)))
