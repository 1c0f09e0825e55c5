"""A status page of this process, with the metrics of it."""

from __future__ import annotations

import os
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from flask_backend.metrics.collector import Exposition, Identity
from flask_backend.metrics.queues import Answer, QueueState
from flask_backend.operations.schedules import Schedule, ScheduledQueue
from flask_backend.outcome import Ending
from flask_backend.supervisor.scoreboard import Publication, Row, Scoreboard
from flask_backend.supervisor.states import ChildState

SERVER = "broker:11300"
QUEUES = [QueueState("q", ready=3, buried=1, watchers=2, next_wait_s=7), QueueState("other", next_wait_s=None)]


DAILY = Schedule(
    *("q", "daily", "hello", "@daily", "At 00:00 every day", "UTC"),
    *(86400, 7, 172800, "once", True, None, 3, 2, 1),
    is_paused=False,
    is_retired=False,
)
SCHEDULED = [ScheduledQueue("q", 2, [DAILY])]


class Published:
    """This process as a supervisor: its status page, and what its broker answers."""

    def __init__(self, folder: Path) -> None:
        self._folder = str(folder)
        self.answer = Answer(SERVER, QUEUES, SCHEDULED)
        self.boards = [self._make(0)]
        self.board.publish()
        self.exposition = Exposition(Identity(os.getpid(), "shop", "1.2"), lambda: self.answer)

    @property
    def board(self) -> Scoreboard:
        return self.boards[-1]

    def _make(self, generation, **options):
        labels = {"q": ["hello", "resize"], "other": []}
        return Scoreboard(labels, 8, Publication(self._folder, generation), **options)

    def reload(self, alive=()):
        """Go on as the next image, with these rows of living workers."""
        old = self.board
        new = self._make(len(self.boards), past=old.totals_of_exited([("q", row) for row in alive]))
        words = new.inherit([(os.dup(fd), path) for fd, path in old.memories()[:1]])
        for pid, row in enumerate(alive, 4000):
            new.adopt(pid, "q", Row.find(row.place, next(iter(words.values()))))
        self.boards.append(new)
        new.publish()

    def start(self, pid=None, state=ChildState.READY):
        """Start a worker; by default its pid is that of this process, whose memory can be read."""
        row = self.board.take("q")
        row.show_state(state)
        row.occupy(pid or os.getpid())
        return row

    def text(self) -> str:
        return self.exposition.render("")[0].decode()

    def values(self, name: str) -> dict[tuple[str, ...], float]:
        """Return the samples with this name, by the values of their labels in the order of their names."""
        return {
            tuple(sample.labels[label] for label in sorted(sample.labels)): sample.value
            for family in text_string_to_metric_families(self.text())
            for sample in family.samples
            if sample.name == name
        }


def work(row, label="hello", ending=Ending.DONE):
    row.begin(7)
    row.run(label, None)
    row.end(ending)
