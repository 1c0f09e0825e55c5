"""When a dead child is replaced. Pure: time, chance and what happened come in as arguments."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum, auto

# A pool without an abnormal exit for so long starts with a clean record.
FORGIVEN_AFTER_S = 60.0
MIN_DELAY_S = 0.1
MAX_DELAY_S = 30.0


class ExitKind(Enum):
    """How a child's end is to be understood."""

    PLANNED = auto()  # drained: recycled, or one too many
    CANNOT_WORK = auto()  # died before it was ready, or gave up by itself without a job
    DIED_IDLE = auto()  # killed: the system's doing, or an operator's
    DIED_BUSY = auto()  # perhaps the doing of its job


# So many are replaced at once before delays begin. A child that cannot work will not be better for haste, and a job
# that kills is soon at the head of its queue again; but where an idle child was killed a new one should do well.
AT_ONCE = {ExitKind.CANNOT_WORK: 0, ExitKind.DIED_BUSY: 4, ExitKind.DIED_IDLE: 20}


@dataclass(slots=True)
class RestartPolicy:
    """The record of one pool, and the delay before each replacement."""

    random: Callable[[], float] = random.random
    _counts: dict[ExitKind, int] = field(default_factory=dict[ExitKind, int])
    _last: float = float("-inf")

    def delay_s(self, kind: ExitKind, now: float) -> float:
        """Note an exit; return how long to wait before its replacement, 0 for not at all."""
        if kind is ExitKind.PLANNED:
            return 0.0
        if now - self._last > FORGIVEN_AFTER_S:
            self._counts.clear()
        self._last = now
        count = self._counts[kind] = self._counts.get(kind, 0) + 1
        over = count - AT_ONCE[kind]
        if over <= 0:
            return 0.0
        return min(MAX_DELAY_S, MIN_DELAY_S * 2.0 ** min(over - 1, 16)) * (0.5 + self.random() / 2)
