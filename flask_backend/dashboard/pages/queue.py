"""One queue, and what can be done to it."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from flask import url_for

from flask_backend.broker.stats import UNTIL_RESUMED_S, JobRecord, Queue
from flask_backend.dashboard.audit import in_words
from flask_backend.dashboard.rendering import LISTED_BYTES, show_large
from flask_backend.dashboard.routing import Done, Page, Pages, question
from flask_backend.dashboard.visit import RefusalError, Visit
from flask_backend.operations import heads
from flask_backend.operations.bodies import call_in, show_body
from flask_backend.operations.console import Console
from flask_backend.operations.listing import FOR_NEWEST, list_jobs
from flask_backend.operations.records import attempts_made, job_as_dict, queue_as_dict
from flask_backend.operations.supervisors import Counts, find
from flask_backend.quantities import count_of, show_seconds
from flask_backend.system.procfs import PROC_IS_THERE
from flask_backend.visible import MAX_NAME, visible

pages = Pages()

STATES = ("ready", "reserved", "delayed", "buried")
_MAX_CALL = 200  # characters in a list
# The pauses that the page offers, in seconds.
PAUSES_S = (60, 600, 3600, 86400)


@pages.page("/queue", "/queue.json")
def queue(visit: Visit) -> Page:
    found = find_queue(visit)
    waits = visit.console.next_waits([found])
    state, before = visit.value("state"), visit.number("before", 0)
    states = (state,) if state in STATES else STATES
    jobs = list_jobs(visit.console, found.name, states, before or None)
    rows = [JobRow(record, _show_call(visit, record, body)) for record, body in jobs.jobs]
    tasks = _count_tasks(visit, found.name)
    values = {
        "queue": found,
        "next_wait_s": waits.get(found.name),
        "pauses": PAUSES_S,
        "until_resumed": UNTIL_RESUMED_S,
        "states": STATES,
        "state": state if state in STATES else "",
        "jobs": jobs,
        "rows": rows,
        "before": before,
        "tasks": tasks,
        "metrics_url": visit.settings.metrics_link and visit.settings.metrics_link.to(found.name),
    }
    data = {
        **queue_as_dict(visit.address, found, waits.get(found.name)),
        "at": visit.now,
        "jobs": [{**job_as_dict(visit.address, row.record), "call": row.call} for row in rows],
        "before": jobs.before,
        "tasks": [{"name": name, "done": counts.done, "failed": counts.failed} for name, counts in tasks.items()],
    }
    return Page("queue.html", values, data)


@dataclass(frozen=True, slots=True)
class JobRow:
    """A job in the list, with its call in words: only the task, for a person who may not see arguments."""

    record: JobRecord
    call: str | None

    @property
    def attempts(self) -> int:
        return attempts_made(self.record)


def _show_call(visit: Visit, record: JobRecord, body: bytes) -> str | None:
    if len(body) > LISTED_BYTES:
        return show_large(body)
    if visit.may("view_arguments", queue=record.queue):
        return show_body(visit.console.masking.body(record.queue, body), _MAX_CALL)
    call = call_in(body)
    return f"{visible(call.endpoint, MAX_NAME)}(…)" if call else None


def _count_tasks(visit: Visit, name: str) -> Mapping[str, Counts]:
    """Return what the workers of this host have done in a queue of this broker, by task."""
    tasks: dict[str, Counts] = {}
    for supervisor in find(0) if PROC_IS_THERE else ():
        if supervisor.serves(visit.address):
            for served in supervisor.queues:
                if served.name == name:
                    for task, counts in served.tasks.items():
                        tasks.setdefault(task, Counts()).merge(counts)
    return tasks


def find_queue(visit: Visit) -> Queue:
    """Return the queue that the request names; raise :exc:`RefusalError` if the broker has no such queue."""
    name = visit.queue_name()
    found = visit.console.queue(name)
    if found is None:
        raise _no_queue(name)
    return found


def _no_queue(name: str) -> RefusalError:
    return RefusalError(404, "No such queue", f"The broker has no queue {name}: it has no jobs and no workers.")


# -- pauses ------------------------------------------------------------------------------------------------------


@pages.act("/queue/pause", "pause")
def pause(visit: Visit) -> Done:
    name, seconds = visit.queue_name(), visit.number("seconds")
    if not 0 < seconds <= UNTIL_RESUMED_S:
        raise RefusalError(400, "Bad request", f"seconds is {seconds}; expected from 1 to {UNTIL_RESUMED_S}.")
    duration = "until it is resumed" if seconds == UNTIL_RESUMED_S else f"for {show_seconds(seconds)}"
    return _set_pause(visit, name, seconds, f"paused {name} {duration}")


@pages.act("/queue/resume", "pause")
def resume(visit: Visit) -> Done:
    name = visit.queue_name()
    return _set_pause(visit, name, 0, f"resumed {name}")


def _set_pause(visit: Visit, name: str, seconds: int, what: str) -> Done:
    if not visit.console.pause(name, seconds):
        raise _no_queue(name)
    return Done(what, url_for(".queue", queue=name))


# -- all jobs in one state ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Bulk:
    """An act on all jobs of a queue in one state, which may take several steps: each is one POST.

    ``step`` takes the queue, a number of jobs and the newest id that it may act on; it returns the ids that it has
    acted on. ``command`` does the same on the command line. If the act ``is_final``, the name of the queue is typed
    before.
    """

    verb: str
    past: str
    state: str
    endpoint: str
    step: Callable[[Console, str, int, int], Sequence[int]]
    detail: str
    command: str | None = None
    is_final: bool = False

    def ask(self, visit: Visit) -> Page:
        found = find_queue(visit)
        count = int(getattr(found, self.state))
        if not count:
            raise RefusalError(409, "Nothing to do", f"Queue {found.name} has no {self.state} jobs.")
        command = self.command and f"{self.command} {shlex.join(['--queue', found.name, '--broker', visit.address])}"
        return question(
            f"{self.verb.capitalize()} {count_of(count, f'{self.state} job')} of {found.name}?",
            f"{self.verb.capitalize()} {count_of(count, 'job')}",
            [("queue", found.name), ("left", count), ("total", count), *self._bounds(visit, found.name)],
            url_for(".queue", queue=found.name),
            details=[self.detail],
            typed=found.name if self.is_final else None,
            command=command,
        )

    def _bounds(self, visit: Visit, queue: str) -> Iterator[tuple[str, object]]:
        """Yield what keeps the act from jobs that come after the question. Ids begin again with the server."""
        yield "server", _server_id(visit)
        if self.is_final:  # buried jobs are in the order of their burial, ready ones in that of their priorities
            yield "newest", visit.console.find_last_id(queue, FOR_NEWEST)[0]

    def act(self, visit: Visit) -> Done:
        name, left, total = visit.queue_name(), visit.number("left"), visit.number("total")
        if self.is_final and visit.value("typed").strip() != name:
            raise RefusalError(400, "Not confirmed", f"Nothing was done: type the name of the queue, {name}.")
        newest = visit.number("newest", 0)
        if visit.value("server") != _server_id(visit):
            text = "Nothing was done: the broker was restarted since. Go back to the queue, and look again."
            raise RefusalError(409, "These jobs may be others now", text)
        ids = self.step(visit.console, name, left, newest)
        left = max(0, left - len(ids))
        so_far, what = max(0, total - left), in_words(self.past, len(ids), f"{self.state} job", name)
        found = visit.console.queue(name)
        back = url_for(".queue", queue=name) if found else url_for(".queues")
        if ids and left and found and getattr(found, self.state):
            fields = [("queue", name), ("left", left), ("total", total), ("newest", newest), ("typed", name)]
            fields.append(("server", visit.value("server")))
            values = {"bulk": self, "queue": name, "fields": fields, "total": total, "so_far": so_far, "back": back}
            return Done(what, Page("progress.html", values), len(ids), ids)
        notice = in_words(self.past, so_far, f"{self.state} job", name)
        notice += f"; {count_of(left, 'job')} fewer than asked for, as they are no longer there" if left else ""
        return Done(what, back, len(ids), ids, notice=notice)


def _server_id(visit: Visit) -> str:
    server = visit.console.server()
    return server.id if server else ""


_RETRY = Bulk(
    "retry",
    "retried",
    "buried",
    "retry_buried",
    lambda console, queue, count, _newest: heads.retry_buried(console, queue, count),
    "Each is ready at once, and gets its full number of attempts again.",
    "flask-backend retry --all",
)
_DELETE = Bulk(
    "delete",
    "deleted",
    "buried",
    "delete_buried",
    lambda console, queue, count, _newest: heads.delete_buried(console, queue, count),
    "Their stories are deleted with them. This cannot be undone.",
    "flask-backend delete --all",
)
_DELETE_READY = Bulk(
    "delete",
    "deleted",
    "ready",
    "delete_ready",
    heads.delete_ready,
    "They have not run, and will not. This cannot be undone.",
    is_final=True,
)


@pages.act("/queue/retry-buried", "retry", ask=_RETRY.ask)
def retry_buried(visit: Visit) -> Done:
    return _RETRY.act(visit)


@pages.act("/queue/delete-buried", "delete", ask=_DELETE.ask)
def delete_buried(visit: Visit) -> Done:
    return _DELETE.act(visit)


@pages.act("/queue/delete-ready", "delete", ask=_DELETE_READY.ask)
def delete_ready(visit: Visit) -> Done:
    return _DELETE_READY.act(visit)
