"""An app whose jobs are kept in memory."""

from __future__ import annotations

from flask import Flask

from flask_backend import Backend


def make_app(uri: str = "memory://") -> tuple[Flask, Backend]:
    app = Flask(__name__)
    app.config["BACKEND_CONNECTION_URI"] = uri
    return app, Backend(app)
