"""TERM and INT while a command loads the app, before it has its own handlers of signals."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType

from flask_backend.system.exits import ExitCode
from flask_backend.system.loggers import get_logger
from flask_backend.worker.signal_guard import name_handlers

from .apps import StopWhileLoading

logger = get_logger("flask_backend.supervisor")


class StopSignalsWhileLoading:
    """Exit with 0 on TERM and INT while the app is loaded; without handlers, process 1 would ignore them.

    After a reload there are workers to drain: then the signals wait until the app is loaded.
    """

    def __init__(self, *, may_exit: bool = True) -> None:
        self._came = False
        self._may_exit = may_exit
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [number])  # a reload leaves all signals blocked

    def exit_if_one_came(self) -> None:
        """Exit if a signal came but the app, or a module it imports, swallowed the exit raised for it."""
        if self._came and self._may_exit:
            sys.exit(ExitCode.OK)

    def warn_of_others(self) -> None:
        """Warn of signal handlers that the import of the app has set: they will not be called."""
        if others := name_handlers(ours=self._stop):
            logger.warning(
                "importing the app has set signal handlers: %s. They are not called: Flask-Backend uses these signals "
                "itself; to run code at the end of a worker, use atexit",
                others,
            )

    def pass_on(self) -> None:
        """Pass a signal that came after a reload to the handlers that are set next."""
        signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGINT))
        if self._came:
            os.kill(os.getpid(), signal.SIGTERM)

    def _stop(self, _number: int, _frame: FrameType | None) -> None:
        self._came = True
        if self._may_exit:
            raise StopWhileLoading(ExitCode.OK)
