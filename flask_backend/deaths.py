"""How a process ended, and the facts about a child's death: the supervisor finds them, other modules act on them."""

from __future__ import annotations

import signal
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any


@dataclass(frozen=True, slots=True)
class Exit:
    """How a process ended, with an exit status or by a signal, and its resource usage, see getrusage(2)."""

    pid: int
    status: int | None
    signal: int | None
    user_s: float = 0.0
    system_s: float = 0.0
    max_rss_bytes: int = 0

    def __str__(self) -> str:
        if self.signal is None:
            return f"exited with status {self.status}"
        hint = ", perhaps out of memory" if self.signal == signal.SIGKILL else ""
        return f"was killed by signal {self.signal} ({signal.strsignal(self.signal)}{hint})"


class ExitKind(Enum):
    """The supervisor's classification of a child's exit."""

    PLANNED = auto()  # drained: recycled, or surplus
    CANNOT_WORK = auto()  # died before it was ready, or gave up on its own without a job
    DIED_IDLE = auto()  # killed by the system or an operator
    DIED_BUSY = auto()  # perhaps killed by its job


# The reasons of exits, as the status page counts them.
EXIT_REASONS = (
    "crash",  # died at a job
    "killed",  # died while idle
    "time_limit",
    "memory",
    "tasks",  # has run its maximum number of tasks
    "boot",  # could not start
    "stuck",  # was killed because it sent no heartbeat or did not exit
    "failed",  # gave up
    "reload",
    "scaled",
    "stop",
    "other",
)


@dataclass(frozen=True, slots=True)
class Activity:
    """The job of a child at the time of a request, or of its death."""

    job_id: int
    label: str
    running_s: float


@dataclass(frozen=True, slots=True)
class Death:
    """How a child ended, and its job at that time."""

    pool: str
    kind: ExitKind
    exit: Exit
    lived_s: float
    was_ready: bool
    has_left: bool
    activity: Activity | None
    private_bytes: int | None

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
        """Return the same facts for programs: the extra fields of the log record."""
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
