"""What the supervisor remembers of each pool, beyond its living children."""

from __future__ import annotations

from dataclasses import dataclass, field

from .plan import Slot
from .restart import Breaker, RestartPolicy


@dataclass(slots=True)
class PoolRecord:
    """One pool's past."""

    restarts: RestartPolicy = field(default_factory=RestartPolicy)
    breaker: Breaker = field(default_factory=Breaker)
    was_ever_ready: bool = False
    failed_first: set[Slot] = field(default_factory=set[Slot])  # slots that failed while none was ever ready
    settled_after_death: int = 0  # jobs of dead children
    recycling: Slot | None = None  # the one slot whose child is being replaced as planned

    def end_recycling(self, slot: Slot) -> None:
        if self.recycling == slot:
            self.recycling = None
