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


def reason_of(child: Child, kind: ExitKind, *, is_stop: bool, is_wanted: bool) -> str:
    """Return the reason of an exit in one word, as the status page counts it."""
    if is_stop:
        return "stop"
    if child.is_too_large and (kind is ExitKind.PLANNED or child.is_killed):
        return "memory"
    if kind is ExitKind.PLANNED:
        return "reload" if child.is_old else "tasks" if child.recycle_reason else "other" if is_wanted else "scaled"
    if not child.was_ready:
        return "boot"
    if child.is_killed:
        return "time_limit" if kind is ExitKind.DIED_BUSY else "stuck"
    return "crash" if kind is ExitKind.DIED_BUSY else "failed" if kind is ExitKind.CANNOT_WORK else "killed"


def _kind_of(child: Child, exit_: Exit, activity: Activity | None) -> ExitKind:
    if child.gave_back(exit_.signal):
        return ExitKind.PLANNED
    if activity:
        return ExitKind.DIED_BUSY
    if exit_.status == ExitCode.OK or child.has_left:
        return ExitKind.PLANNED
    return ExitKind.DIED_IDLE if child.was_ready and exit_.signal is not None else ExitKind.CANNOT_WORK
