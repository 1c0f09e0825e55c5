"""What tracers and error trackers watch, in all backends of a process: sends of messages, and attempts at jobs.

Integrations add themselves to ``tracers``. They are outside of the app's middleware,
outside of the app context and of the time limit of the task. Their exceptions are logged, and have no other effect.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Protocol, TypeVar

from .config import Address, StandIn
from .current import CurrentJob
from .errors import TaskTimeout
from .system.loggers import get_logger
from .tracebacks import log_failure

logger = get_logger("flask_backend.tracing")

# How long tracers may take to send what they have when a process ends: an ingest that is away must not hold a drain.
FLUSH_S = 5.0
_SOON_S = 0.1  # for a tracer after one that has used up the time


@dataclass(slots=True)
class Sending:
    """Messages that are being put on ``queue``, in one operation.

    ``endpoint`` is that of their task, and None for messages to another system. ``uid`` is the id of a single call.
    What a tracer writes to ``headers`` is sent with each call; other systems get no headers. Known at the end:
    ``sent``, the number of messages that the broker has accepted, and ``size``, the bytes of a single one.
    """

    queue: str
    endpoint: str | None
    uid: str | None
    broker: Address | StandIn
    is_batch: bool = False
    headers: dict[str, Any] = field(default_factory=dict[str, Any])
    sent: int = 0
    size: int | None = None


@dataclass(slots=True)
class Processing:
    """An attempt at a job: its run, its settlement, and the signals about both.

    ``size`` is in bytes; it and the arguments are None where they are not known, as after a crash. ``ran_s`` is set if
    the run is over already, since it has crashed its worker. A tracer sets ``needs_attempt`` if the attempt must be
    known at the end: ``job.known_attempts``.
    """

    job: CurrentJob
    broker: Address | StandIn
    size: int | None = None
    args: Sequence[Any] | None = None
    kwargs: Mapping[str, Any] | None = None
    ran_s: float | None = None
    needs_attempt: bool = False


class Tracer(Protocol):
    def sending(self, sending: Sending, /) -> AbstractContextManager[object]:
        """Return a context manager for the operation. It gets the exception that the caller gets."""
        ...

    def processing(self, processing: Processing, /) -> AbstractContextManager[object]:
        """Return a context manager for the attempt. It may get a :exc:`BrokerError` though the task has succeeded.

        The failures of tasks are known by the signals, which are sent within it.
        """
        ...

    def flush(self, within_s: float, /) -> None:
        """Send what is left, within this time: the process is about to end."""
        ...


tracers: list[Tracer] = []

Watched = TypeVar("Watched", Sending, Processing)


@contextmanager
def watched(what: Watched) -> Generator[Watched]:
    """Let the tracers watch the operation in the block."""
    with ExitStack() as stack:
        for tracer in tracers:
            stack.enter_context(_Guarded(tracer, what))
        yield what


def flush(within_s: float = FLUSH_S) -> None:
    """Let the tracers send what they have, within ``within_s`` seconds in all, because this process ends."""
    deadline = time.monotonic() + within_s
    for tracer in tracers:
        try:
            tracer.flush(max(_SOON_S, deadline - time.monotonic()))
        except BaseException as error:  # nothing of theirs may change the end of the process
            _log(tracer, error)


class _Guarded(AbstractContextManager[None]):
    """A tracer's context manager, without its exceptions."""

    def __init__(self, tracer: Tracer, what: Sending | Processing) -> None:
        self._tracer = tracer
        self._what = what
        self._context: AbstractContextManager[object] | None = None
        # A send may be part of a task, which a time limit, the end of its event loop or the user interrupts. During an
        # attempt nothing is raised from outside.
        self._caught: type[BaseException] = Exception if isinstance(what, Sending) else BaseException

    def __enter__(self) -> None:
        def begin() -> None:
            tracer, what = self._tracer, self._what
            context = tracer.sending(what) if isinstance(what, Sending) else tracer.processing(what)
            context.__enter__()
            self._context = context

        self._try(begin)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None, /
    ) -> None:
        context = self._context
        if context is not None:
            self._try(lambda: context.__exit__(kind, error, tb), error)

    def _try(self, step: Callable[[], object], passing: BaseException | None = None) -> None:
        try:
            step()
        except TaskTimeout as error:
            if self._caught is Exception and error is not passing:
                raise
        except self._caught as error:
            if error is not passing:
                _log(self._tracer, error)


def _log(tracer: Tracer, error: BaseException) -> None:
    with suppress(Exception):
        log_failure(logger, logging.ERROR, "the tracer %s failed", type(tracer).__name__, error=error)
