"""Our loggers: the app's configuration does not disable them, and its handlers cannot stop the process that logs.

By default, ``dictConfig`` and ``fileConfig`` disable each logger that they do not name. Ours stay enabled then, and
after ``logging.disable``. A configuration that names one of them controls it.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from types import FrameType
from weakref import WeakKeyDictionary

from flask_backend.tracebacks import message_of, name_of
from flask_backend.visible import visible

# How long a handler may take for a record in a process that must not block. One that takes longer gets no records for
# a while.
LIMIT_S = 2.0
MUTE_S = 60.0
_AGAIN_S = 0.5  # for a handler that catches the interrupt and continues
_MAX_REASON = 200  # characters


def get_logger(name: str) -> logging.Logger:
    """Return one of our loggers, even if the app has already made a logger with this name."""
    logger = logging.getLogger(name)
    logger.__class__ = _Logger
    return logger


class _Logger(logging.Logger):
    _is_disabled_by_name = False

    @property
    def disabled(self) -> bool:
        return self._is_disabled_by_name

    @disabled.setter
    def disabled(self, value: bool) -> None:  # pyright: ignore[reportIncompatibleVariableOverride]
        # A configuration enables the loggers that it names, and disables the others.
        if not value or sys._getframe(1).f_globals.get("__name__") != "logging.config":  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
            self._is_disabled_by_name = value

    def isEnabledFor(self, level: int) -> bool:  # noqa: N802  # logging's name
        return not self._is_disabled_by_name and level >= self.getEffectiveLevel()

    def callHandlers(self, record: logging.LogRecord) -> None:  # noqa: N802  # likewise
        delivery.deliver(record, self)


@dataclass(slots=True)
class _Trouble:
    """A handler that has failed since it last worked."""

    missed: int = 0  # records
    mute_until: float = 0.0
    report_at: float = 0.0


class _TimeUpError(BaseException):
    """A handler takes too long."""


class Delivery:
    """Passes records to the app's handlers, which may raise or never return.

    ``fallback`` gets the records that no handler has accepted.
    """

    def __init__(self) -> None:
        self.fallback: logging.Handler | None = None
        self._caught: type[BaseException] = Exception
        self._limited: tuple[int, int] | None = None
        self._troubles = WeakKeyDictionary[logging.Handler, _Trouble]()

    def protect(self) -> None:
        """Catch every exception of a handler in this process and its children, even SystemExit."""
        self._caught = BaseException

    def limit(self) -> None:
        """Interrupt handlers that take too long in this thread of this process, which must be the main thread."""
        self._limited = os.getpid(), threading.get_ident()

    def deliver(self, record: logging.LogRecord, logger: logging.Logger) -> None:
        """Pass a record to each handler that accepts its level."""
        handlers = list(_each_handler(logger))
        wanting = [handler for handler in handlers if record.levelno >= handler.level]
        taken = [self._hand_over(record, handler) for handler in wanting]
        if (wanting or not handlers) and not any(taken):
            last = self.fallback or logging.lastResort
            if last and last not in wanting and record.levelno >= last.level:
                self._hand_over(record, last)

    def _hand_over(self, record: logging.LogRecord, handler: logging.Handler) -> bool:
        trouble = self._troubles.get(handler)
        if trouble and time.monotonic() < trouble.mute_until:
            trouble.missed += 1
            return False
        try:
            if self._limited == (os.getpid(), threading.get_ident()):
                _handle_in_time(record, handler)
            else:
                handler.handle(record)
        except self._caught as error:
            self._note(handler, error)
            return False
        if trouble:
            del self._troubles[handler]
            self._report("the log handler %s works again; it missed %d records", handler, trouble.missed)
        return True

    def _note(self, handler: logging.Handler, error: BaseException) -> None:
        trouble = self._troubles.setdefault(handler, _Trouble())
        trouble.missed += 1
        now = time.monotonic()
        if isinstance(error, _TimeUpError):
            trouble.mute_until = now + MUTE_S
        if now >= trouble.report_at:
            trouble.report_at = now + MUTE_S
            self._report("the log handler %s has failed: %s", handler, _reason(error))

    def _report(self, message: str, handler: logging.Handler, fact: object) -> None:
        # Not through the logger: logging drops messages that are logged while it handles a record.
        name = type(handler).__name__
        record = _own_logger.makeRecord(_own_logger.name, logging.ERROR, __file__, 0, message, (name, fact), None)
        self.deliver(record, _own_logger)


def _each_handler(logger: logging.Logger | None) -> Iterator[logging.Handler]:
    """Yield the handlers for the records of a logger, as logging finds them."""
    while logger:
        yield from logger.handlers
        logger = logger.parent if logger.propagate else None


def _handle_in_time(record: logging.LogRecord, handler: logging.Handler) -> None:
    is_over = False

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        if not is_over:
            raise _TimeUpError

    previous = signal.signal(signal.SIGALRM, interrupt)
    mask = signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGALRM])
    timer = signal.setitimer(signal.ITIMER_REAL, LIMIT_S, _AGAIN_S)
    try:
        try:
            handler.handle(record)
        finally:
            is_over = True
    finally:  # the interrupt may have come between the two
        is_over = True
        signal.setitimer(signal.ITIMER_REAL, *timer)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        signal.signal(signal.SIGALRM, signal.SIG_DFL if previous is None else previous)


def _reason(error: BaseException) -> str:
    if isinstance(error, _TimeUpError):
        return f"it took longer than {LIMIT_S:g} s; it gets no record for {MUTE_S:g} s"
    return f"{name_of(error)}: {visible(message_of(error), _MAX_REASON)}"


delivery = Delivery()
_own_logger = get_logger("flask_backend.loggers")
