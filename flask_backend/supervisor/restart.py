"""When to replace a dead child, and when to give up. Pure: time, chance and events come in as arguments."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from flask_backend.deaths import ExitKind

# A pool without an abnormal exit for this long starts with a clean record.
FORGIVEN_AFTER_S = 60.0
MIN_DELAY_S = 0.1
MAX_DELAY_S = 30.0


# This many are replaced at once before the backoff begins. Haste does not help a child that cannot work, and a job that
# crashes its child may come back; but the successor of a child that was killed while idle should work.
AT_ONCE = {ExitKind.CANNOT_WORK: 0, ExitKind.DIED_BUSY: 4, ExitKind.DIED_IDLE: 20}


@dataclass(slots=True)
class RestartPolicy:
    """The record of one pool, and the delay before each replacement."""

    random: Callable[[], float] = random.random
    _counts: dict[ExitKind, int] = field(default_factory=dict[ExitKind, int])
    _last: float = float("-inf")
    _progress: int = 0

    def delay_s(self, kind: ExitKind, now: float, progress: int) -> float:
        """Record an exit; return the delay before the replacement, 0 for an immediate one.

        ``progress`` is the number of jobs that the pool has settled so far: progress resets the backoff.
        """
        if kind is ExitKind.PLANNED:
            return 0.0
        if now - self._last > FORGIVEN_AFTER_S or progress != self._progress:
            self._counts.clear()
        self._last = now
        self._progress = progress
        count = self._counts[kind] = self._counts.get(kind, 0) + 1
        over = count - AT_ONCE[kind]
        if over <= 0:
            return 0.0
        return min(MAX_DELAY_S, MIN_DELAY_S * 2.0 ** min(over - 1, 16)) * (0.5 + self.random() / 2)

    def since(self, progress: int) -> tuple[dict[ExitKind, int], float]:
        """Return the exits of each kind without progress since, and when the last one was, for :meth:`resume`."""
        return (dict(self._counts) if progress == self._progress else {}), self._last

    def resume(self, counts: Mapping[ExitKind, int], last: float) -> None:
        """Go on from the record of an earlier image, with no progress so far."""
        self._counts.update(counts)
        self._last = last


@dataclass(slots=True)
class Breaker:
    """Stops a supervisor whose children only crash.

    It trips after a number of abnormal exits of a pool within ``window_s`` seconds without a job settled in between:
    ``limit``, by default 10, or twice the size of the pool if that is more.
    """

    limit: int | None = None
    window_s: float = 60.0
    _exits: deque[float] = field(default_factory=deque[float])
    _progress: int = 0

    def limit_of(self, size: int) -> int:
        """Return the number of exits of a pool of ``size`` at which it trips."""
        # Something that kills all children of a large pool at once should not stop it before their successors died too.
        return max(10, 2 * size) if self.limit is None else self.limit

    def trips(self, now: float, progress: int, size: int) -> bool:
        """Record an abnormal exit and the number of jobs settled so far; return whether the breaker trips."""
        if progress != self._progress:
            self._progress = progress
            self._exits.clear()
        self._exits.append(now)
        while now - self._exits[0] > self.window_s:
            self._exits.popleft()
        return len(self._exits) >= self.limit_of(size)

    def since(self, progress: int) -> list[float]:
        """Return the times of the abnormal exits without progress since, for :meth:`resume`."""
        return list(self._exits) if progress == self._progress else []

    def resume(self, exits: Iterable[float]) -> None:
        """Go on from the record of an earlier image, with no progress so far."""
        self._exits.extend(exits)
