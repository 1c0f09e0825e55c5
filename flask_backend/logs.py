"""Where log lines go, for processes that our commands start."""

from __future__ import annotations

import logging

from flask import Flask
from flask.logging import default_handler

FORMAT = "%(asctime)s %(levelname)s [%(process)d] %(name)s: %(message)s"


def configure(app: Flask) -> None:
    """Log to stderr from level INFO, unless the app has configured the root logger: then touch nothing."""
    if logging.getLogger().handlers:
        return
    logging.basicConfig(level=logging.INFO, format=FORMAT)
    # An app that logged while it was imported has Flask's own handler by now, and would say everything twice.
    app.logger.removeHandler(default_handler)
