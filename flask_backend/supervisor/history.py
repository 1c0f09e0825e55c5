"""What the supervisor remembers of its past for the status page: exits, deaths and the last reload.

It crosses a reload, and outlives the children that it is about.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field
from typing import Any

from flask_backend.deaths import Death

# How many deaths are kept, ...
DEATHS = 20
# ... and how many bytes of the output of a check.
OUTPUT_BYTES = 16 << 10


@dataclass(slots=True)
class ReloadRecord:
    """The last reload whose outcome is known. ``check`` is the number of its check; ``output`` is what that wrote."""

    check: int
    outcome: str
    has_failed: bool
    output: str
    at: float = field(default_factory=time.time)  # in seconds since the epoch


@dataclass(slots=True)
class History:
    """``checks`` counts the checks of new code that have begun.

    ``exits`` counts the exits of each pool by reason. ``slots`` counts, for each pool and the number of each slot, its
    ``crashed`` children, which died at a job, and its ``restarts`` by reason: the exits of children that it had before.
    """

    checks: int = 0
    output: str = ""  # what the last check wrote, which its reload has not recorded yet
    reload: ReloadRecord | None = None
    reloads: dict[str, int] = field(default_factory=lambda: {"done": 0, "refused": 0})
    exits: dict[str, dict[str, int]] = field(default_factory=dict[str, dict[str, int]])
    slots: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict[str, dict[str, dict[str, Any]]])
    deaths: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    restarts: int = 0  # of workers, after unplanned deaths
    has_changed: bool = True
    check_passed: int = 0  # the check that this image has passed ...
    output_passed: str = ""  # ... and its output

    def note_check(self) -> None:
        """Record that a check has begun."""
        self.checks += 1
        self.output = ""
        self.has_changed = True

    def note_failed_reload(self, outcome: str) -> None:
        """Record why the last check has not led to a reload."""
        self.reload = ReloadRecord(self.checks, outcome, has_failed=True, output=self.output)
        self.reloads["refused"] += 1
        self.has_changed = True

    def note_reload(self, outcome: str) -> None:
        """Record that the code of this image serves. Another check may have begun since."""
        self.reload = ReloadRecord(self.check_passed, outcome, has_failed=False, output=self.output_passed)
        self.reloads["done"] += 1
        self.has_changed = True

    def note_exit(self, death: Death, reason: str, slot: int | None, *, is_planned: bool) -> None:
        """Count an exit, and keep an unplanned one. ``slot`` is the number of the slot, if the child had one."""
        counts = self.exits.setdefault(death.pool, {})
        counts[reason] = counts.get(reason, 0) + 1
        if slot is not None:
            past = self.slots.setdefault(death.pool, {}).setdefault(str(slot), {"crashed": 0, "restarts": {}})
            past["crashed"] += death.activity is not None and not is_planned
            past["restarts"][reason] = past["restarts"].get(reason, 0) + 1
        if not is_planned:
            self.restarts += 1
            record = {"at": time.time(), "reason": reason, "description": str(death), **death.as_dict()}
            self.deaths = [*self.deaths, record][-DEATHS:]
        self.has_changed = True

    def as_facts(self) -> dict[str, Any]:
        """Return what the status page shows."""
        reload = asdict(self.reload) if self.reload else None
        return {
            "reload": reload,
            "reloads": self.reloads,
            "exits": self.exits,
            "slots": self.slots,
            "deaths": self.deaths,
        }

    @classmethod
    def read(cls, left: dict[str, Any]) -> History:
        """Return the history that an earlier image of this process has left."""
        reload = ReloadRecord(**left["reload"]) if left["reload"] else None
        kept = {name: left[name] for name in ("checks", "output", "reloads", "exits", "slots", "deaths", "restarts")}
        return cls(reload=reload, check_passed=left["checks"], output_passed=left["output"], **kept)
