"""How an image of the supervisor collects what it hands over, and how the next one adopts it."""

from __future__ import annotations

from .children import Child
from .handover import Handover, OldChild
from .links import Links
from .plan import Slot
from .scoreboard import Place, Row, map_words
from .states import ChildState
from .terminal import Terminal
from .workers import Workers


def hand_over(workers: Workers, links: Links, terminal: Terminal) -> Handover:
    """Collect what the next image needs."""
    children = [
        OldChild(
            pool=child.slot.pool,
            pid=child.pid,
            is_draining=child.was_told_to_end,
            loan=links.loans.get(child.pid),
            row_fd=child.row.place.fd,
            row_offset=child.row.place.offset,
            row_labels=list(child.row.place.labels),
        )
        for child in workers.children
    ]
    return Handover(
        children=children,
        lifelines=links.lifeline.write_ends,
        notify_address=links.notifier.path,
        soft_limit=links.descriptors.soft,
        had_terminal=terminal.was_there,
        totals_of_exited=workers.scoreboard.totals_of_exited(alive=[child.row for child in workers.children]),
    )


def adopt(handover: Handover, workers: Workers, links: Links, now: float) -> None:
    """Adopt the children of the previous image."""
    links.lifeline.keep(handover.lifelines)
    workers.scoreboard.restore(handover.totals_of_exited)
    memories = {fd: map_words(fd) for fd in {old.row_fd for old in handover.children}}
    for old in handover.children:
        row = Row.find(Place(old.row_fd, old.row_offset, old.row_labels), memories[old.row_fd])
        state = ChildState.DRAINING if old.is_draining else ChildState.READY
        slot = Slot(old.pool, 0)  # any: old children are outside the plan
        child = Child(slot, old.pid, row, now, state, was_ready=True, is_old=True, drained_at=now, signalled_at=now)
        workers.children.add(child)
        workers.scoreboard.adopt(old.pid, old.pool, row)
        if old.loan is not None:
            links.loans.keep(old.pid, old.loan)
    if not workers.children.has_old():
        links.lifeline.let_go_of_old_ones()
