"""What one image of the supervisor hands over to the next in a reload.

The records of its children cross in an unnamed file. Descriptors that must stay open are inherited: the old children's
lifeline, the sockets they have lent, and the status pages.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from typing import Any

from .crashes import CrashRecord
from .events import Event, EventName
from .helpers import HeldJob
from .history import History
from .notify import ServiceManager
from .plan import Bounds, PlannedSize
from .pools import PoolPast
from .scoreboard import Totals, nameless_file
from .service import OldService

HANDOVER_ENV = "FLASK_BACKEND_HANDOVER"
# Increase it when Handover changes: an image with another number cannot take over, and fails the check.
FORMAT = "8"


class HandoverError(Exception):
    """The running version of the package cannot hand over to this one."""


@dataclass(frozen=True, slots=True)
class OldChild:
    """The state of one child that is handed over."""

    pool: str
    pid: int
    started: float  # on the monotonic clock, which goes on
    is_draining: bool
    loan: int | None
    row_fd: int
    row_offset: int
    row_labels: list[str]


@dataclass(frozen=True, slots=True)
class OldHelper:
    """A helper that is handed over, to be killed at its deadline."""

    pid: int
    deadline: float  # on the system's monotonic clock
    settles: HeldJob | None


@dataclass(frozen=True, slots=True)
class Handover:
    """The state that one image of the supervisor hands over to the next.

    ``generation`` counts the reloads, the coming one included. ``events`` are still to be sent. ``lifelines`` are the
    write ends, which are never used. ``soft_limit`` is the children's limit of descriptors. ``had_terminal`` refers to
    the start of the first image. ``pages`` are the descriptors and the paths of the status pages. ``sizes``
    are those of the pools, and ``pools`` and ``crashes`` the records that decide about restarts, and about jobs that
    crash their workers.
    """

    generation: int
    children: list[OldChild]
    helpers: list[OldHelper]
    events: list[Event]
    lifelines: list[int]
    manager: ServiceManager
    soft_limit: int
    had_terminal: bool
    totals_of_exited: dict[str, Totals]
    pages: list[tuple[int, str | None]]
    history: History
    sizes: dict[str, PlannedSize]
    pools: dict[str, PoolPast]
    crashes: list[CrashRecord]
    service: OldService | None
    scheduler: OldService | None

    def write(self) -> int:
        """Write it to an unnamed file and return its descriptor; raise :exc:`OSError` if the system refuses."""
        fd = nameless_file()
        try:
            os.write(fd, json.dumps(asdict(self)).encode())
        except OSError:
            os.close(fd)
            raise
        return fd

    def descriptors(self) -> set[int]:
        loans = {child.loan for child in self.children if child.loan is not None}
        service = [self.service.fd] if self.service and self.service.fd is not None else []
        return {*self.lifelines, *loans, *(fd for fd, _ in self.pages), *service}

    @classmethod
    def take(cls) -> Handover | None:
        """Return the state from the previous image if this process was reloaded. Signals are blocked until then."""
        number = os.environ.pop(HANDOVER_ENV, None)
        if number is None:
            return None
        with os.fdopen(int(number), "rb") as file:
            file.seek(0)
            left: dict[str, Any] = json.load(file)
        handover = cls(
            generation=left["generation"],
            children=[OldChild(**child) for child in left["children"]],
            helpers=[_read_helper(helper) for helper in left["helpers"]],
            events=[Event(EventName(event["name"]), event["description"], event["facts"]) for event in left["events"]],
            lifelines=left["lifelines"],
            manager=ServiceManager(**left["manager"]),
            soft_limit=left["soft_limit"],
            had_terminal=left["had_terminal"],
            totals_of_exited=left["totals_of_exited"],
            pages=[(fd, path) for fd, path in left["pages"]],
            history=History.read(left["history"]),
            sizes={name: _read_size(size) for name, size in left["sizes"].items()},
            service=OldService(**left["service"]) if left["service"] else None,
            scheduler=OldService(**left["scheduler"]) if left["scheduler"] else None,
            pools={name: PoolPast(**past) for name, past in left["pools"].items()},
            crashes=[CrashRecord(**record) for record in left["crashes"]],
        )
        for fd in handover.descriptors():
            os.set_inheritable(fd, False)
        return handover


def _read_size(left: dict[str, Any]) -> PlannedSize:
    return PlannedSize(Bounds(**left["configured"]), left["moved_by"], left["size"])


def _read_helper(left: dict[str, Any]) -> OldHelper:
    job = left["settles"]
    return OldHelper(left["pid"], left["deadline"], HeldJob(**job) if job else None)
