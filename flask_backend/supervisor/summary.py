"""The supervisor in one line with numbers, which `systemctl status` shows."""

from __future__ import annotations

from . import wording
from .children import Children
from .history import History
from .scoreboard import Scoreboard

# How often the numbers change, and how long they are measured: each new line is a message to the service manager.
EVERY_S = 5.0
# From this rate on it is shown without a decimal.
WHOLE_FROM = 10


class Summary:
    """Builds the line. A change of ``ready``, ``wanted`` or ``remark`` shows at once, the other numbers later."""

    def __init__(self, children: Children, scoreboard: Scoreboard, history: History) -> None:
        self._children = children
        self._scoreboard = scoreboard
        self._history = history
        self._line = ""
        self._shown: object = None
        self._due_at = 0.0
        self._done = 0
        self._measured_at: float | None = None
        self._rate: float | None = None

    def line(self, ready: int, wanted: int, remark: str, now: float) -> str:
        """Return the line for so many ready and wanted workers, which ends with ``remark``, if any."""
        if now >= self._due_at:
            self._due_at = now + EVERY_S
            self._measure(now)
        elif self._shown == (ready, wanted, remark):
            return self._line
        self._shown = ready, wanted, remark
        busy = sum(child.row.activity is not None for child in self._children)
        self._line = wording.summary(ready, wanted, busy, self._rate, self._history.restarts) + remark
        return self._line

    def _measure(self, now: float) -> None:
        """Measure how many jobs are done a second, since the last time."""
        done = self._scoreboard.done()
        if self._measured_at is not None:
            rate = (done - self._done) / (now - self._measured_at)
            self._rate = round(rate, None if rate >= WHOLE_FROM else 1)
        self._done, self._measured_at = done, now
