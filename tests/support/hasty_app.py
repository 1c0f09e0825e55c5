"""An app whose workers wait only moments for their broker, for tests with very many outages."""

from __future__ import annotations

from flask import Flask

from flask_backend import Backend, Discard, Retry, RetryLater
from flask_backend.worker import link
from support.hasty import QUEUE

link.RESERVE_S = 0  # how much longer than other replies the one to a reserve may take
link.RECONNECT_MIN_S = 0.001
link.RECONNECT_MAX_S = link.RECLAIM_EVERY_S = link.RECLAIM_PATIENCE_S = 0.01

TIMEOUT_S = 0.05

app = Flask(__name__)
app.config["BACKEND_TIMEOUT"] = TIMEOUT_S
backend = Backend(app)


@backend.task(QUEUE)
def note():
    app.logger.info("noted")


@backend.task(QUEUE)
def fail():
    raise ValueError("as it should")


@backend.task(QUEUE, retry=Retry(max_retries=0))
def bury():
    raise ValueError("as it should, for good")


@backend.task(QUEUE)
def later():
    raise RetryLater(1, "not yet")


@backend.task(QUEUE)
def discard():
    raise Discard("not needed")
