"""Reload in place: new code needs a new interpreter, but the process, and its children, stay what they are.

First the new code is tried in a process of its own. Only if that goes well, the supervisor executes itself again: it
keeps its pid, its children stay its children, and what it knows of them crosses in a file that has no name. What must
stay open crosses as inherited descriptors: the old children's lifeline, what they have lent, and the scoreboard.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from dataclasses import asdict, dataclass
from typing import Any

from . import process
from .scoreboard import LabelStats, Totals, nameless_file

VARIABLE = "FLASK_BACKEND_HANDOVER"
CHECK_VARIABLE = "FLASK_BACKEND_CHECK"
# To be raised when a Handover changes: an image with another number cannot take over, which the check finds out.
FORMAT = "1"


class HandoverError(Exception):
    """Two versions of this package cannot follow each other in one process."""


@dataclass(frozen=True, slots=True)
class OldChild:
    """What crosses of one child."""

    pool: str
    pid: int
    is_draining: bool
    loan: int | None
    row_fd: int
    row_offset: int
    row_labels: list[str]


@dataclass(frozen=True, slots=True)
class Handover:
    """What one image of the supervisor leaves to the next. ``lifeline`` is the end that is never written to."""

    children: list[OldChild]
    lifelines: list[int]
    notify_address: str
    past: dict[str, Totals]

    def descriptors(self) -> set[int]:
        loans = {child.loan for child in self.children if child.loan is not None}
        return {*self.lifelines, *loans, *(child.row_fd for child in self.children)}

    @classmethod
    def take(cls) -> Handover | None:
        """Return what the image before has left, if this process has been reloaded. Signals are blocked until then."""
        number = os.environ.pop(VARIABLE, None)
        if number is None:
            return None
        with os.fdopen(int(number), "rb") as file:
            file.seek(0)
            left: dict[str, Any] = json.load(file)
        handover = cls(
            children=[OldChild(**child) for child in left["children"]],
            lifelines=left["lifelines"],
            notify_address=left["notify_address"],
            past={
                pool: {
                    label: LabelStats(stats["done"], stats["failed"], tuple(stats["buckets"]))
                    for label, stats in totals.items()
                }
                for pool, totals in left["past"].items()
            },
        )
        for fd in handover.descriptors():
            os.set_inheritable(fd, False)
        return handover


def execute_again(handover: Handover) -> None:
    """Replace this image by a new one of the same command; return only if the system refuses, with an :exc:`OSError`.

    Signals stay blocked across it, and pending ones with it, until the new image has handlers.
    """
    fd = nameless_file()
    os.set_inheritable(fd, True)
    os.write(fd, json.dumps(asdict(handover)).encode())
    process.block_signals()
    try:
        for inherited in handover.descriptors():
            os.set_inheritable(inherited, True)
        # Our own command line, by the interpreter that we are.
        os.execve(sys.executable, _command(), os.environ | {VARIABLE: str(fd)})  # noqa: S606  # no shell is wanted
    finally:  # it did not come to that
        os.close(fd)
        for inherited in handover.descriptors():
            os.set_inheritable(inherited, False)
        process.unblock_signals()


def start_check() -> int:
    """Start this process's command anew, to try only whether it could work; return the pid."""
    return process.start_program(_command(), os.environ | {CHECK_VARIABLE: FORMAT})


def is_check() -> bool:
    """Say whether this process is to try the app, and no more. It is asked once: what the app starts is not.

    Raises :exc:`HandoverError` if the process that wants to know is one that this version cannot take over from.
    """
    theirs = os.environ.pop(CHECK_VARIABLE, None)
    if theirs is None:
        return False
    if theirs != FORMAT:
        raise HandoverError("this version of Flask-Backend cannot take over from the one that runs: restart it instead")
    process.hear_of_parents_death(signal.SIGKILL)  # nobody else would end it, should it hang
    return True


def _command() -> list[str]:
    return [sys.executable, *sys.orig_argv[1:]]
