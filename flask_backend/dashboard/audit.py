"""The record of what people have done: a signal, a log line, and the last actions of this process."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

from flask import Flask

from flask_backend.quantities import count_of
from flask_backend.signals import dashboard_action, send
from flask_backend.system.loggers import get_logger
from flask_backend.visible import MAX_NAME, visible

logger = get_logger("flask_backend.audit")

# How many actions a process remembers, and how many ids of the jobs of one are recorded.
REMEMBERED = 200
MAX_IDS = 20

DONE = "done"


@dataclass(frozen=True, slots=True)
class Action:
    """What one person has done, or tried. ``count`` is the number of jobs, queues or processes that it affected."""

    action: str
    outcome: str  # DONE, or why not
    user: str | None = None
    queue: str | None = None
    pattern: str | None = None
    count: int = 0
    ids: Sequence[int] = ()
    what: str = ""  # in words
    at: float = field(default_factory=time.time)  # in seconds since the epoch

    @property
    def is_done(self) -> bool:
        return self.outcome == DONE

    def __str__(self) -> str:
        facts = [self.what or self.action]
        facts += [f"queue {self.queue}"] if self.queue and self.queue not in self.what else []
        facts += [f"matching {self.pattern}"] if self.pattern else []
        facts += [f"jobs {', '.join(map(str, self.ids))}"] if self.ids else []
        facts += [f"{self.count:,} affected"] if self.count > max(1, len(self.ids)) else []
        return visible(f"{self.user or 'somebody'}: {'; '.join(facts)}: {self.outcome}")


class Record:
    """The last actions of this process, newest first. Used by the threads of a web server."""

    def __init__(self) -> None:
        self._actions: deque[Action] = deque(maxlen=REMEMBERED)

    def latest(self) -> list[Action]:
        return list(self._actions.copy())

    def note(self, app: Flask, action: Action, *, is_remembered: bool = True) -> None:
        """Log an action and send the signal. An action that was denied is not remembered: it may come from anybody."""
        if is_remembered:
            self._actions.appendleft(action)
        facts = asdict(action)
        del facts["at"]
        facts["ids"] = list(action.ids[:MAX_IDS])
        level = logging.INFO if action.is_done else logging.WARNING
        logger.log(level, "%s", action, extra={f"dashboard_{name}": value for name, value in facts.items()})
        send(dashboard_action, app, **facts)


def in_words(verb: str, count: int, noun: str, where: str = "") -> str:
    """Return what was done: ``retried 3 jobs of mail``."""
    return f"{verb} {count_of(count, noun)}{f' of {visible(where, MAX_NAME)}' if where else ''}"
