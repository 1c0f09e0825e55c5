"""Tubes, jobs and the clients that wait for them: all decisions of the broker. Pure: the time comes in as an argument.

Three invariants hold between calls. A tube that is not paused has ready jobs or waiting clients, never both. All timed
events are in the agenda. A tube exists while a client uses or watches it, or while it has jobs; ``default`` always
exists.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from itertools import islice

from .ordered import Key, Ordered

DEFAULT_TUBE = "default"
URGENT_BELOW = 1024  # jobs with a smaller priority value count as urgent
MARGIN_S = 1.0  # this long before a TTR expires, its holder does not wait for another job


class State(Enum):
    READY = "ready"
    DELAYED = "delayed"
    RESERVED = "reserved"
    BURIED = "buried"


class NoJob(Enum):
    """The result of a reserve without a job."""

    TIMED_OUT = "the timeout of the client has expired"
    DEADLINE_SOON = "the TTR of a job that the client holds is about to expire"


@dataclass(slots=True, eq=False)
class StoredJob:
    id: int
    tube: Tube
    body: bytes
    priority: int
    delay_s: int
    ttr_s: int
    created_at: float
    state: State = State.READY
    at: float = 0.0  # when a delayed job is due, a reserved one's TTR expires, a buried one was buried
    holder: Client | None = None
    reserves: int = 0
    timeouts: int = 0
    releases: int = 0
    buries: int = 0
    kicks: int = 0

    def time_left_s(self, now: float) -> float:
        """How long until the job becomes ready by itself."""
        return self.at - now if self.state in (State.DELAYED, State.RESERVED) else 0.0


@dataclass(slots=True, eq=False)
class Client:
    used: Tube
    watched: dict[Tube, None]
    held: dict[StoredJob, None] = field(default_factory=dict[StoredJob, None])
    is_waiting: bool = False
    is_half_closed: bool = False  # it has stopped sending and may be gone: its reserves do not wait
    is_producer: bool = False
    is_worker: bool = False


@dataclass(slots=True, eq=False)
class Tube:
    name: str
    ready: Ordered[StoredJob] = field(default_factory=Ordered[StoredJob])
    delayed: Ordered[StoredJob] = field(default_factory=Ordered[StoredJob])
    buried: dict[StoredJob, None] = field(default_factory=dict[StoredJob, None])
    waiting: dict[Client, None] = field(default_factory=dict[Client, None])
    urgent: int = 0
    reserved: int = 0
    using: int = 0
    watching: int = 0
    total_jobs: int = 0
    deletes: int = 0
    pauses: int = 0
    pause_s: int = 0  # the length of the current pause; 0 without one
    paused_until: float = 0.0

    @property
    def is_idle(self) -> bool:
        """Whether the tube can be dropped: it has neither jobs nor clients."""
        jobs = len(self.ready) + len(self.delayed) + len(self.buried) + self.reserved
        return not (jobs or self.using or self.watching)


class Store:
    """All tubes and jobs.

    ``answers`` collects the results for clients that had to wait; ``changed`` holds the changed jobs, or None for a
    deleted job. The caller reads both and clears them.
    """

    def __init__(self) -> None:
        self.tubes: dict[str, Tube] = {}
        self.jobs: dict[int, StoredJob] = {}
        self.clients: dict[Client, None] = {}
        self.next_id = 1
        self.total_jobs = 0
        self.timeouts = 0
        self.answers: list[tuple[Client, StoredJob | NoJob]] = []
        self.changed: dict[int, StoredJob | None] = {}
        self._agenda: Ordered[StoredJob | Client | Tube] = Ordered()
        self._tube(DEFAULT_TUBE)

    def restore(self, jobs: Iterable[StoredJob], next_id: int) -> None:
        """Restore the jobs of an earlier run. Buried jobs must come in the order in which they were buried.

        The next id is above all of theirs, even if ``next_id`` is not: a new job never replaces one.
        """
        for job in jobs:
            job.tube = self._tube(job.tube.name)
            self.jobs[job.id] = job
            self._enter(job, job.state, job.at)
        self.next_id = max(next_id, max(self.jobs, default=0) + 1)

    # -- the time --------------------------------------------------------------------------------------------

    def next_at(self) -> float | None:
        """Return the time of the next event in the agenda, if any."""
        first = self._agenda.first()
        return first[0][0] if first else None

    def advance(self, now: float) -> None:
        """Run everything that is due."""
        while (first := self._agenda.first()) and first[0][0] <= now:
            match first[1]:
                case StoredJob() as job:
                    if job.state is State.RESERVED:
                        job.timeouts += 1
                        self.timeouts += 1
                    self._make_ready(job, now)
                case Tube() as tube:
                    self._end_pause(tube, now)
                case Client() as client:
                    soon = self._has_deadline_soon(client, now)
                    self._answer(client, NoJob.DEADLINE_SOON if soon else NoJob.TIMED_OUT)

    # -- clients ---------------------------------------------------------------------------------------------

    def connect(self) -> Client:
        default = self._tube(DEFAULT_TUBE)
        default.using += 1
        default.watching += 1
        client = Client(default, {default: None})
        self.clients[client] = None
        return client

    def disconnect(self, client: Client, now: float) -> None:
        """Forget a client; the jobs that it holds become ready at once."""
        self._stop_waiting(client)
        del self.clients[client]
        held = list(client.held)
        for job in held:
            self._make_ready(job, now)
        client.used.using -= 1
        for tube in client.watched:
            tube.watching -= 1
        for tube in {client.used, *client.watched, *(job.tube for job in held)}:
            self._drop_if_idle(tube)

    def half_close(self, client: Client) -> None:
        """Record that the client has stopped sending."""
        client.is_half_closed = True
        if client.is_waiting:
            self._answer(client, NoJob.TIMED_OUT)

    def use(self, client: Client, name: str) -> None:
        tube, before = self._tube(name), client.used
        tube.using += 1
        before.using -= 1
        client.used = tube
        self._drop_if_idle(before)

    def watch(self, client: Client, name: str) -> None:
        tube = self._tube(name)
        if tube not in client.watched:
            client.watched[tube] = None
            tube.watching += 1

    def ignore(self, client: Client, name: str) -> bool:
        """Stop watching a tube. Return False if it is the only one that the client watches."""
        tube = self.tubes.get(name)
        if tube not in client.watched:
            return True
        if len(client.watched) == 1:
            return False
        del client.watched[tube]
        tube.watching -= 1
        self._drop_if_idle(tube)
        return True

    # -- jobs ------------------------------------------------------------------------------------------------

    def put(  # noqa: PLR0913  # a put has this many
        self, client: Client, priority: int, delay_s: int, ttr_s: int, body: bytes, now: float
    ) -> StoredJob:
        job = StoredJob(self.next_id, client.used, body, priority, delay_s, max(ttr_s, 1), created_at=now)
        self.next_id += 1
        self.jobs[job.id] = job
        job.tube.total_jobs += 1
        self.total_jobs += 1
        client.is_producer = True
        self._enter_queue(job, delay_s, now)
        self.changed[job.id] = job
        return job

    def reserve(self, client: Client, timeout_s: int | None, now: float) -> StoredJob | NoJob | None:
        """Return the next job of the tubes that the client watches, or None if the client has to wait for it.

        It waits at most ``timeout_s`` seconds, and the result comes later in ``answers``.
        """
        client.is_worker = True
        if job := self._next_job(client):
            return self._reserve(job, client, now)
        if self._has_deadline_soon(client, now):
            return NoJob.DEADLINE_SOON
        if timeout_s == 0 or client.is_half_closed:
            return NoJob.TIMED_OUT
        self._wait(client, timeout_s, now)
        return None

    def reserve_job(self, client: Client, job_id: int, now: float) -> StoredJob | None:
        job = self.jobs.get(job_id)
        if job is None or job.state is State.RESERVED:
            return None
        client.is_worker = True
        if job.state is not State.READY:
            self.changed[job_id] = job  # by itself it will not be delayed or buried again
        return self._reserve(job, client, now)

    def delete(self, client: Client, job_id: int) -> bool:
        """Delete a job. Return False if it does not exist or another client holds it."""
        job = self.jobs.get(job_id)
        if job is None or job.holder not in (None, client):
            return False
        self._leave(job)
        del self.jobs[job_id]
        job.tube.deletes += 1
        self.changed[job_id] = None
        self._drop_if_idle(job.tube)
        return True

    def release(self, client: Client, job_id: int, priority: int, delay_s: int, now: float) -> bool:
        job = self._held(client, job_id)
        if job is None:
            return False
        self._leave(job)
        job.priority, job.delay_s = priority, delay_s
        job.releases += 1
        self._enter_queue(job, delay_s, now)
        self.changed[job_id] = job
        return True

    def bury(self, client: Client, job_id: int, priority: int, now: float) -> bool:
        job = self._held(client, job_id)
        if job is None:
            return False
        self._leave(job)
        job.priority = priority
        job.buries += 1
        self._enter(job, State.BURIED, now)
        self.changed[job_id] = job
        return True

    def touch(self, client: Client, job_id: int, now: float) -> bool:
        job = self._held(client, job_id)
        if job is None:
            return False
        job.at = now + job.ttr_s
        self._agenda.set(job, (job.at, job.id))
        return True

    def kick(self, tube: Tube, bound: int, now: float) -> int:
        """Make at most ``bound`` buried jobs ready, or else delayed ones; return how many."""
        kicked = list(islice(tube.buried, bound)) or tube.delayed.smallest(bound)
        self._kick(kicked, now)
        return len(kicked)

    def kick_job(self, job_id: int, now: float) -> bool:
        job = self.jobs.get(job_id)
        if job is None or job.state not in (State.BURIED, State.DELAYED):
            return False
        self._kick([job], now)
        return True

    def pause(self, name: str, delay_s: int, now: float) -> bool:
        """Hand out no jobs of a tube for ``delay_s`` seconds. Return False if the tube does not exist."""
        tube = self.tubes.get(name)
        if tube is None:
            return False
        tube.pauses += 1
        tube.pause_s, tube.paused_until = delay_s, now + delay_s
        if delay_s:
            self._agenda.set(tube, (tube.paused_until, 0))
        else:
            self._end_pause(tube, now)
        return True

    # -- inner workings --------------------------------------------------------------------------------------

    def _tube(self, name: str) -> Tube:
        tube = self.tubes.get(name)
        if tube is None:
            tube = self.tubes[name] = Tube(name)
        return tube

    def _drop_if_idle(self, tube: Tube) -> None:
        if tube.is_idle and tube.name != DEFAULT_TUBE:
            del self.tubes[tube.name]
            self._agenda.discard(tube)

    def _held(self, client: Client, job_id: int) -> StoredJob | None:
        job = self.jobs.get(job_id)
        return job if job and job.holder is client else None

    def _leave(self, job: StoredJob) -> None:
        """Remove a job from its current state."""
        tube = job.tube
        match job.state:
            case State.READY:
                tube.ready.discard(job)
                tube.urgent -= job.priority < URGENT_BELOW
            case State.RESERVED:
                if job.holder:
                    del job.holder.held[job]
                job.holder = None
                tube.reserved -= 1
                self._agenda.discard(job)
            case State.DELAYED:
                tube.delayed.discard(job)
                self._agenda.discard(job)
            case State.BURIED:
                del tube.buried[job]

    def _enter(self, job: StoredJob, state: State, at: float = 0.0) -> None:
        """Put a job without a state into one."""
        tube = job.tube
        job.state, job.at = state, at
        match state:
            case State.READY:
                tube.ready.set(job, (job.priority, job.id))
                tube.urgent += job.priority < URGENT_BELOW
            case State.RESERVED:
                tube.reserved += 1
                self._agenda.set(job, (at, job.id))
            case State.DELAYED:
                tube.delayed.set(job, (at, job.id))
                self._agenda.set(job, (at, job.id))
            case State.BURIED:
                tube.buried[job] = None

    def _enter_queue(self, job: StoredJob, delay_s: int, now: float) -> None:
        """Make a job without a state ready, now or later."""
        if delay_s:
            self._enter(job, State.DELAYED, now + delay_s)
        else:
            self._enter(job, State.READY)
            self._hand_out(job.tube, now)

    def _make_ready(self, job: StoredJob, now: float) -> None:
        self._leave(job)
        self._enter_queue(job, 0, now)

    def _kick(self, jobs: Sequence[StoredJob], now: float) -> None:
        for job in jobs:
            job.kicks += 1
            self.changed[job.id] = job
            self._make_ready(job, now)

    def _reserve(self, job: StoredJob, client: Client, now: float) -> StoredJob:
        self._leave(job)
        job.holder = client
        client.held[job] = None
        job.reserves += 1
        self._enter(job, State.RESERVED, now + job.ttr_s)
        return job

    def _next_job(self, client: Client) -> StoredJob | None:
        """Return the most urgent ready job in the tubes that the client watches, the oldest of equals."""
        firsts = [first for tube in client.watched if not tube.pause_s and (first := tube.ready.first())]
        return min(firsts, key=_key_of)[1] if firsts else None

    def _hand_out(self, tube: Tube, now: float) -> None:
        """Give the ready jobs of a tube to the waiting clients, in the order in which they came."""
        while tube.waiting and not tube.pause_s and tube.ready.first():
            client = next(iter(tube.waiting))
            if job := self._next_job(client):
                self._answer(client, self._reserve(job, client, now))

    def _has_deadline_soon(self, client: Client, now: float) -> bool:
        return any(job.at - MARGIN_S <= now for job in client.held)

    def _wait(self, client: Client, timeout_s: int | None, now: float) -> None:
        client.is_waiting = True
        for tube in client.watched:
            tube.waiting[client] = None
        until = [job.at - MARGIN_S for job in client.held]
        if timeout_s is not None:
            until.append(now + timeout_s)
        if until:
            self._agenda.set(client, (min(until), 0))

    def _stop_waiting(self, client: Client) -> None:
        if client.is_waiting:
            client.is_waiting = False
            for tube in client.watched:
                del tube.waiting[client]
            self._agenda.discard(client)

    def _answer(self, client: Client, answer: StoredJob | NoJob) -> None:
        self._stop_waiting(client)
        self.answers.append((client, answer))

    def _end_pause(self, tube: Tube, now: float) -> None:
        tube.pause_s = 0
        self._agenda.discard(tube)
        self._hand_out(tube, now)


def _key_of(first: tuple[Key, StoredJob]) -> Key:
    return first[0]
