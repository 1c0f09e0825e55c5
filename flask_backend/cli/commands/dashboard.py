"""The command that serves the dashboard on the loopback interface."""

from __future__ import annotations

import signal
import socket
import sys
import threading
from typing import TYPE_CHECKING, Any, cast

import click
from click.core import ParameterSource

from flask_backend.cli.apps import AppLoadError, load_app
from flask_backend.cli.brokers import broker_option, find_settings, names_an_app
from flask_backend.cli.output import echo
from flask_backend.cli.parameters import env_option
from flask_backend.system.patched import find_patch

if TYPE_CHECKING:
    from flask_backend.extension import Backend

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@click.command()
@env_option(
    "BACKEND_DASHBOARD_HOST",
    "--host",
    default="127.0.0.1",
    metavar="HOST",
    help="The address to listen on: 127.0.0.1, ::1 or localhost.",
)
@env_option(
    "BACKEND_DASHBOARD_PORT",
    "--port",
    "-p",
    type=click.IntRange(0, 65535),
    default=0,
    help="The port; 0 picks a free one.",
)
@click.option("--read-only", is_flag=True, help="Only show: offer and accept no action.")
@broker_option
@click.pass_context
def dashboard(ctx: click.Context, host: str, port: int, broker_uri: str | None, *, read_only: bool) -> None:
    r"""Serve the dashboard of a broker on this machine, and print the link to it.

    The link works once: the browser that opens it gets a cookie for this run, and a link for another browser is
    printed. With --broker, no app is needed; with an app, named by --app, the dashboard knows its tasks too.

    For several people, mount the dashboard in an app. For a remote machine, forward a port:

    \b
      ssh -t -L 8000:127.0.0.1:8000 HOST flask-backend dashboard --port 8000

    TERM and INT stop it.
    """
    from flask_backend.dashboard.standalone import HOSTS, Links, make_app, make_wsgi_server

    if host not in HOSTS:
        raise click.BadParameter(
            f"{host!r}: expected {' or '.join(HOSTS)}, since each program that reaches the dashboard controls the "
            "broker; for others, forward a port with ssh, or mount it in an app, which decides who may do what",
            param_hint="--host",
        )
    backend, config = _find_backend(ctx, broker_uri)
    with _listen(host, port) as listener:
        shown = f"[{host}]" if ":" in host else host
        links = Links(f"http://{shown}:{listener.getsockname()[1]}", _announce)
        app = make_app(backend, config, links, _name_user(), is_read_only=read_only)
        server = make_wsgi_server(listener, app)
        # Blocked, so that they wait for the wait below; threads inherit this. A HUP that nohup ignores stays ignored.
        numbers = [each for each in _SIGNALS if signal.getsignal(each) is not signal.SIG_IGN]
        signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
        threading.Thread(target=server.serve_forever, name="flask-backend-dashboard", daemon=True).start()
        echo(f"dashboard of {backend.settings_of(app).broker}; Ctrl-C stops it. This link works once:", err=True)
        links.renew()
        signal.sigwait(numbers)
        server.shutdown()
        server.server_close()


def _find_backend(ctx: click.Context, broker_uri: str | None) -> tuple[Backend, dict[str, Any]]:
    """Return the app's Backend and its settings; without an app, an empty one."""
    from flask_backend.config import URI_KEY
    from flask_backend.extension import Backend

    is_named = ctx.find_root().get_parameter_source("app") is ParameterSource.COMMANDLINE
    if not is_named and (broker_uri is not None or not names_an_app(ctx)):
        from flask import Flask

        from flask_backend.logs import configure

        configure(Flask(__name__))
        return Backend(), {URI_KEY: str(find_settings(ctx, broker_uri).address)}
    loaded = load_app(ctx)
    if reason := find_patch():
        raise AppLoadError(f"{reason}. The dashboard needs no app: pass --broker URI, without --app")
    settings = cast("dict[str, Any]", loaded.app.config)
    config = {key: value for key, value in settings.items() if key.startswith("BACKEND_")}
    address = find_settings(ctx, broker_uri).address if broker_uri else loaded.backend.settings_of(loaded.app).address
    return loaded.backend, {**config, URI_KEY: str(address)}


def _listen(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        reason = str(error.strerror or error).partition(" (while")[0]
        raise click.ClickException(
            f"cannot listen on {host}, port {port}: {reason}; stop the program that listens there, or choose another "
            "--port"
        ) from error


def _announce(link: str) -> None:
    echo(link)
    sys.stdout.flush()


def _name_user() -> str | None:
    import getpass

    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a uid without a name
        return None
