"""What the commands that pause and resume queues share."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .lookup import find_queue
from .output import count_of

if TYPE_CHECKING:
    from flask_backend.broker.stats import Queue
    from flask_backend.operations.console import Console


def set_pause(console: Console, queue: str, seconds: int) -> Queue:
    console.pause(queue, seconds)
    return find_queue(console, queue)


def describe(queue: Queue) -> str:
    return f"{queue.name} ({queue.ready:,} ready, {count_of(queue.watching, 'worker')})"
