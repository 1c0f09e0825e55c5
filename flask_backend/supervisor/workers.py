"""Starts, drains and kills workers. Each has a row of the scoreboard while it lives."""

from __future__ import annotations

from collections.abc import Callable

from flask_backend.system.stacks import answer_readers

from .children import Child, Children
from .context import Body, ChildContext
from .links import Links
from .plan import Slot
from .process import AcceptSignals, Processes
from .scoreboard import Scoreboard
from .states import ChildEvent


class Workers:
    def __init__(
        self, body: Body, scoreboard: Scoreboard, links: Links, processes: Processes, clock: Callable[[], float]
    ) -> None:
        self.children = Children()
        self.scoreboard = scoreboard
        self._body = body
        self._links = links
        self._processes = processes
        self._clock = clock

    def start(self, slot: Slot) -> None:
        """Fork a worker; raise :exc:`OSError` if the system refuses."""
        row = self.scoreboard.take(slot.pool, slot.index)

        def live(accept_signals: AcceptSignals) -> int:
            answer_readers(self.scoreboard.stacks_fd)
            context = ChildContext(slot.pool, row, self._links, accept_signals)
            context.show("starting")
            return self._body(context)

        try:
            pid = self._processes.spawn(f"a worker of {slot.pool}", live, self._links)
        except OSError:
            self.scoreboard.give_back(slot.pool, row)
            raise
        row.occupy(pid)
        self.children.add(Child(slot, pid, row, self._clock()))

    def drain(self, child: Child) -> None:
        """Ask a worker to finish its jobs and exit."""
        child.apply(ChildEvent.DRAIN)
        child.drained_at = child.signalled_at = self._clock()
        child.row.tell_to_drain()
        self._processes.drain(child.pid)

    def kill(self, child: Child) -> None:
        child.apply(ChildEvent.KILL)
        self._processes.kill(child.pid)

    def remove(self, child: Child) -> None:
        """Forget a dead worker. Its row stays readable until the next worker is started."""
        self.children.remove(child.pid)
        if not child.is_old:
            self.scoreboard.give_back(child.slot.pool, child.row)
            return
        self.scoreboard.retire(child.pid)
        if not self.children.has_old():
            self._links.lifeline.let_go_of_old_ones()
