"""The measures taken of the contenders: throughput, scheduling, and the time from a call to the start of its task."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import stamps
from contenders import Contender
from figures import Figure
from stage import Cores, set_up

ONE_WORKER = "one worker, no-op tasks"
ONE_WORKER_APART = "one worker, its broker on another core, no-op tasks"
TWO_WORKERS = "two workers, no-op tasks"
ENQUEUE = "enqueue, one by one"
ENQUEUE_APART = "enqueue, one by one, the broker on another core"
ENQUEUE_MANY = "enqueue, 100,000 at once"
MEMORY = "enqueue, 100,000 at once, peak of traced memory"
JOB_CPU = "CPU of a no-op job"
LOGGING_CPU = "CPU of a job that logs one line"
CALL_CPU = "CPU of a call"
KEYWORDS_CPU = "CPU of a call with keyword arguments"
MAP_CPU = "CPU of a call in a map of 5,000"
LATENCY = "put to start, idle worker, median"
LATENCY_P99 = "put to start, idle worker, p99"

OURS, PREFETCHING = "ours", "ours, --prefetch 8"
LOOP, PIPELINED, EIGHT = "bare greenstalk loop", "bare pipelined loop", "bare loop, eight at a time"
CELERY, CELERY_SOLO, DRAMATIQ, HUEY, RQ, RQ_SIMPLE = (
    "Celery",
    "Celery, solo",
    "Dramatiq",
    "Huey",
    "RQ",
    "RQ, SimpleWorker",
)
BARE = (LOOP, PIPELINED, EIGHT)
PEERS = (CELERY, CELERY_SOLO, DRAMATIQ, HUEY, RQ, RQ_SIMPLE)
CALLING_PEERS = (CELERY, DRAMATIQ, HUEY, RQ)  # the others differ only in their workers


@dataclass(frozen=True, slots=True)
class Effort:
    """How much to measure of each contender in each round."""

    rounds: int = 5
    seconds: float = 2.5
    many: int = 100_000
    paced: int = 200


# A value for each figure of a measure.
Values = tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Measure:
    """One figure, or several that result from the same work, of the contenders that have them."""

    names: tuple[str, ...]
    unit: str
    contenders: tuple[str, ...]
    take: Callable[[Contender, Effort], Values]

    def run(self, contenders: dict[str, Contender], effort: Effort) -> list[Figure]:
        """Measure all contenders in turn in each round, starting with another one each time."""
        present = [name for name in self.contenders if name in contenders]
        figures = {name: [Figure(figure, name, self.unit) for figure in self.names] for name in present}
        for number in range(effort.rounds):
            for name in rotated(present, number):
                for figure, value in zip(figures[name], self.take(contenders[name], effort), strict=True):
                    figure.values.append(value)
        return [figures[name][index] for index in range(len(self.names)) for name in present]


def rotated(names: Sequence[str], by: int) -> list[str]:
    return [names[(index + by) % len(names)] for index in range(len(names))]


class Throughput:
    """Jobs a second that a number of workers do from a queue filled before they start, see :func:`stamps.rate`."""

    def __init__(self, workers: int, cores: Cores = Cores.ANY) -> None:
        self._workers = workers
        self._cores = cores
        self._rates: dict[str, float] = {}  # the last measured value

    def __call__(self, contender: Contender, effort: Effort) -> Values:
        expected = self._rates.get(contender.name, contender.rate * self._workers)
        count = max(100, round(expected * effort.seconds))
        with set_up(contender, self._cores) as stage:
            stage.call("fill", count)
            with stage.workers(self._workers):
                rate = stamps.rate(stage.run_all(count))
        self._rates[contender.name] = rate
        return (rate,)


def enqueue_each(contender: Contender, effort: Effort, cores: Cores = Cores.ANY) -> Values:
    """Return the calls a second, one by one, without workers."""
    with set_up(contender, cores) as stage:
        return (stage.call("each", effort.seconds / 2),)


def enqueue_many(contender: Contender, effort: Effort, cores: Cores = Cores.ANY) -> Values:
    """Return the jobs a second, all at once, without workers."""
    with set_up(contender, cores) as stage:
        return (stage.call("many", effort.many),)


def memory(contender: Contender, effort: Effort) -> Values:
    """Return the peak of traced memory during the scheduling, in MB: in a separate run, since tracing takes time."""
    with set_up(contender) as stage:
        return (stage.call("memory", effort.many),)


def latency(contender: Contender, effort: Effort, cores: Cores = Cores.ANY) -> Values:
    """Return the median and the p99 of the ms from just before a call to the start of its task."""
    with set_up(contender, cores) as stage, stage.workers(1):
        times = stage.pace(effort.paced)
    return statistics.median(times), statistics.quantiles(times, n=100, method="inclusive")[-1]


class JobCost:
    """The CPU time of a job, in the workers and the broker, with one worker and a queue filled before it starts.

    All are on one core, so that no work is hidden on another one, and the kernel's choice of cores has no effect.
    """

    def __init__(self, fill: str = "fill") -> None:
        self._fill = fill
        self._costs_us: dict[str, float] = {}  # the last measured value

    def __call__(self, contender: Contender, effort: Effort) -> Values:
        cost_us = self._costs_us.get(contender.name, 1e6 / contender.rate)
        count = max(100, round(effort.seconds / 2 / cost_us * 1e6))
        with set_up(contender, Cores.ONE) as stage:
            stage.call(self._fill, count)
            with stage.workers(1) as workers:
                cost_us = self._costs_us[contender.name] = stage.spend_on_jobs(count, workers)
        return (cost_us,)


def call_cost(contender: Contender, effort: Effort, how: str) -> Values:
    """Return the CPU time of a call, in the caller and the broker, both on one core; see ``calling.OPERATIONS``."""
    with set_up(contender, Cores.ONE) as stage:
        return (stage.spend(how, effort.seconds / 4),)


COSTS = (
    Measure((JOB_CPU,), "µs", (OURS, PREFETCHING, *BARE, *PEERS), JobCost()),
    Measure((LOGGING_CPU,), "µs", (OURS, LOOP, PIPELINED, *PEERS), JobCost("fill_logging")),
    Measure((CALL_CPU,), "µs", (OURS, LOOP, *CALLING_PEERS), partial(call_cost, how="call")),
    Measure((KEYWORDS_CPU,), "µs", (OURS, LOOP, *CALLING_PEERS), partial(call_cost, how="call_with_keywords")),
    Measure((MAP_CPU,), "µs", (OURS, PIPELINED, RQ), partial(call_cost, how="call_many")),
)
MEASURES = (
    Measure((ONE_WORKER,), "jobs/s", (OURS, PREFETCHING, *BARE), Throughput(1)),
    Measure((ONE_WORKER_APART,), "jobs/s", (OURS, PREFETCHING, *BARE), Throughput(1, Cores.APART)),
    Measure((TWO_WORKERS,), "jobs/s", (OURS, PREFETCHING, *PEERS), Throughput(2)),
    Measure((ENQUEUE,), "calls/s", (OURS, LOOP, *CALLING_PEERS), enqueue_each),
    Measure((ENQUEUE_APART,), "calls/s", (OURS, LOOP), partial(enqueue_each, cores=Cores.APART)),
    Measure((ENQUEUE_MANY,), "jobs/s", (OURS, PIPELINED), enqueue_many),
    Measure((MEMORY,), "MB", (OURS,), memory),
    Measure((LATENCY, LATENCY_P99), "ms", (OURS, LOOP, *PEERS), latency),
    *COSTS,
)
