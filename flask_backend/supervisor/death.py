"""What the supervisor knows about a child that died."""

from __future__ import annotations

from flask_backend.deaths import Activity, Death, Exit, ExitKind
from flask_backend.system.exits import ExitCode

from .children import Child


def death_of(child: Child, exit_: Exit, now: float) -> Death:
    activity = child.row.activity
    return Death(
        pool=child.slot.pool,
        kind=_kind_of(child, exit_, activity),
        exit=exit_,
        lived_s=now - child.started,
        was_ready=child.was_ready,
        has_left=child.has_left,
        activity=activity,
        private_bytes=child.private_bytes,
    )


def _kind_of(child: Child, exit_: Exit, activity: Activity | None) -> ExitKind:
    if child.gave_back(exit_.signal):
        return ExitKind.PLANNED
    if activity:
        return ExitKind.DIED_BUSY
    if exit_.status == ExitCode.OK or child.has_left:
        return ExitKind.PLANNED
    return ExitKind.DIED_IDLE if child.was_ready and exit_.signal is not None else ExitKind.CANNOT_WORK
