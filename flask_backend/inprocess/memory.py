"""A broker in the memory of this process, for tests: ``memory://``.

The store of the embedded broker manages the jobs, so that they behave as in Beanstalkd. But time stands still here
until a test moves it, and the broker remembers every job that was put.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from flask_backend.broker.producer import Producer
from flask_backend.broker.stats import JobCounters, JobRecord, Queue
from flask_backend.broker.wire import Reply, ReservedJob, Stats
from flask_backend.config import Settings
from flask_backend.embedded.commands import Dispatcher
from flask_backend.embedded.protocol import Command
from flask_backend.embedded.store import State, Store, StoredJob
from flask_backend.errors import BrokerError, JobNotFoundError, JobTooBigError
from flask_backend.limit import Limit
from flask_backend.options import PutOptions
from flask_backend.worker.event_loop import EventLoop

MAX_JOB_SIZE = 65535  # bytes: the default of Beanstalkd


@dataclass(frozen=True, slots=True)
class Put:
    """A job as it was put, at the time ``at`` in seconds since the epoch, when the broker's time was ``moved_s``."""

    id: int
    queue: str
    body: bytes
    options: PutOptions
    at: float
    moved_s: float


@dataclass(frozen=True, slots=True)
class _AnsweredPuts:
    answers: list[int | BrokerError] = field(default_factory=list["int | BrokerError"])

    def collect(self, results: list[int | BrokerError]) -> None:
        results += self.answers


class MemoryBroker:
    """Replaces a :class:`Connection` to a server within one process, and may be used from any thread.

    ``now`` is its time in seconds, ``puts`` has all jobs ever put, ``begun`` the queues whose hooks have run, and
    ``draining`` the threads that run jobs. ``began`` is when its time was 0, in seconds since the epoch, and
    ``periodic`` has the last job of each periodic task.
    Asynchronous hooks and tasks share ``event_loop``, as in a worker.
    """

    def __init__(self) -> None:
        self.now = 0.0
        self.began = time.time()
        self.periodic: dict[str, int] = {}
        self.puts: dict[int, Put] = {}
        self.begun: set[str] = set()
        self.draining: set[int] = set()
        self.event_loop = EventLoop()
        self._checkpoints_left: int | None = None
        self._starts: defaultdict[str, list[float]] = defaultdict(list)  # the last ones, by limit
        self._store = Store()
        self._commands = Dispatcher(self._store, MAX_JOB_SIZE, self.now)
        self._client = self._store.connect()
        self._lock = threading.RLock()

    def move_time(self, to: float) -> None:
        """Move the time to ``to``, in seconds since the beginning."""
        with self._lock:
            self.now = to
            for job in self._client.held:
                self._store.touch(self._client, job.id, self.now)  # as a worker does while its task runs

    def is_due(self, job_id: int) -> bool:
        """Whether the delay of a job is over."""
        job = self._store.jobs.get(job_id)
        return job is not None and job.state is State.DELAYED and job.at <= self.now

    def moved_since_put(self, job_id: int) -> float:
        """Return by how many seconds the test has moved the time since a job was put."""
        return self.now - self.puts[job_id].moved_s

    def bodies(self, tube: str) -> list[bytes]:
        """Return the bodies of all jobs in a tube, the oldest first."""
        with self._lock:
            return [job.body for job in self._store.jobs.values() if job.tube.name == tube]

    # -- as a connection of producers ------------------------------------------------------------------------

    def put(self, queue: str, body: bytes, options: PutOptions) -> int:
        if len(body) > MAX_JOB_SIZE:
            raise JobTooBigError(
                f"the job has {len(body)} bytes, but Beanstalkd takes at most {MAX_JOB_SIZE} by default; "
                "pass a reference to the data, for example a row's id or a file's name"
            )
        with self._lock:
            store, client = self._store, self._client
            store.use(client, queue)
            job = store.put(client, options.priority, options.delay_s, options.ttr_s, body, self.now)
            self.puts[job.id] = Put(job.id, queue, body, options, time.time(), self.now)
            return job.id

    def send_puts(self, queue: str, bodies: list[bytes], options: PutOptions) -> _AnsweredPuts:
        sent = _AnsweredPuts()
        for body in bodies:
            try:
                sent.answers.append(self.put(queue, body, options))
            except JobTooBigError as error:
                sent.answers.append(error)
        return sent

    def find(self, job_id: int) -> tuple[JobRecord, bytes] | None:
        with self._lock:
            job = self._store.jobs.get(job_id)
            stats = self._stats(Command("stats-job", numbers=(job_id,)))
            return None if job is None or stats is None else (JobRecord.from_stats(stats), job.body)

    def delete(self, job_id: int) -> None:
        with self._lock:
            _check(job_id, found=self._store.delete(self._client, job_id))

    # -- as a connection of workers --------------------------------------------------------------------------

    def reserve(self, queues: Collection[str]) -> tuple[str, ReservedJob] | None:
        """Return the next due job, with its queue. Jobs are ordered by due time, then by priority."""
        with self._lock:
            store = self._store
            self._watch_only(queues)
            while queues:
                job = store.reserve(self._client, 0, self.now)
                if isinstance(job, StoredJob):
                    return job.tube.name, ReservedJob(job.id, job.body)
                # Advance the store's time step by step, since it does not store when a job became ready.
                at = store.next_at()
                if at is None or at > self.now:
                    return None
                store.advance(at)
        return None

    def reserve_job(self, job_id: int) -> ReservedJob | None:
        with self._lock:
            job = self._store.reserve_job(self._client, job_id, self.now)
            return None if job is None else ReservedJob(job.id, job.body)

    def release(self, job_id: int, priority: int, delay_s: int) -> None:
        with self._lock:
            _check(job_id, found=self._store.release(self._client, job_id, priority, delay_s, self.now))

    def bury(self, job_id: int, priority: int) -> None:
        with self._lock:
            _check(job_id, found=self._store.bury(self._client, job_id, priority, self.now))

    def touch(self, job_id: int) -> None:
        with self._lock:
            _check(job_id, found=self._store.touch(self._client, job_id, self.now))

    def counters(self, job_id: int) -> JobCounters:
        stats = self._stats(Command("stats-job", numbers=(job_id,)))
        if stats is None:
            raise _gone(job_id)
        return JobCounters.from_stats(stats)

    def stats_tube(self, names: Iterable[str]) -> list[Queue]:
        found = (self._stats(Command("stats-tube", name)) for name in names)
        return [Queue.from_stats(stats) for stats in found if stats is not None]

    def give_back(self) -> None:
        """Make all held jobs ready again without counting an attempt, as when a worker's connection ends."""
        with self._lock:
            self._store.disconnect(self._client, self.now)
            self._client = self._store.connect()

    # -- for limits ------------------------------------------------------------------------------------------

    def allows_start(self, limit: Limit | None) -> bool:
        """Whether a task with this limit may start now: one on tasks that run has no effect here."""
        if limit is None or limit.per is None:
            return True
        recent = self._starts[limit.name][-limit.n :]
        return len(recent) < limit.n or recent[0] + limit.per <= self.now

    def note_start(self, limit: Limit | None) -> None:
        """Record that a task with this limit starts now."""
        if limit is not None:
            self._starts[limit.name] = [*self._starts[limit.name], self.now][-limit.n :]

    # -- for cursors -----------------------------------------------------------------------------------------

    def interrupt_at(self, checkpoint: int) -> None:
        """Let the next job leave at its n-th checkpoint, counted from now over all jobs."""
        self._checkpoints_left = checkpoint

    def interrupts_now(self) -> bool:
        """Whether the task that has reached a checkpoint shall leave there."""
        if self._checkpoints_left is None:
            return False
        self._checkpoints_left -= 1
        if self._checkpoints_left > 0:
            return False
        self._checkpoints_left = None
        return True

    def first_ready(self, tube: str) -> tuple[int, bytes] | None:
        with self._lock:
            jobs = [job for job in self._store.jobs.values() if job.tube.name == tube and job.state is State.READY]
            first = min(jobs, key=lambda job: (job.priority, job.id), default=None)
            return None if first is None else (first.id, first.body)

    def first_delayed(self, tube: str) -> tuple[int, bytes] | None:
        with self._lock:
            jobs = [job for job in self._store.jobs.values() if job.tube.name == tube and job.state is State.DELAYED]
            first = min(jobs, key=lambda job: (job.at, job.id), default=None)
            return None if first is None else (first.id, first.body)

    def put_aside(self, tube: str, body: bytes, priority: int) -> int:
        return self.put_all_aside(tube, [body], PutOptions(priority, 0, 1))[0]

    def put_all_aside(self, tube: str, bodies: Iterable[bytes], options: PutOptions) -> list[int]:
        with self._lock:
            self._store.use(self._client, tube)
            numbers = options.priority, options.delay_s, options.ttr_s
            return [self._store.put(self._client, *numbers, body, self.now).id for body in bodies]

    def max_job_size(self) -> int:
        return MAX_JOB_SIZE

    def delete_each(self, ids: Iterable[int]) -> list[int]:
        with self._lock:
            return [job_id for job_id in ids if self._store.delete(self._client, job_id)]

    # -- inner workings --------------------------------------------------------------------------------------

    def _stats(self, command: Command) -> Stats | None:
        """Return the statistics from the embedded broker, if the job or tube exists."""
        with self._lock:
            reply = Reply.parse(self._commands.run(self._client, command, self.now) or b"")
        return reply.stats if reply.status == "OK" else None

    def _watch_only(self, queues: Collection[str]) -> None:
        for queue in queues:
            self._store.watch(self._client, queue)
        for tube in [tube.name for tube in self._client.watched if tube.name not in queues]:
            self._store.ignore(self._client, tube)


def _check(job_id: int, *, found: bool) -> None:
    if not found:
        raise _gone(job_id)


def _gone(job_id: int) -> JobNotFoundError:
    return JobNotFoundError(f"job {job_id} is gone, or no longer held")


class MemoryProducer(Producer):
    """Puts jobs in memory: a producer that is connected to a :class:`MemoryBroker`."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.broker = MemoryBroker()

    def connection(self) -> MemoryBroker:
        return self.broker

    def state(self, queue: str, job_id: int, uid: str | None) -> str | None:
        """Return the state of a job: ready as soon as its delay is over, even if the store is not yet updated."""
        state = super().state(queue, job_id, uid)
        return "ready" if state == "delayed" and self.broker.is_due(job_id) else state

    def runs_elsewhere(self) -> bool:
        """Whether another thread drains the queues."""
        return bool(self.broker.draining - {threading.get_ident()})

    def clear(self) -> None:
        """Reset: forget all jobs, and set the time back to 0."""
        self.broker.event_loop.close()
        self.broker = MemoryBroker()
