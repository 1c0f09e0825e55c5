"""An app with limits: each task writes down when it begins and ends."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

from flask import Flask

from flask_backend import Backend, Limit, Retry, current_job

GPU, GPU_TOO, MAIL, INBOX = "com.example/gpu", "com.example/gpu-too", "com.example/mail", "com.example/limited-inbox"
N = int(os.environ.get("LIMIT_N", "2"))

app = Flask(__name__)
app.config.from_prefixed_env()
backend = Backend(app)
ledger = Path(os.environ.get("LEDGER", os.devnull))


def write_down(text: str) -> None:
    """Append a line to the ledger, whole, even with concurrent writers. The clock is the same for all processes."""
    fd = os.open(ledger, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(fd, f"{time.monotonic():.6f} {os.getpid()} {text}\n".encode())
    os.close(fd)


@backend.task(GPU, limit=Limit("gpu", N), retry=Retry(max_retries=None, min_backoff=1, max_backoff=1, jitter=0))
def train(number, seconds=0.01):
    write_down(f"begin {number}")
    time.sleep(seconds)
    write_down(f"end {number}")


@backend.task(GPU, limit=Limit("gpu", N))
def train_until(path, number="until"):
    write_down(f"begin {number}")
    while not Path(path).exists():
        time.sleep(0.005)
    write_down(f"end {number}")


@backend.task(GPU, limit=Limit("gpu", N), time_limit=0.5)
def train_shortly(number, seconds):
    train.run(number, seconds)


@backend.task(GPU, limit=Limit("gpu", N), retry=Retry(max_retries=1, min_backoff=1, jitter=0))
def fail(number):
    write_down(f"begin {number}")
    write_down(f"end {number}")
    raise ValueError(current_job.attempt)


@backend.task(GPU, limit=Limit("gpu", N))
async def train_async(number, seconds):
    write_down(f"begin {number}")
    await asyncio.sleep(seconds)
    write_down(f"end {number}")


@backend.task(GPU_TOO, limit=Limit("gpu", N))
def train_too(number, seconds=0.01):
    train.run(number, seconds)


@backend.task(MAIL, limit=Limit("mail", 3, per=1))
def mail(number):
    write_down(f"mail {number}")


@backend.receiver(INBOX, limit=Limit("mail", 3, per=1))
def inbox(message):
    write_down(f"mail {message}")
