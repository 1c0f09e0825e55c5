"""Each command: its effect on the store, and the reply."""

from __future__ import annotations

import os
import platform
import resource
import secrets
from collections import Counter
from collections.abc import Callable, Collection

from . import protocol
from .protocol import Command
from .store import Client, NoJob, Store, StoredJob, Tube

VERSION = "1.13"  # the version of beanstalkd with these commands: clients parse it
OWN_NAME = "embedded broker of Flask-Backend"  # also in the statistics, in a field that clients only show

# The commands that beanstalkd counts, in its order.
_COUNTED = (
    *("put", "peek", "peek-ready", "peek-delayed", "peek-buried", "reserve", "reserve-with-timeout", "delete"),
    *("release", "use", "watch", "ignore", "bury", "kick", "touch", "stats", "stats-job", "stats-tube", "list-tubes"),
    *("list-tube-used", "list-tubes-watched", "pause-tube"),
)


class Dispatcher:
    """Runs the commands of all clients."""

    def __init__(
        self, store: Store, max_job_size: int, now: float, has_room: Callable[[int], bool] | None = None
    ) -> None:
        """``has_room`` returns whether a body of this many bytes can be stored."""
        self.is_draining = False
        self._store = store
        self._max_job_size = max_job_size
        self._has_room = has_room
        self._started_at = now
        self._id = secrets.token_hex(8)
        self._counts: Counter[str] = Counter()
        self._connections = 0
        self._handlers: dict[str, Callable[[Client, Command, float], bytes | None]] = {
            "put": self._put,
            "use": self._use,
            "reserve": self._reserve,
            "reserve-with-timeout": self._reserve_with_timeout,
            "reserve-job": self._reserve_job,
            "delete": self._delete,
            "release": self._release,
            "bury": self._bury,
            "touch": self._touch,
            "watch": self._watch,
            "ignore": self._ignore,
            "peek": self._peek,
            "peek-ready": self._peek_ready,
            "peek-delayed": self._peek_delayed,
            "peek-buried": self._peek_buried,
            "kick": self._kick,
            "kick-job": self._kick_job,
            "stats": self._stats,
            "stats-job": self._stats_job,
            "stats-tube": self._stats_tube,
            "list-tubes": self._list_tubes,
            "list-tube-used": self._list_tube_used,
            "list-tubes-watched": self._list_tubes_watched,
            "pause-tube": self._pause_tube,
        }

    def connect(self) -> Client:
        self._connections += 1
        return self._store.connect()

    def run(self, client: Client, command: Command, now: float) -> bytes | None:
        """Run a command and return the reply, unless the client must wait for it."""
        self._counts[command.name] += 1
        return self._handlers[command.name](client, command, now)

    # -- producers -------------------------------------------------------------------------------------------

    def _put(self, client: Client, command: Command, now: float) -> bytes:
        priority, delay_s, ttr_s, size = command.numbers
        if self.is_draining:
            return protocol.DRAINING
        if self._has_room and not self._has_room(size):
            return protocol.OUT_OF_MEMORY
        job = self._store.put(client, priority, delay_s, ttr_s, command.body, now)
        return b"INSERTED %d\r\n" % job.id

    def _use(self, client: Client, command: Command, _now: float) -> bytes:
        self._store.use(client, command.tube)
        return protocol.line("USING", command.tube)

    # -- workers ---------------------------------------------------------------------------------------------

    def _reserve(self, client: Client, _command: Command, now: float) -> bytes | None:
        answer = self._store.reserve(client, None, now)
        return reserved(answer) if answer else None

    def _reserve_with_timeout(self, client: Client, command: Command, now: float) -> bytes | None:
        [timeout_s] = command.numbers
        answer = self._store.reserve(client, timeout_s, now)
        return reserved(answer) if answer else None

    def _reserve_job(self, client: Client, command: Command, now: float) -> bytes:
        [job_id] = command.numbers
        job = self._store.reserve_job(client, job_id, now)
        return reserved(job) if job else protocol.NOT_FOUND

    def _delete(self, client: Client, command: Command, _now: float) -> bytes:
        [job_id] = command.numbers
        return protocol.DELETED if self._store.delete(client, job_id) else protocol.NOT_FOUND

    def _release(self, client: Client, command: Command, now: float) -> bytes:
        job_id, priority, delay_s = command.numbers
        is_released = self._store.release(client, job_id, priority, delay_s, now)
        return protocol.RELEASED if is_released else protocol.NOT_FOUND

    def _bury(self, client: Client, command: Command, now: float) -> bytes:
        job_id, priority = command.numbers
        return protocol.BURIED if self._store.bury(client, job_id, priority, now) else protocol.NOT_FOUND

    def _touch(self, client: Client, command: Command, now: float) -> bytes:
        [job_id] = command.numbers
        return protocol.TOUCHED if self._store.touch(client, job_id, now) else protocol.NOT_FOUND

    def _watch(self, client: Client, command: Command, _now: float) -> bytes:
        self._store.watch(client, command.tube)
        return protocol.line("WATCHING", len(client.watched))

    def _ignore(self, client: Client, command: Command, _now: float) -> bytes:
        if not self._store.ignore(client, command.tube):
            return protocol.NOT_IGNORED
        return protocol.line("WATCHING", len(client.watched))

    # -- all others ------------------------------------------------------------------------------------------

    def _peek(self, _client: Client, command: Command, _now: float) -> bytes:
        [job_id] = command.numbers
        return _found(self._store.jobs.get(job_id))

    def _peek_ready(self, client: Client, _command: Command, _now: float) -> bytes:
        first = client.used.ready.first()
        return _found(first and first[1])

    def _peek_delayed(self, client: Client, _command: Command, _now: float) -> bytes:
        first = client.used.delayed.first()
        return _found(first and first[1])

    def _peek_buried(self, client: Client, _command: Command, _now: float) -> bytes:
        return _found(next(iter(client.used.buried), None))

    def _kick(self, client: Client, command: Command, now: float) -> bytes:
        [bound] = command.numbers
        return protocol.line("KICKED", self._store.kick(client.used, bound % 2**32, now))  # as C truncates it

    def _kick_job(self, _client: Client, command: Command, now: float) -> bytes:
        [job_id] = command.numbers
        return protocol.KICKED if self._store.kick_job(job_id, now) else protocol.NOT_FOUND

    def _pause_tube(self, _client: Client, command: Command, now: float) -> bytes:
        [delay_s] = command.numbers
        return protocol.PAUSED if self._store.pause(command.tube, delay_s, now) else protocol.NOT_FOUND

    def _list_tubes(self, _client: Client, _command: Command, _now: float) -> bytes:
        return protocol.with_list(self._store.tubes)

    def _list_tube_used(self, client: Client, _command: Command, _now: float) -> bytes:
        return protocol.line("USING", client.used.name)

    def _list_tubes_watched(self, client: Client, _command: Command, _now: float) -> bytes:
        return protocol.with_list(tube.name for tube in client.watched)

    # -- statistics ------------------------------------------------------------------------------------------

    def _stats_job(self, _client: Client, command: Command, now: float) -> bytes:
        [job_id] = command.numbers
        job = self._store.jobs.get(job_id)
        if job is None:
            return protocol.NOT_FOUND
        return protocol.with_mapping(
            {
                "id": job.id,
                "tube": protocol.quoted(job.tube.name),
                "state": job.state.value,
                "pri": job.priority,
                "age": int(now - job.created_at),
                "delay": job.delay_s,
                "ttr": job.ttr_s,
                "time-left": int(job.time_left_s(now)),
                "file": 0,
                "reserves": job.reserves,
                "timeouts": job.timeouts,
                "releases": job.releases,
                "buries": job.buries,
                "kicks": job.kicks,
            }
        )

    def _stats_tube(self, _client: Client, command: Command, now: float) -> bytes:
        tube = self._store.tubes.get(command.tube)
        if tube is None:
            return protocol.NOT_FOUND
        return protocol.with_mapping(
            {
                "name": protocol.quoted(tube.name),
                **_job_counts([tube]),
                "total-jobs": tube.total_jobs,
                "current-using": tube.using,
                "current-watching": tube.watching,
                "current-waiting": len(tube.waiting),
                "cmd-delete": tube.deletes,
                "cmd-pause-tube": tube.pauses,
                "pause": tube.pause_s,
                "pause-time-left": int(tube.paused_until - now) if tube.pause_s else 0,
            }
        )

    def _stats(self, _client: Client, _command: Command, now: float) -> bytes:
        store, usage, system = self._store, resource.getrusage(resource.RUSAGE_SELF), platform.uname()
        return protocol.with_mapping(
            {
                **_job_counts(store.tubes.values()),
                **{f"cmd-{name}": self._counts[name] for name in _COUNTED},
                "job-timeouts": store.timeouts,
                "total-jobs": store.total_jobs,
                "max-job-size": self._max_job_size,
                "current-tubes": len(store.tubes),
                "current-connections": len(store.clients),
                "current-producers": sum(client.is_producer for client in store.clients),
                "current-workers": sum(client.is_worker for client in store.clients),
                "current-waiting": sum(client.is_waiting for client in store.clients),
                "total-connections": self._connections,
                "pid": os.getpid(),
                "version": protocol.quoted(VERSION),
                "rusage-utime": f"{usage.ru_utime:.6f}",
                "rusage-stime": f"{usage.ru_stime:.6f}",
                "uptime": int(now - self._started_at),
                "binlog-oldest-index": 0,
                "binlog-current-index": 0,
                "binlog-records-migrated": 0,
                "binlog-records-written": 0,
                "binlog-max-size": 0,
                "draining": str(self.is_draining).lower(),
                "id": self._id,
                "hostname": protocol.quoted(system.node),
                "os": protocol.quoted(f"{system.version} ({OWN_NAME})"),
                "platform": protocol.quoted(system.machine),
            }
        )


def reserved(answer: StoredJob | NoJob) -> bytes:
    """Return the reply to a reserve."""
    match answer:
        case StoredJob():
            return protocol.with_job(b"RESERVED", answer.id, answer.body)
        case NoJob.TIMED_OUT:
            return protocol.TIMED_OUT
        case NoJob.DEADLINE_SOON:
            return protocol.DEADLINE_SOON


def _found(job: StoredJob | None) -> bytes:
    return protocol.with_job(b"FOUND", job.id, job.body) if job else protocol.NOT_FOUND


def _job_counts(tubes: Collection[Tube]) -> dict[str, int]:
    return {
        "current-jobs-urgent": sum(tube.urgent for tube in tubes),
        "current-jobs-ready": sum(len(tube.ready) for tube in tubes),
        "current-jobs-reserved": sum(tube.reserved for tube in tubes),
        "current-jobs-delayed": sum(len(tube.delayed) for tube in tubes),
        "current-jobs-buried": sum(len(tube.buried) for tube in tubes),
    }
