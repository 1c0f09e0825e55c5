"""What happens to a job after a failure. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

MAX_FAILURES = 10
# A job that has taken so many workers along takes no more.
MAX_CRASHES = 3
MIN_DELAY_S = 1
MAX_DELAY_S = 600


@dataclass(frozen=True, slots=True)
class Attempts:
    """What the broker's own counters tell of a job that failed just now.

    ``releases`` counts the failures before; ``buries`` the rounds of them that have ended, each with one more.
    A worker's death counts as neither: the connection's end gives the job back uncounted.
    """

    releases: int
    buries: int

    @property
    def number(self) -> int:
        """Which attempt this one was, from 1."""
        return self.releases + self.buries + 1

    @property
    def allowed(self) -> int:
        # Counters are never reset: without this a job that a person kicked would be buried again at once. Kicks
        # themselves are not what to count, since a delayed job can be kicked too.
        return MAX_FAILURES * (self.buries + 1)


@dataclass(frozen=True, slots=True)
class Release:
    """Try again after ``delay_s`` whole seconds."""

    delay_s: int


@dataclass(frozen=True, slots=True)
class Bury:
    """Leave the job for a person."""

    reason: str


def after_failure(attempts: Attempts, random: Callable[[], float]) -> Release | Bury:
    """Decide: released with a delay that doubles from 1 s to 10 min, plus up to a half, or buried after 10 failures.

    ``random`` gives numbers from 0 to 1. The jitter keeps jobs that failed together from coming back together,
    and is small enough for each delay to exceed the one before. Whole seconds, rounded up: the protocol takes no
    fractions, and a release without delay goes to the head of its queue.
    """
    if attempts.number >= attempts.allowed:
        return Bury(f"failed {attempts.number} times")
    # The exponent is bounded only to keep the power small.
    nominal = min(MAX_DELAY_S, MIN_DELAY_S * 2 ** min(attempts.number - 1, 32))
    return Release(min(MAX_DELAY_S, math.ceil(nominal * (1 + random() / 2))))


def after_crash(attempts: Attempts, crashes: int, random: Callable[[], float]) -> Release | Bury:
    """Decide for a job that took its worker along, ``crashes`` times by now; otherwise it is a failure as any."""
    if crashes >= MAX_CRASHES:
        return Bury(f"it has taken its worker along {crashes} times")
    return after_failure(attempts, random)
