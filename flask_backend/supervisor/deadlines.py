"""Which children are stuck. Pure: time comes in as an argument."""

from __future__ import annotations

from dataclasses import dataclass

from . import wording
from .children import Child
from .states import ChildState

# A turn this late means that the supervisor or the machine was suspended: the children are not to blame.
SUSPENDED_S = 5.0
# An idle child sends a heartbeat at least every 30 s, unless it has announced a longer wait.
SILENT_S = 120.0
# How often the drain signal is repeated to a child that seems to have missed it.
TELL_AGAIN_S = 1.0


@dataclass(slots=True)
class Deadlines:
    """Compares children with their deadlines."""

    boot_timeout_s: float
    drain_timeout_s: float
    _lenient_until: float = float("-inf")

    def note_turn(self, late_s: float, now: float) -> None:
        """Record how late this turn is; after a suspend, give children time to act by themselves."""
        if late_s > SUSPENDED_S:
            self._lenient_until = now + SUSPENDED_S

    def reason_to_kill(self, child: Child, now: float) -> str | None:
        """Return the reason to kill a child, if any."""
        if now < self._lenient_until or child.state is ChildState.KILLED:
            return None
        if child.state is ChildState.STARTING and now - child.started > self.boot_timeout_s:
            return wording.was_not_ready(self.boot_timeout_s)
        if child.row.left_at is not None:
            is_late = now - child.row.left_at >= self.drain_timeout_s
            return wording.did_not_exit(self.drain_timeout_s) if is_late else None
        kill_at, activity = child.row.kill_at, child.row.activity
        if activity and kill_at is not None and now >= kill_at:
            return wording.did_not_end(activity)
        if activity is None and child.state is ChildState.READY and now - child.row.alive_at > SILENT_S:
            return wording.is_silent(now - child.row.alive_at)
        return None

    def note_drain(self, child: Child, now: float) -> None:
        """Record since when a draining child overstays: it goes on without a reason.

        A job that it held when it was asked to drain is a reason. So is a newer job if the child has acknowledged the
        signal: that job began while the signal was on its way.
        """
        row = child.row
        is_kept = row.activity is not None and (row.has_heard_drain or row.began_at <= child.drained_at)
        if child.state is not ChildState.DRAINING or is_kept:
            child.overstays_from = None
        elif child.overstays_from is None:
            child.overstays_from = now

    def is_to_be_told_again(self, child: Child, now: float) -> bool:
        is_deaf = child.overstays_from is not None and not child.row.has_heard_drain
        return is_deaf and now - child.signalled_at >= TELL_AGAIN_S

    def reason_to_end(self, child: Child, now: float) -> str | None:
        """Return the reason to kill a draining child, if any."""
        since = child.overstays_from
        if since is None or now < self._lenient_until or now - since < self.drain_timeout_s:
            return None
        return wording.overstays(now - child.drained_at, is_busy=child.row.activity is not None)
