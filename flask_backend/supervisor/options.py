"""The arguments of a supervisor: the work of its children and its limits."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .context import Body
from .descriptors import Descriptors
from .events import EventSink
from .observer import Look
from .process import Processes
from .service import Service
from .settling import Settle
from .terminal import Terminal


@dataclass(frozen=True, slots=True)
class Work:
    """The work of children: ``body`` is the whole life of a child, and returns its exit code.

    ``labels`` names for each pool the kinds of work of its children, for example its tasks. If a child died at a job,
    ``settle`` is called in a short-lived process of its own, with the socket that the child lent, the record of its
    death, and the number of deaths that the job has caused. What the app may want to know is sent to ``events``.
    ``facts``, which JSON can carry, are shown on the status page.
    ``look`` is called in a helper if pools may grow and shrink; without it they stay as they are.
    """

    body: Body
    labels: Mapping[str, Sequence[str]]
    settle: Settle
    events: EventSink | None = None
    facts: Mapping[str, Any] = field(default_factory=dict[str, Any])
    look: Look | None = None


@dataclass(frozen=True, slots=True)
class SupervisorOptions:
    """The limits of children, and the supervisor's access to the system. All times are in seconds."""

    drain_timeout_s: float  # the time that running jobs get at a shutdown
    boot_timeout_s: float = 60.0  # the time that a child has to become ready
    max_memory_bytes: int | None = None  # a child with more private memory is recycled
    shared_memory_bytes: int | None = None  # in place of that, the limit of all children together
    max_memory_hard_bytes: int | None = None  # a child with more than this is killed
    give_up_after: int | None = None  # deaths of children of one pool, see Breaker
    give_up_within_s: float = 60.0
    descriptors: Descriptors = field(default_factory=Descriptors.count)  # those open, and the limit of children
    page_folder: str | None = None  # where the status page gets a name
    service: Service | None = None
    scheduler: Service | None = None
    terminal: Terminal = field(default_factory=Terminal.find)
    processes: Processes = field(default_factory=Processes)
    clock: Callable[[], float] = time.monotonic
