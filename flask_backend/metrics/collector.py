"""The metrics: their names, types, labels and values.

A registry of its own has one collector, which reads the status page of one supervisor and, at each scrape, the broker.
Nothing is counted here: the counters are in the page, which outlives this process, and goes on through a reload.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from flask_backend.deaths import EXIT_REASONS
from flask_backend.operations.schedules import ScheduledQueue
from flask_backend.operations.supervisors import Counts, Queue, count_queues
from flask_backend.system import page
from flask_backend.system.page import BUCKETS, Found
from flask_backend.system.procfs import read_memory

from .queues import Answer, QueueState
from .serving import PageMissingError

OUTCOMES = ("done", "retried", "buried", "discarded", "expired", "crashed", "given_back")
WORKER_STATES = ("starting", "idle", "limited", "busy", "stopping")
SLOT_OUTCOMES = ("scheduled", "missed", "skipped")
JOB_STATES = ("ready", "reserved", "delayed", "buried")
# The endpoint of messages that could not be decoded, or name no task.
OTHER = "other"
# The bounds of the buckets, in seconds; the last one is infinite.
BOUNDS = (*(repr((1 << n) / 1000) for n in range(BUCKETS - 1)), "+Inf")
# How old the figure of all processes' memory may be: the system walks the page tables of each for it.
MEMORY_AGE_S = 10.0


@dataclass(frozen=True, slots=True)
class Identity:
    """What the metrics are about: a supervisor's pid, its app, and the version of this package."""

    supervisor_pid: int
    app: str
    version: str


class Exposition:
    """Renders all metrics."""

    def __init__(self, identity: Identity, ask_broker: Callable[[], Answer]) -> None:
        self._collectors = CollectorRegistry()
        self._collectors.register(SupervisorCollector(identity, ask_broker))

    def render(self, accept: str) -> tuple[bytes, str]:
        """Return the metrics in the format that this Accept header prefers, and its content type."""
        try:
            encode, content_type = choose_encoder(accept)
        except (TypeError, ValueError):  # prometheus-client 0.26 compares a version that is no number
            encode, content_type = choose_encoder("")
        return encode(self._collectors), content_type


class SupervisorCollector(Collector):
    """Collects the metrics of one supervisor."""

    def __init__(self, identity: Identity, ask_broker: Callable[[], Answer]) -> None:
        self._identity = identity
        self._ask_broker = ask_broker
        self._memory = _Memory()

    def describe(self) -> Iterable[Metric]:
        """Return nothing: otherwise the registry would collect at once to learn the names."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """Yield all metrics; raise :exc:`PageMissingError` if the supervisor has no status page."""
        answer = self._ask_broker()  # first, since this may take time, and the page is that of the moment
        found = page.find(self._identity.supervisor_pid).get(self._identity.supervisor_pid)
        if found is None:
            raise PageMissingError("the supervisor has no status page that can be read")
        facts = found.page.facts()
        queues = count_queues(found, facts)
        yield from self._of_supervisor(found, facts)
        yield from _of_jobs(found, queues)
        yield from _of_workers(queues)
        yield from _of_broker(answer, sum(queue.reconnects for queue in queues.values()))

    def _of_supervisor(self, found: Found, facts: Mapping[str, Any]) -> Iterator[Metric]:
        info = GaugeMetricFamily(
            "flask_backend_info",
            "The supervisor; the value is always 1.",
            labels=("version", "app", "generation"),
        )
        info.add_metric((self._identity.version, _clean(self._identity.app), str(found.page.generation)), 1)
        yield info
        reloads = CounterMetricFamily("flask_backend_reloads", "Reloads by result.", labels=("result",))
        for result, count in {"done": 0, "refused": 0, **facts.get("reloads", {})}.items():
            reloads.add_metric((result,), count)
        yield reloads
        frozen = GaugeMetricFamily(
            "flask_backend_frozen_seconds", "How long the supervisor has been frozen; 0 if it is not."
        )
        frozen.add_metric((), found.frozen_s or 0)
        yield frozen
        if (pss_bytes := self._memory.pss_bytes(found)) is not None:
            pss = GaugeMetricFamily(
                "flask_backend_pss_bytes", "The memory of the supervisor and its workers, shared pages counted once."
            )
            pss.add_metric((), pss_bytes)
            yield pss


def _of_jobs(found: Found, queues: Mapping[str, Queue]) -> Iterator[Metric]:
    jobs = CounterMetricFamily(
        "flask_backend_jobs", "Attempts at jobs by outcome.", labels=("queue", "endpoint", "outcome")
    )
    durations = HistogramMetricFamily(
        "flask_backend_job_duration_seconds",
        "The time of attempts that a worker settled.",
        labels=("queue", "endpoint"),
    )
    waits = HistogramMetricFamily(
        "flask_backend_job_wait_seconds",
        "How long jobs waited for their first attempt after they were due.",
        labels=("queue",),
    )
    running = GaugeMetricFamily(
        "flask_backend_job_running_seconds_max",
        "How long the job that has run longest has been running; 0 without one.",
        labels=("queue",),
    )
    names = _endpoints(found)
    for name, queue in queues.items():
        for endpoint in names.get(name, ()):
            counts = queue.tasks.get(endpoint, Counts())
            labels = (_clean(name), OTHER if endpoint == "?" else _clean(endpoint))
            for outcome in OUTCOMES:
                jobs.add_metric((*labels, outcome), _count_of(counts, outcome))
            if any(counts.durations):
                durations.add_metric(labels, _buckets(counts.durations), counts.busy_s)
        counted = [Counts(), *queue.tasks.values()]
        waits_s = sum(counts.waited_s for counts in counted)
        waits.add_metric(
            (_clean(name),), _buckets([sum(n) for n in zip(*(each.waits for each in counted), strict=True)]), waits_s
        )
        running.add_metric((_clean(name),), queue.longest_s)
    yield from (jobs, durations, waits, running)


def _of_workers(queues: Mapping[str, Queue]) -> Iterator[Metric]:
    workers = GaugeMetricFamily("flask_backend_workers", "Workers by state.", labels=("queue", "state"))
    wanted = GaugeMetricFamily("flask_backend_workers_wanted", "How many workers there should be.", labels=("queue",))
    exits = CounterMetricFamily("flask_backend_worker_exits", "Exits of workers by reason.", labels=("queue", "reason"))
    private = GaugeMetricFamily(
        "flask_backend_worker_private_bytes_max",
        "The private memory of the largest worker, as last read.",
        labels=("queue",),
    )
    for name, queue in queues.items():
        for state in WORKER_STATES:
            workers.add_metric((_clean(name), state), queue.states[state])
        wanted.add_metric((_clean(name),), queue.wanted)
        for reason in EXIT_REASONS:
            exits.add_metric((_clean(name), reason), queue.exits.get(reason, 0))
        private.add_metric((_clean(name),), queue.most_private_bytes)
    yield from (workers, wanted, exits, private)


def _of_broker(answer: Answer, reconnects: int) -> Iterator[Metric]:
    up = GaugeMetricFamily(
        "flask_backend_broker_up", "Whether the broker has answered this scrape.", labels=("server",)
    )
    up.add_metric((answer.server,), answer.queues is not None)
    yield up
    again = CounterMetricFamily(
        "flask_backend_broker_reconnects", "How often workers have connected again.", labels=("server",)
    )
    again.add_metric((answer.server,), reconnects)
    yield again
    if answer.queues is not None:
        yield from _of_queues(answer.queues)
        yield from _of_schedules(answer.scheduled)


def _of_queues(states: Sequence[QueueState]) -> Iterator[Metric]:
    jobs = GaugeMetricFamily("flask_backend_queue_jobs", "Jobs on the broker by state.", labels=("queue", "state"))
    waits = GaugeMetricFamily(
        "flask_backend_queue_next_wait_seconds",
        "How long the next ready job has waited; 0 without one, and missing if the broker does not know.",
        labels=("queue",),
    )
    watchers = GaugeMetricFamily(
        "flask_backend_queue_watchers", "Connections that would take a job of the queue.", labels=("queue",)
    )
    paused = GaugeMetricFamily(
        "flask_backend_queue_paused_seconds", "How long the queue is still paused.", labels=("queue",)
    )
    for each in states:
        for state in JOB_STATES:
            jobs.add_metric((each.name, state), getattr(each, state))
        if each.next_wait_s is not None:
            waits.add_metric((each.name,), each.next_wait_s)
        watchers.add_metric((each.name,), each.watchers)
        paused.add_metric((each.name,), each.paused_s)
    yield from (jobs, waits, watchers, paused)


def _of_schedules(queues: Sequence[ScheduledQueue]) -> Iterator[Metric]:
    schedulers = GaugeMetricFamily(
        "flask_backend_schedule_schedulers",
        "Schedulers that watch the periodic tasks of the queue, on all hosts.",
        labels=("queue",),
    )
    last = GaugeMetricFamily(
        "flask_backend_schedule_last_run_timestamp_seconds",
        "The time for which the periodic task was last scheduled; missing before the first one.",
        labels=("queue", "schedule"),
    )
    following = GaugeMetricFamily(
        "flask_backend_schedule_next_run_timestamp_seconds",
        "The time for which the periodic task is to be scheduled next; missing while it is paused.",
        labels=("queue", "schedule"),
    )
    slots = CounterMetricFamily(
        "flask_backend_schedule_slots",
        "Times at which the periodic task was due, by what became of them.",
        labels=("queue", "schedule", "outcome"),
    )
    for queue in queues:
        schedulers.add_metric((queue.name,), queue.schedulers)
        for each in queue.schedules:
            labels = (queue.name, _clean(each.name))
            if each.last is not None:
                last.add_metric(labels, each.last)
            if each.next is not None:
                following.add_metric(labels, each.next)
            for outcome in SLOT_OUTCOMES:
                slots.add_metric((*labels, outcome), getattr(each, outcome))
    yield from (schedulers, last, following, slots)


class _Memory:
    """The memory of all processes of a supervisor, as it was some seconds ago at most."""

    def __init__(self) -> None:
        self._read_at = float("-inf")
        self._pss_bytes: int | None = None

    def pss_bytes(self, found: Found) -> int | None:
        """Return the sum, or None if one of them cannot be read."""
        now = time.monotonic()
        if now - self._read_at > MEMORY_AGE_S:
            self._read_at = now
            rows = (row for each in found.pages for queue in each.queues for row in queue.workers)
            memories = [read_memory(pid) for pid in (found.pid, *(row.pid for row in rows))]
            known = [memory.pss_bytes for memory in memories if memory]
            self._pss_bytes = sum(known) if len(known) == len(memories) else None
        return self._pss_bytes


def _endpoints(found: Found) -> dict[str, list[str]]:
    """Return the names of the tasks of each queue, also those that it had before a reload."""
    names: dict[str, dict[str, None]] = {}
    for each in found.pages:
        for queue, labels in each.labels().items():
            names.setdefault(queue, {}).update(dict.fromkeys(labels))
    return {queue: list(labels) for queue, labels in names.items()}


def _count_of(counts: Counts, outcome: str) -> int:
    return counts.done - counts.discarded if outcome == "done" else getattr(counts, outcome)


def _buckets(counts: Sequence[int]) -> list[tuple[str, float]]:
    return [(bound, float(count)) for bound, count in zip(BOUNDS, accumulate(counts), strict=True)]


def _clean(name: str) -> str:
    """Return a name that can be encoded: the app's may hold anything."""
    return name.encode(errors="backslashreplace").decode()
