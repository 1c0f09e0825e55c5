"""Reload in place: new code needs a new interpreter, but the process and its children live on.

First a separate process checks the new code. Only if the check passes, the supervisor executes itself again: it keeps
its pid and its children, and hands over its records of them.
"""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from typing import Protocol

from flask_backend.deaths import Exit
from flask_backend.system.exits import ExitCode
from flask_backend.system.launch import executed_file, launched
from flask_backend.system.loggers import get_logger
from flask_backend.system.streams import streams

from . import wording
from .descriptors import TooFewDescriptorsError
from .handover import FORMAT, HANDOVER_ENV, Handover, HandoverError
from .helpers import Helper, Helpers
from .history import OUTPUT_BYTES, History
from .image import Image
from .inbox import Inbox
from .links import Links
from .options import SupervisorOptions
from .process import block_signals, hear_of_parents_death, unblock_signals

logger = get_logger("flask_backend.supervisor")

CHECK_ENV = "FLASK_BACKEND_CHECK"
# More than a pipe holds, so that one read empties it.
PIPE_BYTES = 1 << 20


class WhenChecked(Protocol):
    def __call__(self, *, has_passed: bool) -> None: ...


class Reload:
    """The transition to the next image of this process."""

    def __init__(
        self,
        links: Links,
        helpers: Helpers,
        history: History,
        options: SupervisorOptions,
        when_checked: WhenChecked,
    ) -> None:
        """``when_checked`` is called after each check of new code."""
        self.failure = ""  # why the last reload failed
        self._links = links
        self._helpers = helpers
        self._history = history
        self._options = options
        self._when_checked = when_checked
        self._launch = launched()
        self._command = self._launch.command(executed_file())
        self._checker: Helper | None = None
        self._output: CheckOutput | None = None
        self._refusal = -1  # if the system refused the checker, the reason can be read here
        self._is_asked_again = False  # during a check

    def start_check(self) -> None:
        """Start this process's command again, only to check whether the new code works."""
        if self._checker:
            logger.info(wording.CHECK_REPEATED)
            self._is_asked_again = True
            return
        logger.info(wording.CHECKING)
        self._history.note_check()
        try:
            self._output = CheckOutput(self._links.inbox)
            self._checker, self._refusal = self._helpers.start_program(
                self._image({CHECK_ENV: FORMAT}),
                self._end_check,
                within_s=self._options.boot_timeout_s,
                stderr=self._output.write_end,
            )
        except OSError as error:
            self._close_output()
            self._fail(str(error))
        else:
            self._output.close_write_end()

    def call_off(self) -> None:
        """Kill a running check, if any: its result is stale."""
        if self._checker:
            self._helpers.dismiss(self._checker)
            self._checker = None
            self._close_output()
            os.close(self._refusal)

    def _end_check(self, exit_: Exit) -> None:
        self._checker = None
        self._close_output()
        with os.fdopen(self._refusal, "rb") as file:
            refusal = (file.read() or b"").decode()
        has_passed = exit_.status == ExitCode.OK and not self._is_asked_again
        if self._is_asked_again:
            self._is_asked_again = False
            self.start_check()
        elif not has_passed:
            self._fail(refusal or wording.check_failed(exit_))
        self._when_checked(has_passed=has_passed)

    def _close_output(self) -> None:
        if self._output:
            self._history.output = self._output.close()
            self._output = None

    def execute(self, handover: Handover, new_children: int) -> None:
        """Continue as a new image, which will start so many children. Return only if the system refuses."""
        try:
            self._links.descriptors.check_reload(new_children, len(handover.descriptors()))
        except TooFewDescriptorsError as error:
            self._fail(str(error))
            return
        # The check has imported the app within the boot timeout; this import competes with the workers for the CPUs.
        self._links.notifier.report_reload(within_s=2 * self._options.boot_timeout_s)
        try:
            self._execute_again(handover)
        except OSError as error:
            self._fail(str(error))
            self._links.notifier.report_ready()

    def _image(self, variables: dict[str, str]) -> Image:
        return Image(self._command, {**self._launch.environment, **variables}, self._launch.folder)

    def _execute_again(self, handover: Handover) -> None:
        """Replace this image by a new one of the same command; raise :exc:`OSError` if refused.

        Signals stay blocked, and pending ones stay pending, until the new image has handlers.
        """
        crossing = {fd := handover.write(), *handover.descriptors()}
        block_signals()
        self._links.inbox.send_again()
        try:
            for each in crossing:
                os.set_inheritable(each, True)
            self._image({HANDOVER_ENV: str(fd)}).execute()
        finally:  # only if the exec failed
            for each in crossing:
                os.set_inheritable(each, False)
            os.close(fd)
            unblock_signals()

    def _fail(self, reason: str) -> None:
        logger.critical(wording.RELOAD_FAILED, reason)
        self._history.note_failed_reload(wording.RELOAD_FAILED % reason)
        self.failure = reason


class CheckOutput:
    """What a check writes to stderr: it is repeated on ours, and its end is kept for the status page."""

    def __init__(self, inbox: Inbox) -> None:
        self._inbox = inbox
        self._last = b""
        self._read_end, self.write_end = os.pipe()
        os.set_blocking(self._read_end, False)
        inbox.register(self._read_end, self._read)
        self._is_registered = True

    def close_write_end(self) -> None:
        os.close(self.write_end)
        self.write_end = -1

    def close(self) -> str:
        """Read what is left, and return the end of the output. A process that the check left running loses the rest."""
        if self.write_end >= 0:
            self.close_write_end()
        if self._is_registered:
            self._read()
        self._unregister()
        os.close(self._read_end)
        return self._last.decode(errors="replace")

    def _read(self) -> None:
        with suppress(BlockingIOError):
            data = os.read(self._read_end, PIPE_BYTES)
            if not data:
                self._unregister()
            else:
                streams.stderr.write(data)
                self._last = (self._last + data)[-OUTPUT_BYTES:]

    def _unregister(self) -> None:
        if self._is_registered:
            self._inbox.unregister(self._read_end)
            self._is_registered = False


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
