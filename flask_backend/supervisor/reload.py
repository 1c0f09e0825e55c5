"""Reload in place: new code needs a new interpreter, but the process and its children live on.

First a separate process checks the new code. Only if the check passes, the supervisor executes itself again: it keeps
its pid and its children, and passes its records of them in an unnamed file. Descriptors that must stay open are
inherited: the old children's lifeline, the sockets they have lent, and the scoreboard.
"""

from __future__ import annotations

import json
import os
import signal
import time
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from flask_backend.deaths import Exit
from flask_backend.system.exits import ExitCode
from flask_backend.system.launch import executed_file, launched
from flask_backend.system.loggers import get_logger

from .children import Child
from .descriptors import TooFewDescriptorsError
from .helpers import Helper, Helpers
from .image import Image
from .links import Links
from .options import SupervisorOptions
from .plan import Slot
from .process import block_signals, hear_of_parents_death, unblock_signals
from .scoreboard import LabelStats, Place, Row, Totals, map_words, nameless_file
from .states import ChildState
from .workers import Workers

logger = get_logger("flask_backend.supervisor")

HANDOVER_ENV = "FLASK_BACKEND_HANDOVER"
CHECK_ENV = "FLASK_BACKEND_CHECK"
# Increase it when Handover changes: an image with another number cannot take over, and fails the check.
FORMAT = "3"


class HandoverError(Exception):
    """The running version of the package cannot hand over to this one."""


@dataclass(frozen=True, slots=True)
class OldChild:
    """The state of one child that is handed over."""

    pool: str
    pid: int
    is_draining: bool
    loan: int | None
    row_fd: int
    row_offset: int
    row_labels: list[str]


@dataclass(frozen=True, slots=True)
class Handover:
    """The state that one image of the supervisor hands over to the next.

    ``lifelines`` are the write ends, which are never used; ``soft_limit`` is the children's limit of descriptors;
    ``had_terminal`` refers to the start of the first image.
    """

    children: list[OldChild]
    lifelines: list[int]
    notify_address: str
    soft_limit: int
    had_terminal: bool
    totals_of_exited: dict[str, Totals]

    def descriptors(self) -> set[int]:
        loans = {child.loan for child in self.children if child.loan is not None}
        return {*self.lifelines, *loans, *(child.row_fd for child in self.children)}

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
            children=[OldChild(**child) for child in left["children"]],
            lifelines=left["lifelines"],
            notify_address=left["notify_address"],
            soft_limit=left["soft_limit"],
            had_terminal=left["had_terminal"],
            totals_of_exited={
                pool: {
                    label: LabelStats(stats["done"], stats["failed"], tuple(stats["buckets"]))
                    for label, stats in totals.items()
                }
                for pool, totals in left["totals_of_exited"].items()
            },
        )
        for fd in handover.descriptors():
            os.set_inheritable(fd, False)
        return handover


class WhenChecked(Protocol):
    def __call__(self, *, has_passed: bool) -> None: ...


class Reload:
    """The transition to the next image of this process, and the remains of the previous one."""

    def __init__(
        self, workers: Workers, links: Links, helpers: Helpers, options: SupervisorOptions, when_checked: WhenChecked
    ) -> None:
        """``when_checked`` is called after each check of new code."""
        self.failure = ""  # why the last reload failed
        self._children = workers.children
        self._scoreboard = workers.scoreboard
        self._links = links
        self._helpers = helpers
        self._options = options
        self._when_checked = when_checked
        self._launch = launched()
        self._command = self._launch.command(executed_file())
        self._checker: Helper | None = None
        self._refusal = -1  # if the system refused the checker, the reason can be read here
        self._is_asked_again = False  # during a check

    def start_check(self) -> None:
        """Start this process's command again, only to check whether the new code works."""
        if self._checker:
            logger.info("HUP: a check of the app is running; it will be repeated, as the app may have changed")
            self._is_asked_again = True
            return
        logger.info("HUP: checking the app")
        try:
            self._checker, self._refusal = self._helpers.start_program(
                self._image({CHECK_ENV: FORMAT}), self._end_check, within_s=self._options.boot_timeout_s
            )
        except OSError as error:
            self._fail(str(error))

    def call_off(self) -> None:
        """Kill a running check, if any: its result is stale."""
        if self._checker:
            self._helpers.dismiss(self._checker)
            self._checker = None
            os.close(self._refusal)

    def _end_check(self, exit_: Exit) -> None:
        self._checker = None
        with os.fdopen(self._refusal, "rb") as file:
            refusal = (file.read() or b"").decode()
        has_passed = exit_.status == ExitCode.OK and not self._is_asked_again
        if self._is_asked_again:
            self._is_asked_again = False
            self.start_check()
        elif not has_passed:
            self._fail(refusal or f"the check of the new app {exit_}")
        self._when_checked(has_passed=has_passed)

    def execute(self) -> None:
        """Continue as a new image, with the handover. Return only if the system refuses."""
        self._links.loans.receive()
        handover = self._handover()
        try:
            self._links.descriptors.check_reload(self._children.count_new(), len(handover.descriptors()))
        except TooFewDescriptorsError as error:
            self._fail(str(error))
            return
        self._links.notifier.send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")
        try:
            self._execute_again(handover)
        except OSError as error:
            self._fail(str(error))
            self._links.notifier.send("READY=1")

    def _image(self, variables: dict[str, str]) -> Image:
        return Image(self._command, {**self._launch.environment, **variables}, self._launch.folder)

    def _execute_again(self, handover: Handover) -> None:
        """Replace this image by a new one of the same command; raise :exc:`OSError` if refused.

        Signals stay blocked, and pending ones stay pending, until the new image has handlers.
        """
        fd = nameless_file()
        crossing = {fd, *handover.descriptors()}
        block_signals()
        self._links.inbox.send_again()
        try:
            os.write(fd, json.dumps(asdict(handover)).encode())
            for each in crossing:
                os.set_inheritable(each, True)
            self._image({HANDOVER_ENV: str(fd)}).execute()
        finally:  # only if the exec failed
            for each in crossing:
                os.set_inheritable(each, False)
            os.close(fd)
            unblock_signals()

    def _fail(self, reason: str) -> None:
        logger.critical("reload failed: %s; the old app goes on", reason)
        self.failure = reason

    def _handover(self) -> Handover:
        children = [
            OldChild(
                pool=child.slot.pool,
                pid=child.pid,
                is_draining=child.was_told_to_end,
                loan=self._links.loans.get(child.pid),
                row_fd=child.row.place.fd,
                row_offset=child.row.place.offset,
                row_labels=list(child.row.place.labels),
            )
            for child in self._children
        ]
        totals_of_exited = self._scoreboard.totals_of_exited(alive=[child.row for child in self._children])
        return Handover(
            children=children,
            lifelines=self._links.lifeline.write_ends,
            notify_address=self._links.notifier.path,
            soft_limit=self._links.descriptors.soft,
            had_terminal=self._options.terminal.was_there,
            totals_of_exited=totals_of_exited,
        )

    def adopt(self, handover: Handover) -> None:
        """Adopt the children of the previous image."""
        self._links.lifeline.keep(handover.lifelines)
        self._scoreboard.restore(handover.totals_of_exited)
        memories = {fd: map_words(fd) for fd in {old.row_fd for old in handover.children}}
        for old in handover.children:
            row = Row.find(Place(old.row_fd, old.row_offset, old.row_labels), memories[old.row_fd])
            state = ChildState.DRAINING if old.is_draining else ChildState.READY
            slot = Slot(old.pool, 0)  # any: old children are outside the plan
            now = self._options.clock()
            child = Child(slot, old.pid, row, now, state, was_ready=True, is_old=True, drained_at=now, signalled_at=now)
            self._children.add(child)
            self._scoreboard.adopt(old.pid, old.pool, row)
            if old.loan is not None:
                self._links.loans.keep(old.pid, old.loan)
        if not self._children.has_old():
            self._links.lifeline.let_go_of_old_ones()


def is_check() -> bool:
    """Whether this process only checks the new code.

    It removes the marker, so that programs started by the app do not inherit it. Raise :exc:`HandoverError` if this
    version cannot take over from the process that started the check.
    """
    theirs = os.environ.pop(CHECK_ENV, None)
    if theirs is None:
        return False
    if theirs != FORMAT:
        raise HandoverError("this version of Flask-Backend cannot take over from the one that runs: restart it instead")
    hear_of_parents_death(signal.SIGKILL)  # otherwise a check that hangs would outlive its parent
    return True
