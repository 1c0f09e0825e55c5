"""The health check: whether the supervisors of this user are alive and ready.

It reads only their status pages, and imports few modules: a container runs it every few seconds.
"""

from __future__ import annotations

import os
import sys

from . import page
from .page import Found, WorkerView

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import TextIO

# A supervisor ends a task soon after its time limit. One that does not for this long is not alive.
OVERDUE_S = 10.0


class Request:
    """What is asked: whether supervisors are alive, ready, or both, of all of this user or the one with a pid."""

    __slots__ = ("live", "pid", "ready", "stuck_after_s")

    def __init__(
        self, *, live: bool = True, ready: bool = True, pid: int | None = None, stuck_after_s: float = 0
    ) -> None:
        self.live = live
        self.ready = ready
        self.pid = pid
        self.stuck_after_s = stuck_after_s  # 0 if a job may take any time


def run(arguments: Sequence[str]) -> int | None:
    """Check, print the result and return the exit code; None if the arguments are not plain: see the click command."""
    live = ready = False
    pid: int | None = None
    stuck_after_s = 0.0
    left = list(arguments)
    while left:
        name = left.pop(0)
        value = left.pop(0) if name in {"--pid", "--stuck-after"} and left else ""
        if name == "--live":
            live = True
        elif name == "--ready":
            ready = True
        elif name == "--pid" and value.isdecimal():
            pid = int(value)
        elif name == "--stuck-after" and value.isdecimal() and int(value):
            stuck_after_s = int(value)
        else:
            return None
    both = live is ready
    return report(Request(live=live or both, ready=ready or both, pid=pid, stuck_after_s=stuck_after_s))


def report(request: Request) -> int:
    """Check, print a line for each supervisor, and return the exit code."""
    found = list(page.find(request.pid).values()) or _find_nameless()
    found = [each for each in found if request.pid in (None, each.pid)]
    if not found:
        _print(
            sys.stderr, "no supervisor runs here" if request.pid is None else f"no supervisor has the pid {request.pid}"
        )
        return 1
    code = 0
    for supervisor in found:
        complaints = list(_complaints(supervisor, request))
        if complaints:
            code = 1
            _print(sys.stderr, f"supervisor {supervisor.pid} {'; '.join(complaints)}")
        else:
            _print(sys.stdout, f"supervisor {supervisor.pid} {_describe(supervisor, request)}")
    return code


def _find_nameless() -> list[Found]:
    """Find the pages that are in memory, as there is no folder for them."""
    pids = [int(name) for name in os.listdir("/proc") if name.isdecimal()] if os.path.isdir("/proc") else []
    return [found for pid in pids if page.nameless_pages(pid) for found in page.find(pid).values()]


def _print(file: TextIO, text: str) -> None:
    print(text if text.isprintable() else ascii(text)[1:-1], file=file)


def _describe(supervisor: Found, request: Request) -> str:
    workers = [row for view in supervisor.pages for queue in view.queues for row in queue.workers]
    busy = sum((row.job is not None and not row.is_limited) or row.is_torn for row in workers)
    state = " and ".join(word for word, is_asked in (("alive", request.live), ("ready", request.ready)) if is_asked)
    return f"is {state}: {supervisor.page.state}, {len(workers)} worker{'s' * (len(workers) != 1)}, {busy} busy"


def _complaints(supervisor: Found, request: Request) -> Iterator[str]:
    if (frozen_s := supervisor.frozen_s) is not None:
        yield f"has been frozen for {frozen_s:.0f} s"
    if request.live:
        yield from _stuck(supervisor, request.stuck_after_s)
    if request.ready:
        yield from _unready(supervisor)


def _stuck(supervisor: Found, after_s: float) -> Iterator[str]:
    """Yield the jobs that should have ended."""
    for view in supervisor.pages:
        for number, queue in enumerate(view.queues):
            for row in queue.workers:
                since_s = (view.now_ns - row.words[page.JOB_SINCE_NS]) / 1e9
                overdue_s = (view.now_ns - row.words[page.KILL_AT_NS]) / 1e9 if row.words[page.KILL_AT_NS] else 0
                if row.job and not row.is_limited and (overdue_s > OVERDUE_S or (after_s and since_s > after_s)):
                    name = list(view.labels().values())[number][row.words[page.LABEL_NUMBER]]
                    yield f"has been stuck on job {row.job} ({name}) for {since_s:.0f} s"


def _unready(supervisor: Found) -> Iterator[str]:
    if supervisor.page.state in ("draining", "stopped"):
        yield f"is not ready: it is {supervisor.page.state}"
        return
    for number, queue in enumerate(supervisor.page.queues):
        if not queue.wanted or queue.count_serving():
            continue
        name = list(supervisor.page.labels())[number]
        rows = [*queue.workers, *_old_workers(supervisor, name)]
        ready = [row for row in rows if row.state == "ready"]
        if not ready:
            yield f"is not ready: no worker of {name} is ready"
        elif all(row.words[page.AWAY_SINCE_NS] for row in ready):
            away_ns = max(supervisor.page.now_ns - row.words[page.AWAY_SINCE_NS] for row in ready)
            yield f"is not ready: the broker of {name} has been away for {away_ns / 1e9:.0f} s"


def _old_workers(supervisor: Found, name: str) -> Iterator[WorkerView]:
    """Yield the workers of a queue that run the code from before a reload: they serve until the new ones are ready."""
    for view in supervisor.pages[1:]:
        for label, queue in zip(view.labels(), view.queues, strict=True):
            if label == name:
                yield from queue.workers
