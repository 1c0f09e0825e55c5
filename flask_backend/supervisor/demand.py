"""When a pool grows and when it shrinks. Pure: time, chance and the state of the queue come in as arguments.

The supervisors of all hosts see the same queue. If it needs a worker, each of them waits for a random time and goes on
looking, so that most of them see the worker that the first one has added, and add none.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass

# How often the queues are looked at.
SAMPLE_S = 1.0
# Samples that are further apart do not tell what was in between.
STALE_S = 4.0
# How long jobs must be ready and no worker wait before a pool grows by one, a random time between these. The shortest
# is more than a burst of small jobs lasts; the difference is much more than a worker takes to start and to be seen.
GROW_AFTER_S = (2.0, 8.0)
# How long a worker must not be needed before its pool shrinks by one: long against the above, so that a load that comes
# and goes does not start workers all the time.
SHRINK_AFTER_S = (30.0, 60.0)


@dataclass(frozen=True, slots=True)
class Demand:
    """A queue at one moment: how many jobs are ready, and how many workers, of all hosts, wait for one.

    ``is_held_up`` is whether further workers could not start a job: the queue is paused, or a worker that has a job
    waits for the limit of its tasks.
    """

    ready: int
    waiting: int
    is_held_up: bool = False

    @property
    def is_unmet(self) -> bool:
        """Whether a further worker would have work at once."""
        return self.ready > 0 and self.waiting == 0 and not self.is_held_up


@dataclass(frozen=True, slots=True)
class Step:
    """By how many workers a pool should change, and for how long there has been a reason."""

    by: int
    after_s: float


@dataclass(slots=True)
class ScalingPolicy:
    """The recent samples of one pool. After each step the next one begins with a new policy."""

    random: Callable[[], float] = random.random
    grow_from: float = -math.inf  # the pool does not grow before
    _last: float = -math.inf
    _unmet_since: float | None = None
    _spare_since: float | None = None
    _grow_after_s: float = 0.0
    _shrink_after_s: float = 0.0

    def __post_init__(self) -> None:
        self._grow_after_s, self._shrink_after_s = (
            shortest + (longest - shortest) * self.random() for shortest, longest in (GROW_AFTER_S, SHRINK_AFTER_S)
        )

    def step(self, at: float, demand: Demand, idle: int, *, is_complete: bool) -> Step | None:
        """Record a sample; return the step that is due, if any.

        ``at`` is the time of the sample, and ``idle`` the number of the pool's own children without a job.
        ``is_complete`` is whether all wanted children can work: while some start, die or have no broker, more of them
        are no help, and fewer may be too few.
        """
        if at - self._last > STALE_S:
            self._unmet_since = self._spare_since = None
        self._last = at
        self._unmet_since = _since(
            self._unmet_since, at, holds=is_complete and demand.is_unmet and at >= self.grow_from
        )
        self._spare_since = _since(self._spare_since, at, holds=is_complete and idle > 0 and demand.ready == 0)
        if self._unmet_since is not None and at - self._unmet_since >= self._grow_after_s:
            return Step(+1, at - self._unmet_since)
        if self._spare_since is not None and at - self._spare_since >= self._shrink_after_s:
            return Step(-1, at - self._spare_since)
        return None


def _since(earlier: float | None, at: float, *, holds: bool) -> float | None:
    """Return since when a condition holds, if it does."""
    if not holds:
        return None
    return at if earlier is None else earlier
