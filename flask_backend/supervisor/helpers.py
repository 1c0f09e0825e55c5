"""The helper children: processes beside the workers, each with one purpose, in one table.

A helper settles the job of a dead worker, checks new code, sends events to the app or serves metrics. Its end is
planned, however it ends: no breaker counts it, and the code that started it decides what follows. A drain waits for all
helpers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from flask_backend.deaths import Exit
from flask_backend.system.loggers import get_logger

from . import wording
from .image import Image
from .links import Links
from .process import Main, Processes

logger = get_logger("flask_backend.supervisor")

OnExit = Callable[[Exit], None]


@dataclass(frozen=True, slots=True)
class HeldJob:
    """The job of a dead child, which stays reserved while a helper settles it."""

    pool: str
    job_id: int
    label: str


@dataclass(slots=True, eq=False)
class Helper:
    """One helper child. ``on_exit`` is called once it has been collected, and may start another one."""

    pid: int
    deadline: float  # when it is killed; infinite for one that lives as long as the supervisor
    on_exit: OnExit
    settles: HeldJob | None = None  # the job that depends on it: a drain does not shorten its time
    is_overdue: bool = False  # it was killed at its deadline


class Helpers:
    """All living helpers."""

    def __init__(self, links: Links, processes: Processes, clock: Callable[[], float]) -> None:
        self._links = links
        self._processes = processes
        self._clock = clock
        self._by_pid: dict[int, Helper] = {}

    def __iter__(self) -> Iterator[Helper]:
        return iter(list(self._by_pid.values()))

    def __len__(self) -> int:
        return len(self._by_pid)

    def __contains__(self, pid: object) -> bool:
        return pid in self._by_pid

    def start(  # noqa: PLR0913  # its life, and what it keeps
        self,
        name: str,
        main: Main,
        on_exit: OnExit,
        *,
        within_s: float = math.inf,
        keep_loan_of: int | None = None,
        settles: HeldJob | None = None,
        keeps_service: bool = False,
    ) -> Helper:
        """Fork a helper that runs ``main``, for at most ``within_s`` seconds; see :meth:`Processes.spawn`.

        ``settles`` is the job that depends on it. With ``keeps_service`` the listening socket stays open in it.

        Raise :exc:`OSError` if the system refuses.
        """
        links = replace(self._links, service=None) if keeps_service else self._links
        pid = self._processes.spawn(name, main, links, keep_loan_of=keep_loan_of)
        helper = self._add(pid, on_exit, within_s)
        helper.settles = settles
        return helper

    def start_program(self, image: Image, on_exit: OnExit, *, within_s: float, stderr: int) -> tuple[Helper, int]:
        """Start a program as a helper; see :meth:`Processes.start_program`, also for the descriptor returned."""
        pid, refusal = self._processes.start_program(image, self._links, stderr)
        return self._add(pid, on_exit, within_s), refusal

    def dismiss(self, helper: Helper) -> None:
        """Kill and forget a helper, without waiting for its end: its result is not needed any more."""
        self._processes.kill(helper.pid)
        del self._by_pid[helper.pid]

    def end(self, exit_: Exit) -> None:
        """Forget a dead helper, and act on its end. The exits of other processes are ignored."""
        if helper := self._by_pid.pop(exit_.pid, None):
            helper.on_exit(exit_)

    def hasten(self, by: float) -> None:
        """Let the helpers end by this time at the latest, apart from those that settle a job."""
        for helper in self._by_pid.values():
            if helper.settles is None:
                helper.deadline = min(helper.deadline, by)

    def kill_overdue(self, now: float) -> None:
        for helper in self._by_pid.values():
            if now >= helper.deadline:
                helper.is_overdue = True
                self._processes.kill(helper.pid)

    def next_at(self) -> float:
        """Return when the next helper must be killed if it has not ended."""
        return min((helper.deadline for helper in self._by_pid.values() if not helper.is_overdue), default=math.inf)

    def adopt(self, pid: int, deadline: float, settles: HeldJob | None = None, on_exit: OnExit | None = None) -> None:
        """Take over a helper of an earlier image of this process."""

        def end(exit_: Exit) -> None:
            if helper.is_overdue:
                logger.warning(wording.HELPER_OVERDUE, pid)
            if on_exit:
                on_exit(exit_)

        helper = self._by_pid[pid] = Helper(pid, deadline, end, settles)

    def _add(self, pid: int, on_exit: OnExit, within_s: float) -> Helper:
        helper = self._by_pid[pid] = Helper(pid, self._clock() + within_s, on_exit)
        return helper
