"""The argument of a worker's body: how a worker reports to its supervisor."""

from __future__ import annotations

from collections.abc import Callable

from flask_backend.system.titles import show_worker

from .inbox import ReportKind
from .links import Links
from .scoreboard import Row


class ChildContext:
    """The pool and the row of a worker, and how it reports."""

    def __init__(self, pool: str, row: Row, links: Links, accept_signals: Callable[[], None]) -> None:
        """``accept_signals`` unblocks signals once the body has installed its handlers."""
        self.pool = pool
        self.lifeline = links.lifeline.read_end
        self.accept_signals = accept_signals
        self._links = links
        self._row = row
        self._has_lent = False
        # The body writes to the row directly, since it does so for every job.
        self.live, self.begin, self.run, self.end = row.live, row.begin, row.run, row.end
        self.count_wait, self.progress = row.count_wait, row.progress
        self.show_broker, self.show_limit = row.show_broker, row.show_limit
        self.was_told_to_drain, self.heard_drain = row.was_told_to_drain, row.heard_drain

    def ready(self) -> None:
        self.show("")
        self._links.inbox.report(ReportKind.READY)

    def leaving(self) -> None:
        self.show("ending")
        self._row.leave()
        self._links.inbox.report(ReportKind.LEFT)

    def recycle_due(self) -> None:
        self._links.inbox.report(ReportKind.RECYCLE_DUE)

    def lend(self, fd: int) -> None:
        if self._has_lent:
            self._row.count_reconnect()
        self._has_lent = True
        self._links.loans.lend(fd)

    def show(self, activity: str) -> None:
        show_worker(self.pool, activity)


Body = Callable[[ChildContext], int]
