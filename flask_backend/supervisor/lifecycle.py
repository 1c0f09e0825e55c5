"""The supervisor's own state, the deadlines of its stop, and its exit code."""

from __future__ import annotations

import math

from flask_backend.system.exits import ExitCode

from .states import SUPERVISOR_TRANSITIONS, SupervisorEvent, SupervisorState, next_state

LEAST_DRAIN_S = 1.0  # an idle child gets this long to notice a drain and exit, however short the timeout


class Lifecycle:
    """Where the supervisor is between its start and its end. All times are of the monotonic clock."""

    def __init__(self, drain_timeout_s: float, generation: int) -> None:
        self.exit_code = ExitCode.OK
        self.generation = generation  # the number of reloads before this image
        self.kill_at = math.inf  # when the children that still run are killed
        self.leave_at = -math.inf  # by when this process should have exited
        self._drain_timeout_s = drain_timeout_s
        self._childless_at: float | None = None
        self._state = SupervisorState.STARTING

    @property
    def state(self) -> str:
        """The state's name, as the status page shows it."""
        return self._state.name.lower()

    @property
    def is_starting(self) -> bool:
        return self._state is SupervisorState.STARTING

    @property
    def is_running(self) -> bool:
        return self._state is SupervisorState.RUNNING

    @property
    def is_draining(self) -> bool:
        """Whether it drains its children or has stopped."""
        return self._state in (SupervisorState.DRAINING, SupervisorState.STOPPED)

    @property
    def is_stopped(self) -> bool:
        return self._state is SupervisorState.STOPPED

    def apply(self, event: SupervisorEvent) -> None:
        self._state = next_state(SUPERVISOR_TRANSITIONS, self._state, event)

    def note_given_back(self) -> None:
        """Record that a job was given back unfinished. An earlier failure is worse."""
        self.exit_code = self.exit_code or ExitCode.GAVE_BACK

    def limit(self, now: float) -> None:
        """Start the time that running jobs get at a stop."""
        self.kill_at = self.leave_at = now + self._drain_timeout_s

    def note_childless(self, now: float) -> float:
        """Record that a drain has no child left; return how long this process may still wait for its helpers."""
        if self._childless_at is None:
            self._childless_at = now
        return max(self.leave_at, self._childless_at + LEAST_DRAIN_S)

    def hurry(self, now: float) -> None:
        """Record that the children have been killed: this process should exit as soon as they have."""
        self.kill_at = math.inf
        # A late or repeated kill is no reason to stay longer.
        self.leave_at = min(self.leave_at, now) if math.isfinite(self.leave_at) else now
