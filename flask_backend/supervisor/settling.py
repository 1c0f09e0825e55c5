"""Settles the jobs of dead children, each in a helper of its own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from flask_backend.deaths import Activity, Death, Exit
from flask_backend.system.exits import ExitCode
from flask_backend.system.loggers import get_logger
from flask_backend.system.titles import show_worker

from . import wording
from .crashes import CrashCounts
from .helpers import HeldJob, Helpers
from .loans import Loans
from .process import AcceptSignals

logger = get_logger("flask_backend.supervisor")

# How long settling a job may take. After that the process is killed, and the job goes back as it was.
DEADLINE_S = 15.0
# `settle` returns the first for a job that will come back, the second for one that will not by itself, 0 for neither.
SETTLED = 10
SETTLED_FOR_GOOD = 11

# Its arguments: the socket that the dead child lent, the record of its death, and the number of deaths by this job.
Settle = Callable[[int, Death, int], int]


class Settling:
    """Settles jobs, and counts those settled and the crashes by each job."""

    def __init__(
        self,
        settle: Settle,
        loans: Loans,
        helpers: Helpers,
        count_burial: Callable[[str, str], None],
        clock: Callable[[], float],
    ) -> None:
        """``count_burial`` takes the pool and the label of a job that was settled for good."""
        self.settled: Counter[str] = Counter()  # jobs of each pool
        self._settle = settle
        self._loans = loans
        self._helpers = helpers
        self._count_burial = count_burial
        self._clock = clock
        self.crashes = CrashCounts()

    def start(self, death: Death, activity: Activity) -> None:
        """Settle the job of a dead child before another worker can reserve it."""
        pool, job_id, dead = death.pool, activity.job_id, death.exit.pid
        fd = self._loans.get(dead)
        if fd is None:
            logger.debug(wording.NO_LOAN, job_id)
            return
        job = HeldJob(pool, job_id, activity.label)
        crashes = self.crashes.note(pool, job_id, self._clock())

        def settle(accept_signals: AcceptSignals) -> int:
            accept_signals()
            show_worker(pool, f"settles job {job_id}")
            return self._settle(fd, death, crashes)

        def end(exit_: Exit) -> None:
            self.end(job, exit_)

        try:
            self._helpers.start(f"a worker of {pool}", settle, end, within_s=DEADLINE_S, keep_loan_of=dead, settles=job)
        except OSError as error:
            logger.warning(wording.CANNOT_FORK_SETTLER, job_id, error)

    def end(self, job: HeldJob, exit_: Exit) -> None:
        """Act on the end of a helper that was to settle a job, perhaps one of an earlier image of this process."""
        if exit_.status == SETTLED_FOR_GOOD:
            self.crashes.forget(job.pool, job.job_id)
            self._count_burial(job.pool, job.label)
        if exit_.status in (SETTLED, SETTLED_FOR_GOOD):
            self.settled[job.pool] += 1
        elif exit_.status != ExitCode.OK:
            logger.warning(wording.NOT_SETTLED, job.job_id, exit_)
