"""Writing and reading process titles, as `ps` and `top` show them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from setproctitle import setproctitle

from flask_backend.visible import MAX_NAME, visible

_MASTER = "flask-backend: master ["
_WORKER = re.compile(r"flask-backend: worker (\S+) \[(.*)\]")


@dataclass(frozen=True, slots=True)
class WorkerTitle:
    queue: str
    activity: str


def show_master(queues: int, workers: int) -> None:
    setproctitle(f"{_MASTER}{_count(queues, 'queue')}, {_count(workers, 'worker')}]")


def show_worker(queue: str, activity: str) -> None:
    setproctitle(f"flask-backend: worker {queue} [{visible(activity, MAX_NAME) or 'idle'}]")


def show_helper(activity: str) -> None:
    """Show the activity of a child of the supervisor that is not a worker."""
    setproctitle(f"flask-backend: helper [{visible(activity, MAX_NAME)}]")


def show_scheduler(queues: Sequence[str]) -> None:
    """Show the queues whose periodic tasks a child of the supervisor schedules."""
    more = f" and {_count(len(queues) - 1, 'more queue')}" if len(queues) > 1 else ""
    setproctitle(f"flask-backend: scheduler {queues[0]}{more}")


def is_master(title: str) -> bool:
    return title.startswith(_MASTER)


def read_worker(title: str) -> WorkerTitle | None:
    """Return the queue and the activity in a title, if it is a worker's."""
    found = _WORKER.fullmatch(title)
    return WorkerTitle(found[1], found[2]) if found else None


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
