"""What an image of the supervisor hands over in a reload, and how the next one adopts it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from .children import Child
from .events import Events
from .handover import Handover, OldChild, OldHelper
from .helpers import Helpers
from .history import History
from .links import Links
from .plan import Slot
from .pools import Pools
from .scoreboard import Place, Row
from .service import ServiceHelper
from .settling import Settling
from .states import ChildState
from .terminal import Terminal
from .workers import Workers


@dataclass(frozen=True, slots=True)
class Inheritance:
    """The parts of a supervisor that a reload keeps."""

    workers: Workers
    helpers: Helpers
    events: Events
    links: Links
    terminal: Terminal
    history: History
    pools: Pools
    settling: Settling
    service: ServiceHelper
    scheduler: ServiceHelper

    def hand_over(self, generation: int) -> Handover:
        """Collect what the next image, of this generation, needs."""
        self.links.loans.receive()
        children = list(self.workers.children)
        kept = (self.service.pid, self.scheduler.pid)
        helpers = [helper for helper in self.helpers if helper.pid not in kept]
        return Handover(
            generation=generation,
            children=[self._record(child) for child in children],
            helpers=[OldHelper(helper.pid, helper.deadline, helper.settles) for helper in helpers],
            events=self.events.pending,
            lifelines=self.links.lifeline.write_ends,
            manager=self.links.notifier.manager,
            soft_limit=self.links.descriptors.soft,
            had_terminal=self.terminal.was_there,
            pages=self.workers.scoreboard.memories(),
            history=self.history,
            sizes=self.pools.plan.hand_over(),
            pools=self.pools.hand_over(self.progress),
            crashes=self.settling.crashes.records,
            service=self.service.hand_over(),
            scheduler=self.scheduler.hand_over(),
            totals_of_exited=self.workers.scoreboard.totals_of_exited(
                alive=[(child.slot.pool, child.row) for child in children]
            ),
        )

    def adopt(self, handover: Handover, now: float) -> None:
        """Adopt the children of the previous image."""
        self.links.lifeline.keep(handover.lifelines)
        memories = self.workers.scoreboard.inherit(handover.pages)
        for old in handover.children:
            row = Row.find(Place(old.row_fd, old.row_offset, old.row_labels), memories[old.row_fd])
            self._adopt_child(old, row, now)
        if not self.workers.children.has_old():
            self.links.lifeline.let_go_of_old_ones()
        for helper in handover.helpers:
            on_exit = partial(self.settling.end, helper.settles) if helper.settles else None
            self.helpers.adopt(helper.pid, helper.deadline, helper.settles, on_exit)
        if handover.service:
            self.service.adopt(handover.service)
        if handover.scheduler:
            self.scheduler.adopt(handover.scheduler)
        self.events.add(handover.events)
        self.pools.plan.resume(handover.sizes)
        self.pools.resume(handover.pools)
        self.settling.crashes.resume(handover.crashes)

    def progress(self, pool: str) -> int:
        """Return how many jobs of a pool this image and its children have settled."""
        return self.workers.scoreboard.settled(pool) + self.settling.settled[pool]

    def _record(self, child: Child) -> OldChild:
        return OldChild(
            pool=child.slot.pool,
            pid=child.pid,
            started=child.started,
            is_draining=child.was_told_to_end,
            loan=self.links.loans.get(child.pid),
            row_fd=child.row.place.fd,
            row_offset=child.row.place.offset,
            row_labels=list(child.row.place.labels),
        )

    def _adopt_child(self, old: OldChild, row: Row, now: float) -> None:
        state = ChildState.DRAINING if old.is_draining else ChildState.READY
        slot = Slot(old.pool, 0)  # any: old children are outside the plan
        child = Child(
            slot, old.pid, row, old.started, state, was_ready=True, is_old=True, drained_at=now, signalled_at=now
        )
        self.workers.children.add(child)
        self.workers.scoreboard.adopt(old.pid, old.pool, row)
        if old.loan is not None:
            self.links.loans.keep(old.pid, old.loan)
