"""The app used to measure the supervisor.

It has OBJECTS_MB of small objects, an import that takes IMPORT_S seconds, and tasks that ignore or read the objects.
"""

from __future__ import annotations

import os
import time

from flask import Flask
from records import make_records, read

from flask_backend import Backend, Retry

QUEUE = "com.example/default"

app = Flask(__name__)
app.config.from_prefixed_env()
backend = Backend(app)


def compute(seconds: float) -> None:
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


compute(float(os.environ.get("IMPORT_S", "0")))
records = make_records(int(os.environ.get("OBJECTS_MB", "0")))


@backend.task(QUEUE)
def nothing() -> None:
    pass


@backend.task(QUEUE)
def read_all() -> None:
    read(records)


@backend.task(QUEUE, retry=Retry(max_retries=0))
def fail() -> None:
    raise ValueError("no luck")
