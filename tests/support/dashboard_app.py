"""An app with the dashboard, whose cookie `role` decides who may do what; workers run it too."""

from __future__ import annotations

import os
import signal
import time
from datetime import timedelta
from pathlib import Path

from flask import Flask, request

from flask_backend import Backend, Bury, Retry, current_job
from flask_backend.dashboard import Dashboard

MAIL, IMAGES, REPORTS = "com.example/mail", "com.example/images", "com.example/reports"
# The actions of each role: the first is that of a browser without a cookie.
ROLES = {
    "operator": {"view", "view_arguments", "retry", "delete", "cancel", "pause", "schedule", "control"},
    "reader": {"view", "view_arguments"},
    "blind": {"view", "retry", "delete", "cancel", "pause", "schedule", "control"},
    "stranger": set(),
}
CARD = "4111-1111-1111-1111"  # an argument that only some may see

backend = Backend()


@backend.task(MAIL, retry=Retry(max_retries=0))
def welcome(address: str) -> None:
    if "@" not in address:
        raise ValueError(f"no @ in {address!r}")


@backend.task(MAIL)
def invoice(number: int, card: str = CARD) -> None:
    if not Path(os.environ.get("REPAIRED", "/nonexistent")).exists():
        raise Bury(f"the bank refuses card {card}")


@backend.task(IMAGES, retry=Retry(max_retries=0))
def resize(path: str) -> None:
    if path == "huge.png":
        os.kill(os.getpid(), signal.SIGKILL)
    if path.startswith("slow"):
        for done in range(1000):
            current_job.progress(done, 1000)
            time.sleep(0.1)  # the work


@backend.periodic("30 3 * * 1-5", name="weekly numbers", timezone="Europe/Prague", args=[2026])
@backend.task(REPORTS)
def report(year: int) -> None: ...


@backend.periodic(every=timedelta(hours=1), overlap=False)
@backend.task(REPORTS)
def tidy() -> None: ...


def may(action: str, _what: object) -> bool:
    return action in ROLES[request.cookies.get("role", "operator")]


def create_app(uri: str | None = None, **options) -> Flask:
    app = Flask("shop")
    app.config.from_prefixed_env()
    if uri:
        app.config["BACKEND_CONNECTION_URI"] = uri
    backend.init_app(app)
    app.register_blueprint(Dashboard(may, user=lambda: request.cookies.get("role", "operator"), **options))
    return app
