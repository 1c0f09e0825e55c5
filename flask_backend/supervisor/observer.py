"""Looks at the queues whose pools may grow and shrink: in a helper that lives as long as the supervisor.

The loop must not wait for a broker, and a fork for each look would cost the supervisor more than the look. So one
helper looks once a second, keeps its connection, and writes what it sees into shared memory, where the loop finds it at
its next turn, without a system call. A helper that hangs or dies is replaced.
"""

from __future__ import annotations

import math
import mmap
import select
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

from flask_backend.deaths import Exit
from flask_backend.system.exits import ExitCode
from flask_backend.system.loggers import get_logger
from flask_backend.system.titles import show_helper

from . import wording
from .demand import SAMPLE_S, Demand
from .helpers import Helper, Helpers
from .links import Links
from .process import AcceptSignals

logger = get_logger("flask_backend.supervisor")

# Called in the helper; may block and keep state from one call to the next. Returns the demand for each pool, or None if
# the broker does not answer. An exception ends the helper.
Look = Callable[[], Mapping[str, Demand] | None]

# The time between looks while the broker does not answer.
LOOK_AGAIN_S = 5.0
# One look takes no longer, or the helper is killed. A look has time limits of its own; a name server may not.
HUNG_S = 20.0
# Without an answer for this long, the log says that sizes stay as they are.
SILENT_S = 10.0
# The delay before the next helper, doubled while helpers die within STABLE_S of their start.
RESTART_MIN_S, RESTART_MAX_S = 1.0, 30.0
STABLE_S = 60.0

# The memory has one word for the last sign of life, and four words for each pool. All times are in nanoseconds of the
# monotonic clock.
_ALIVE = 0
_AT, _READY, _WAITING, _PAUSED = range(4)
_POOL_WORDS = 4
_LARGEST = (1 << 64) - 1


class Observer:
    """The helper, and what it has seen. Without pools that scale there is none."""

    def __init__(
        self, look: Look | None, pools: Sequence[str], links: Links, helpers: Helpers, clock: Callable[[], float]
    ) -> None:
        self._look = look
        self._pools = pools if look else ()
        self._links = links
        self._helpers = helpers
        self._clock = clock
        self._words = memoryview(mmap.mmap(-1, 8 * (1 + _POOL_WORDS * len(self._pools)))).cast("Q")
        self._seen_ns = dict.fromkeys(self._pools, 0)  # the time of the last sample of each pool
        self._helper: Helper | None = None
        self._started = self._not_before = -math.inf
        self._answered: float | None = None
        self._delay_s = RESTART_MIN_S
        self._is_silent = False

    def keep(self, now: float) -> None:
        """Keep the helper running. Call it each turn, before overdue helpers are killed."""
        if self._helper and not self._helper.is_overdue:
            self._helper.deadline = max(self._started, self._words[_ALIVE] / 1e9) + HUNG_S
        elif self._pools and self._helper is None and now >= self._not_before:
            self._start(now)

    def answers(self) -> Iterator[tuple[str, float, Demand]]:
        """Yield the new samples: the pool, the time and the demand."""
        for number, pool in enumerate(self._pools):
            base = 1 + _POOL_WORDS * number
            at_ns, ready, waiting, is_held_up = self._words[base : base + _POOL_WORDS]
            # While the helper writes, the time is 0: a sample is whole if it has one time before and after.
            if at_ns and at_ns != self._seen_ns[pool] and at_ns == self._words[base + _AT]:
                self._seen_ns[pool] = at_ns
                self._answered = at_ns / 1e9
                yield pool, at_ns / 1e9, Demand(ready, waiting, bool(is_held_up))

    def note_silence(self, now: float) -> None:
        """Log once when answers stay away, and once when they are back. Call it after :meth:`answers`."""
        if self._answered is None:  # the first turn
            self._answered = now
        if self._pools and (now - self._answered > SILENT_S) != self._is_silent:
            self._is_silent = not self._is_silent
            logger.warning(wording.NO_ANSWER_ABOUT_QUEUES if self._is_silent else wording.ANSWERS_ABOUT_QUEUES)

    def stop(self) -> None:
        """End the helper: the supervisor drains, or its next image starts another one."""
        if self._helper:
            self._helpers.dismiss(self._helper)
            self._helper = None

    def _start(self, now: float) -> None:
        try:
            self._helper = self._helpers.start(
                "the process that looks at the queues", self._observe, self._end, within_s=HUNG_S
            )
        except OSError as error:
            self._postpone(now, wording.cannot_start_observer(error))
        else:
            self._started = now

    def _end(self, exit_: Exit) -> None:
        was_killed = self._helper is not None and self._helper.is_overdue
        self._helper = None
        now = self._clock()
        if now - self._started > STABLE_S:
            self._delay_s = RESTART_MIN_S
        self._postpone(now, wording.end_of_observer(exit_, is_overdue=was_killed))

    def _postpone(self, now: float, reason: str) -> None:
        logger.warning(wording.OBSERVER_ENDED, reason, self._delay_s)
        self._not_before = now + self._delay_s
        self._delay_s = min(RESTART_MAX_S, 2 * self._delay_s)

    # -- in the helper -----------------------------------------------------------------------------------------

    def _observe(self, accept_signals: AcceptSignals) -> int:
        assert self._look is not None  # noqa: S101  # our own invariant: without it there are no pools to look at
        accept_signals()
        show_helper("looks at the queues")
        lifeline = select.poll()
        lifeline.register(self._links.lifeline.read_end, select.POLLIN)
        is_alone = False
        while not is_alone:
            self._words[_ALIVE] = time.monotonic_ns()
            seen = self._look()
            if seen is not None:
                self._write(seen)
            # The lifeline ends when the supervisor is gone.
            is_alone = bool(lifeline.poll(1000 * (LOOK_AGAIN_S if seen is None else SAMPLE_S)))
        return ExitCode.OK

    def _write(self, seen: Mapping[str, Demand]) -> None:
        words = self._words
        for number, pool in enumerate(self._pools):
            if demand := seen.get(pool):
                base = 1 + _POOL_WORDS * number
                words[base + _AT] = 0
                words[base + _READY] = min(demand.ready, _LARGEST)
                words[base + _WAITING] = min(demand.waiting, _LARGEST)
                words[base + _PAUSED] = demand.is_held_up
                words[base + _AT] = time.monotonic_ns()
