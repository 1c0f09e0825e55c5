"""A supervisor in a few words, for the commands that show one; and which one a command is about."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from flask_backend.system import page as pages

from .output import count_of, show_seconds

if TYPE_CHECKING:
    from flask_backend.operations.supervisors import Supervisor
    from flask_backend.system.page import Found

NO_SUPERVISOR = "no supervisor of this user runs here: start one with `flask-backend supervise`"


def choose(pid: int | None) -> Found:
    """Return the supervisor with this pid, or the only one that this user may read; fail if there is not one."""
    found = pages.find(pid)
    if pid is not None:
        if pid not in found:
            raise click.ClickException(
                f"no supervisor with the pid {pid} has a page here that this user and this version can read"
            )
        return found[pid]
    if not found:
        raise click.ClickException(NO_SUPERVISOR)
    if len(found) > 1:
        names = ", ".join(_name(each) for each in found.values())
        raise click.UsageError(f"several supervisors run here ({names}); choose one with --pid")
    return next(iter(found.values()))


def _name(found: Found) -> str:
    app = found.page.facts().get("app")
    return f"{found.pid} of {app}" if app else str(found.pid)


def headline(supervisor: Supervisor) -> str:
    """Return the state of a supervisor, and the number of its workers."""
    up = show_seconds(supervisor.process.up_s)
    return f"supervisor {supervisor.process.pid}, up {up}: {_state_of(supervisor)}"


def _state_of(supervisor: Supervisor) -> str:
    count = count_of(len(supervisor.workers), "worker")
    if not supervisor.found:
        return f"{supervisor.state or 'state unknown'}, {count}"
    ready, wanted = (sum(getattr(queue, name) for queue in supervisor.queues) for name in ("ready", "wanted"))
    since = show_seconds(supervisor.state_for_s or 0)
    generation = f", generation {number}" if (number := supervisor.found.page.generation) else ""
    return f"{supervisor.state} for {since}{generation}, {count}, {ready} of {wanted} ready"


def why_frozen(found: Found | None) -> str | None:
    """Return for how long a supervisor has been frozen, and why, if it is."""
    if found is None or (frozen_s := found.frozen_s) is None:
        return None
    return f"frozen for {frozen_s:.0f} s: " + (
        "a signal has stopped it" if found.is_stopped else "its loop does not turn"
    )
