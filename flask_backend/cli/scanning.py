"""Find jobs by trying ids, newest first and up to a bound: the protocol cannot list jobs."""

from __future__ import annotations

import sys
import time
from collections.abc import Collection, Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import click

from .output import echo

if TYPE_CHECKING:
    from flask_backend.broker.stats import JobRecord
    from flask_backend.operations.console import Console

# Bodies may be large: at most this many are in memory.
_BODIES_AT_ONCE = 50
# A search that takes longer shows a progress bar.
_MOMENT_S = 0.5

scan_option = click.option(
    "--scan",
    "bound",
    type=click.IntRange(min=1),
    metavar="N",
    default=1_000_000,
    show_default=True,
    help="Look at most at the newest N ids: Beanstalkd cannot list jobs, and 100,000 ids take a second.",
)


class Search:
    """A search for the jobs of some queues in some states. Iterate over it; its attributes show how far it got.

    It ends when it has ``found`` as many jobs as the server ``counted`` at the start.
    """

    def __init__(self, console: Console, queues: Collection[str], states: Collection[str], bound: int) -> None:
        self._console = console
        self._queues = set(queues)
        self._states = set(states)
        self._bound = bound
        # In this order: otherwise jobs put in between are found but not counted, and old ones are missed.
        self._newest = console.last_id()
        known = filter(None, map(console.queue, self._queues))
        self.counted = sum(int(getattr(queue, state)) for queue in known for state in self._states)
        self.looked_at = 0
        self.found = 0

    def __iter__(self) -> Iterator[list[JobRecord]]:
        """Yield the jobs found, many at a time and newest first; a bar on stderr shows the progress."""
        if not self.counted:
            return
        steps = self._console.scan(self._newest, self._bound, self._queues, self._states)
        begun = time.monotonic()
        with ExitStack() as stack:
            bar: Any = None
            for self.looked_at, records in steps:
                self.found += len(records)
                if bar is None and sys.stderr.isatty() and time.monotonic() - begun > _MOMENT_S:
                    length = min(self._bound, self._newest)
                    bar = stack.enter_context(click.progressbar(length=length, label="looking at ids", file=sys.stderr))
                if bar is not None:
                    bar.update(self.looked_at - bar.pos)
                if records:
                    yield records
                if self.found >= self.counted:
                    return

    def with_bodies(self) -> Iterator[tuple[JobRecord, bytes]]:
        """Yield the jobs found one by one, each with its body; skip jobs that no longer exist."""
        for records in self:
            for start in range(0, len(records), _BODIES_AT_ONCE):
                part = records[start : start + _BODIES_AT_ONCE]
                bodies = self._console.bodies(record.id for record in part)
                yield from ((record, bodies[record.id]) for record in part if record.id in bodies)

    @property
    def is_complete(self) -> bool:
        return self.found >= self.counted or self.looked_at >= self._newest

    def warn_if_incomplete(self) -> None:
        if not self.is_complete:
            echo(
                f"looked at the newest {self.looked_at:,} ids; {self.found:,} of {self.counted:,} jobs found: "
                "--scan N looks further",
                err=True,
            )
