"""Process titles, as `ps` and `top` show them."""

from __future__ import annotations

from setproctitle import setproctitle


def show_master(queues: int, workers: int) -> None:
    setproctitle(f"flask-backend: master [{_count(queues, 'queue')}, {_count(workers, 'worker')}]")


def show_worker(queue: str, activity: str) -> None:
    setproctitle(f"flask-backend: worker {queue} [{activity or 'idle'}]")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
