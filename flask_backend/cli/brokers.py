"""Find the broker for the commands that inspect and manage it: without loading the app, if possible."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from flask_backend.errors import ConfigError

from .apps import AppLoadError, load_app
from .parameters import env_option

if TYPE_CHECKING:
    from flask_backend.config import Settings
    from flask_backend.operations.console import Console

broker_option = env_option(
    "BACKEND_CONNECTION_URI",
    "--broker",
    "broker_uri",
    metavar="URI",
    help="The address of Beanstalkd: btq://HOST[:PORT]. Default: the setting of the app, which is loaded for this, "
    "or btq://127.0.0.1:11300 without an app.",
)


def open_console(ctx: click.Context, broker_uri: str | None) -> Console:
    """Connect to the broker. What is shown of jobs is masked by the settings of the app, if it is loaded."""
    from flask_backend.operations.console import Console
    from flask_backend.operations.masking import Masking

    if broker_uri is not None or not names_an_app(ctx):
        return Console(find_settings(ctx, broker_uri))
    loaded = load_app(ctx)
    settings = loaded.backend.settings_of(loaded.app)
    return Console(settings, Masking(settings.mask, loaded.backend.queues))


def find_settings(ctx: click.Context, broker_uri: str | None) -> Settings:
    from flask_backend.config import Settings, parse_broker

    if broker_uri is not None:
        try:
            return Settings(Settings(parse_broker(broker_uri)).address)  # a stand-in for tests has no address
        except ConfigError as error:
            if ctx.get_parameter_source("broker_uri") is ParameterSource.ENVIRONMENT:
                raise AppLoadError(str(error)) from error
            raise click.BadParameter(str(error), param_hint="'--broker'") from error
    if not names_an_app(ctx):
        return Settings()
    loaded = load_app(ctx)
    return loaded.backend.settings_of(loaded.app)


def names_an_app(ctx: click.Context) -> bool:
    """Whether there is an app to load: a named one, or one in a file that Flask looks for."""
    info = ctx.obj  # Flask's, of `flask backend` and of Flask-Script
    named = ctx.find_root().params.get("app") or (info and (info.app_import_path or info.create_app))
    return bool(named or os.environ.get("FLASK_APP") or any(map(os.path.isfile, ("wsgi.py", "app.py"))))
