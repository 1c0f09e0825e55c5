"""Settles the jobs of dead children, each in a short-lived process of its own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from flask_backend.deaths import Activity, Death, Exit
from flask_backend.system.exits import ExitCode
from flask_backend.system.loggers import get_logger
from flask_backend.system.titles import show_worker

from .crashes import CrashCounts
from .links import Links
from .process import AcceptSignals, Processes

logger = get_logger("flask_backend.supervisor")

# How long settling a job may take. After that the process is killed, and the job goes back as it was.
DEADLINE_S = 15.0
# `settle` returns the first for a job that will come back, the second for one that will not by itself, 0 for neither.
SETTLED = 10
SETTLED_FOR_GOOD = 11

# Its arguments: the socket that the dead child lent, the record of its death, and the number of deaths by this job.
Settle = Callable[[int, Death, int], int]


@dataclass(frozen=True, slots=True)
class _Settler:
    """A process that settles one job."""

    pool: str
    job_id: int
    deadline: float


class Settling:
    """The processes that settle jobs, and the number of crashes by each job."""

    def __init__(self, settle: Settle, links: Links, processes: Processes, clock: Callable[[], float]) -> None:
        self.settled: Counter[str] = Counter()  # jobs of each pool
        self._settle = settle
        self._links = links
        self._processes = processes
        self._clock = clock
        self._crashes = CrashCounts()
        self._settlers: dict[int, _Settler] = {}

    def __len__(self) -> int:
        return len(self._settlers)

    def __contains__(self, pid: object) -> bool:
        return pid in self._settlers

    def start(self, death: Death, activity: Activity) -> None:
        """Settle the job of a dead child before another worker can reserve it."""
        dead = death.exit.pid
        fd = self._links.loans.get(dead)
        if fd is None:
            logger.debug("job %d goes back as it was: its worker has lent no socket", activity.job_id)
            return
        now = self._clock()
        crashes = self._crashes.note(death.pool, activity.job_id, now)

        def settle(accept_signals: AcceptSignals) -> int:
            accept_signals()
            show_worker(death.pool, f"settles job {activity.job_id}")
            return self._settle(fd, death, crashes)

        try:
            pid = self._processes.spawn(f"a worker of {death.pool}", settle, self._links, keep_loan_of=dead)
        except OSError as error:
            logger.warning("job %d goes back as it was: cannot fork a process to settle it: %s", activity.job_id, error)
            return
        self._settlers[pid] = _Settler(death.pool, activity.job_id, now + DEADLINE_S)

    def end(self, exit_: Exit) -> None:
        """Forget a dead settler."""
        settler = self._settlers.pop(exit_.pid)
        if exit_.status == SETTLED_FOR_GOOD:
            self._crashes.forget(settler.pool, settler.job_id)
        if exit_.status in (SETTLED, SETTLED_FOR_GOOD):
            self.settled[settler.pool] += 1
        elif exit_.status != ExitCode.OK:
            logger.warning("job %d was not settled: its process %s", settler.job_id, exit_)

    def kill_overdue(self, now: float) -> None:
        for pid, settler in self._settlers.items():
            if now >= settler.deadline:
                self._processes.kill(pid)
