"""What tasks with limits have written down, and the tokens on the broker."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from flask_backend.broker.limits import registry_tube
from flask_backend.names import limit_tube
from support.beanstalkd import Beanstalkd

APP = str(Path(__file__).with_name("limited_app.py"))

# Such a module makes the times short that follow the loss of a token, for an app whose folder is on the path.
QUICK = """
from flask_backend.broker import election, limits
from flask_backend.worker import limiting
from support.limited_app import app

election.MAX_LOCK_AGE_S = 3
limits.EXPIRED_S = 2
limiting.CENSUS_AFTER_S = (0.5, 1.0)
limiting.RESERVE_S = 1
"""

Event = tuple[float, int, str, str]


def events(lines: Iterable[str]) -> list[Event]:
    """Return the time, the pid, the kind and the number of each line of the ledger, the earliest first."""
    found = (line.split(" ", 3) for line in lines)
    return sorted((float(at), int(pid), kind, number) for at, pid, kind, number in found)


def most_at_once(lines: Iterable[str]) -> int:
    """Return how many tasks ran at once at most. A process that begins another task has ended the one before."""
    running: dict[int, str] = {}
    most = 0
    for _, pid, kind, number in events(lines):
        if kind == "begin":
            running[pid] = number
        elif kind in ("end", "killed"):
            running.pop(pid, None)
        most = max(most, len(running))
    return most


def most_within(lines: Iterable[str], seconds: float) -> int:
    """Return how many mails were sent within some seconds at most."""
    times = [at for at, _, kind, _ in events(lines) if kind == "mail"]
    return max((sum(begin <= at < begin + seconds for at in times) for begin in times), default=0)


def count_tokens(broker: Beanstalkd, name: str) -> tuple[int, int]:
    """Return how many tokens the registry lists, and how many of these can be taken now."""
    with broker.client(registry_tube(name)) as client:
        ids = json.loads(client.peek_ready().body)["ids"]
    states = [(broker.job(job_id) or {}).get("state") for job_id in ids]
    return len(ids), states.count("ready")


def waiting(broker: Beanstalkd, name: str) -> int:
    """Count the workers that wait for a token."""
    return broker.waiting(limit_tube(name))
