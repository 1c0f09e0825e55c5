"""The service for metrics, from the option of `supervise`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from flask_backend.metrics import helper
from flask_backend.metrics.endpoint import Endpoint, EndpointError, Listener
from flask_backend.supervisor import Handover, Service
from flask_backend.system.loggers import get_logger

from .apps import AppLoadError, LoadedApp

if TYPE_CHECKING:
    from flask_backend.supervisor.process import AcceptSignals

logger = get_logger("flask_backend.supervisor")


def check_metrics(endpoint: Endpoint | None) -> None:
    """Raise :exc:`AppLoadError` if metrics are wanted but cannot be served in this installation."""
    if endpoint is not None and (reason := helper.why_impossible()):
        raise AppLoadError(reason)


def open_metrics(loaded: LoadedApp, endpoint: Endpoint | None, handover: Handover | None) -> Service | None:
    """Open the socket, or take over that of the image before a reload; return the service, if metrics are wanted.

    At a start an address that cannot be used is a :exc:`click.ClickException`. After a reload the workers are worth
    more: then it is logged, and the supervisor runs without metrics.
    """
    try:
        listener = _listener(endpoint, handover)
    except EndpointError as error:
        if handover is None:
            raise click.ClickException(str(error)) from error
        logger.error("%s", error)
        return None
    if listener is None:
        return None
    logger.info("metrics at %s", listener.url)
    settings, queues = loaded.backend.settings_of(loaded.app), list(loaded.backend.queues)
    definitions = loaded.backend.periodic_of(loaded.app)
    periodic = {queue: {each.name for each in found} for queue, found in definitions.items()}

    def serve(accept_signals: AcceptSignals, lifeline: int) -> int:
        return helper.serve(listener, accept_signals, lifeline, loaded.app.name, settings, queues, periodic)

    return Service("serves metrics", serve, listener.key, listener.fileno(), listener.close)


def _listener(endpoint: Endpoint | None, handover: Handover | None) -> Listener | None:
    if handover and (old := handover.service) and old.fd is not None:
        if endpoint is not None and str(endpoint) == old.key:
            return Listener.adopt(endpoint, old.fd)
        Listener.adopt(Endpoint.parse(old.key), old.fd).close()
    return endpoint.listen() if endpoint is not None else None
