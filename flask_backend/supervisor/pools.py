"""What the supervisor remembers about each pool, apart from its living children."""

from __future__ import annotations

from dataclasses import dataclass, field

from flask_backend.system.exits import ExitCode

from .plan import Plan, Slot
from .restart import Breaker, RestartPolicy


@dataclass(frozen=True, slots=True)
class GiveUp:
    """Why the supervisor gives up a pool, and the exit code for it."""

    reason: str
    code: ExitCode


@dataclass(slots=True)
class PoolRecord:
    """One pool's past."""

    restarts: RestartPolicy = field(default_factory=RestartPolicy)
    breaker: Breaker = field(default_factory=Breaker)
    was_ever_ready: bool = False
    failed_first: set[Slot] = field(default_factory=set[Slot])  # slots that failed before any was ever ready
    settled_after_death: int = 0  # jobs of dead children
    recycling: Slot | None = None  # the slot whose child is being replaced as planned

    def is_recycling(self, plan: Plan) -> bool:
        """Whether a successor is awaited. Only a wanted slot gets one."""
        return self.recycling is not None and plan.wants(self.recycling)

    def note_ready(self, slot: Slot) -> None:
        """Record that the child of a slot can work, which ends the recycling of the slot."""
        self.was_ever_ready = True
        self.end_recycling(slot)

    def end_recycling(self, slot: Slot) -> None:
        if self.recycling == slot:
            self.recycling = None

    def check_give_up(self, slot: Slot, size: int, status: int | None, now: float, progress: int) -> GiveUp | None:
        """Record an abnormal exit; return the reason to give up a pool of this size, if any."""
        if self.breaker.trips(now, progress):
            times = f"{self.breaker.limit} times within {self.breaker.window_s:g} s"
            reason = f"the workers of {slot.pool} have died {times} and finished no job in between"
            return GiveUp(reason, ExitCode.GAVE_UP)
        if not self.was_ever_ready and status == ExitCode.CONFIG:
            self.failed_first.add(slot)
            if all(Slot(slot.pool, index) in self.failed_first for index in range(size)):
                return GiveUp(f"no worker of {slot.pool} can start, for the reason above", ExitCode.CONFIG)
        return None
