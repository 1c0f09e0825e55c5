"""The supervisors and workers of this host, and what can be done to them."""

from __future__ import annotations

import os
import pwd
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flask import url_for

from flask_backend.broker.stats import JobRecord
from flask_backend.dashboard.routing import Done, Page, Pages, question
from flask_backend.dashboard.visit import RefusalError, Visit
from flask_backend.errors import BrokerConnectionError
from flask_backend.operations import control
from flask_backend.operations.records import attempts_made, supervisor_as_dict
from flask_backend.operations.stacks import StacksError, read_stacks
from flask_backend.operations.supervisors import Supervisor, find
from flask_backend.system.procfs import PROC_IS_THERE

pages = Pages()

# How long a page may read the memory of processes: it is opened again and again.
_MEMORY_S = 0.02
_SHOWN_DEATHS = 5


@dataclass(frozen=True, slots=True)
class Shown:
    """A supervisor, and why no more can be shown, or it cannot be controlled here, if so."""

    of: Supervisor
    note: str | None
    is_controlled: bool

    @property
    def app(self) -> str | None:
        return self.of.facts.get("app")

    @property
    def frozen_s(self) -> float | None:
        return self.of.found.frozen_s if self.of.found else None

    @property
    def generation(self) -> int | None:
        return self.of.found.page.generation if self.of.found else None

    @property
    def reload(self) -> Mapping[str, Any] | None:
        return self.of.facts.get("reload")

    @property
    def deaths(self) -> list[Mapping[str, Any]]:
        return list(reversed(self.of.facts.get("deaths", [])))[:_SHOWN_DEATHS]


@pages.page("/workers", "/workers.json", nav="Workers")
def workers(visit: Visit) -> Page:
    found = _find(visit, _MEMORY_S)
    shown = [_show(visit, each) for each in found]
    jobs, away = _jobs_of(visit, shown)
    values = {"supervisors": shown, "jobs": jobs, "away": away, "is_linux": PROC_IS_THERE, "host": os.uname().nodename}
    data = {"host": os.uname().nodename, "at": visit.now, "supervisors": [supervisor_as_dict(each) for each in found]}
    return Page("workers.html", values, data)


def _find(visit: Visit, memory_s: float = 0) -> list[Supervisor]:
    """Return the supervisors of this host, without those that serve a queue that the person may not view."""
    found = find(memory_s) if PROC_IS_THERE else []
    return [each for each in found if all(map(visit.may_view, _queues_of(each)))]


def _queues_of(supervisor: Supervisor) -> set[str]:
    return {queue.name for queue in supervisor.queues} | {worker.queue for worker in supervisor.workers}


def _show(visit: Visit, supervisor: Supervisor) -> Shown:
    if supervisor.found is None:
        return Shown(supervisor, _why_hidden(supervisor.process.pid), is_controlled=False)
    if not supervisor.serves(visit.address):
        return Shown(supervisor, f"It serves another broker, {supervisor.facts.get('broker')}.", is_controlled=False)
    return Shown(supervisor, None, is_controlled=True)


def _why_hidden(pid: int) -> str:
    """Return why the status page of a supervisor was not read."""
    try:
        owner = Path(f"/proc/{pid}").stat().st_uid
    except OSError:
        return "It has just ended."
    if owner not in (os.geteuid(), 0) or (owner == 0 != os.geteuid()):
        return (
            f"It is of the user {_name_of(owner)}, and this web process is of {_name_of(os.geteuid())}: only that user "
            "and root can read its status page, so its workers are named here by their titles, without numbers."
        )
    return "Its status page was not found: it starts, or is of another version of Flask-Backend."


def _name_of(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _jobs_of(visit: Visit, shown: Iterable[Shown]) -> tuple[dict[int, int], bool]:
    """Return which attempt each running job of this broker is, and whether the broker is away."""
    ids = [worker.job for each in shown if each.is_controlled for worker in each.of.workers if worker.job]
    if not ids:
        return {}, False
    try:
        return {job.id: _attempt(job) for job in visit.console.jobs(ids) if job.state == "reserved"}, False
    except BrokerConnectionError:
        return {}, True


def _attempt(job: JobRecord) -> int:
    return attempts_made(job)


# -- acts --------------------------------------------------------------------------------------------------------


@pages.act("/workers/reload", "control")
def reload_supervisor(visit: Visit) -> Done:
    return _send(visit, control.reload, "let supervisor {} check and take new code")


@pages.act("/workers/add", "control")
def add_worker(visit: Visit) -> Done:
    return _send(visit, control.add_worker, "let supervisor {} run a worker more in each queue")


@pages.act("/workers/remove", "control")
def remove_worker(visit: Visit) -> Done:
    return _send(visit, control.remove_worker, "let supervisor {} run a worker less in each queue")


def ask_to_stop(visit: Visit) -> Page:
    supervisor, worker = _controlled(visit), visit.number("worker")
    return question(
        f"Stop worker {worker} after its task?",
        "Stop it",
        [("pid", supervisor), ("worker", worker)],
        url_for(".workers"),
        details=["Its task may finish, then the supervisor starts another worker in its place."],
        command=f"kill -TERM {worker}",
    )


@pages.act("/workers/stop", "control", ask=ask_to_stop)
def stop_worker(visit: Visit) -> Done:
    worker = visit.number("worker")
    control.stop_worker(_controlled(visit), worker)
    return Done(f"let worker {worker} stop after its task", url_for(".workers"))


@pages.act("/workers/stack", "control")
def show_stack(visit: Visit) -> Done:
    supervisor, worker = _controlled(visit), visit.number("worker")
    try:
        stacks = read_stacks(supervisor, worker)
    except StacksError as error:
        raise RefusalError(409, "No stacks", f"{error}.") from error
    page = Page("stacks.html", {"worker": worker, "stacks": stacks}, {"stacks": stacks})
    return Done(f"showed the stacks of worker {worker}", page)


def _send(visit: Visit, act: Callable[[int], None], what: str) -> Done:
    pid = _controlled(visit)
    act(pid)
    return Done(what.format(pid), url_for(".workers"))


def _controlled(visit: Visit) -> int:
    """Return the pid of the supervisor that the request names; raise :exc:`RefusalError` if it is not one of here."""
    pid = visit.number("pid")
    known = {each.process.pid: each for each in _find(visit)}
    supervisor = known.get(pid)
    if supervisor is None:
        raise RefusalError(404, "No such supervisor", f"No supervisor with the pid {pid} runs here any longer.")
    if note := _show(visit, supervisor).note:
        raise RefusalError(409, "Out of reach", f"Supervisor {pid} cannot be controlled from here. {note}")
    return pid
