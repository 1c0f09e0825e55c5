"""What is known of a child that died: the facts, and one line that tells them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from flask_backend.system.exits import ExitCode

from .children import Child
from .process import Exit
from .restart import ExitKind
from .scoreboard import Activity


@dataclass(frozen=True, slots=True)
class Death:
    """How a child ended, and what it was doing."""

    pool: str
    kind: ExitKind
    exit: Exit
    lived_s: float
    was_ready: bool
    has_left: bool
    activity: Activity | None
    private_bytes: int | None

    @classmethod
    def of(cls, child: Child, exit_: Exit, now: float, private_bytes: int | None) -> Death:
        activity = child.row.activity
        return cls(
            pool=child.slot.pool,
            kind=_kind_of(child, exit_, activity),
            exit=exit_,
            lived_s=now - child.started,
            was_ready=child.was_ready,
            has_left=child.has_left,
            activity=activity,
            private_bytes=private_bytes,
        )

    def __str__(self) -> str:
        exit_ = self.exit
        if self.activity:
            job = f"at job {self.activity.job_id} ({self.activity.label}) after {self.activity.running_s:.1f} s"
        else:
            job = "as it ended" if self.has_left else "while idle" if self.was_ready else "before it was ready"
        memory = f"peak {exit_.max_rss_bytes >> 20} MiB"
        if self.private_bytes is not None:
            memory += f", last seen with {self.private_bytes >> 20} MiB private"
        return (
            f"worker {exit_.pid} of {self.pool} {exit_} {job} "
            f"(lived {self.lived_s:.1f} s, CPU {exit_.user_s:.1f} s + {exit_.system_s:.1f} s, {memory})"
        )

    def as_dict(self) -> dict[str, Any]:
        """Return the same for programs: the extra fields of the log record."""
        return {
            "queue": self.pool,
            "worker_pid": self.exit.pid,
            "exit_kind": self.kind.name.lower(),
            "exit_status": self.exit.status,
            "exit_signal": self.exit.signal,
            "lived_s": round(self.lived_s, 3),
            "job_id": self.activity.job_id if self.activity else None,
            "task": self.activity.label if self.activity else None,
            "running_s": round(self.activity.running_s, 3) if self.activity else None,
            "user_s": self.exit.user_s,
            "system_s": self.exit.system_s,
            "max_rss_bytes": self.exit.max_rss_bytes,
            "private_bytes": self.private_bytes,
        }


def _kind_of(child: Child, exit_: Exit, activity: Activity | None) -> ExitKind:
    if child.gave_back(exit_.signal):
        return ExitKind.PLANNED
    if activity:
        return ExitKind.DIED_BUSY
    if exit_.status == ExitCode.OK or child.has_left:
        return ExitKind.PLANNED
    return ExitKind.DIED_IDLE if child.was_ready and exit_.signal is not None else ExitKind.CANNOT_WORK
