"""Compare queue length and latency with arrival rate, workers and service time: simulated, by formula, and for real.

Usage: python benchmarks/simulation.py --rate 85 --workers 2 --service-ms 20 [--shape fixed | --service-file FILE]
       python benchmarks/simulation.py --rate 85 --service-ms 20 --want-p95-ms 100
       python benchmarks/simulation.py --table
       python benchmarks/simulation.py --check [--prefetch N]

The first form prints utilisation, queue length and latency of jobs that arrive at random; the second how many workers
start 95 of 100 jobs within the wanted time; --table the waits of many loads, by formula. ``--check`` runs sleeping jobs
on real workers of a real supervisor, with its own beanstalkd, gives the simulation the same arrivals and service
times, and fails if the means differ by more than 15 %. See docs/explain/scaling.md.
"""

from __future__ import annotations

import argparse
import heapq
import json
import math
import os
import random
import statistics
import sys
import tempfile
import threading
import time
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from flask import Flask

# -- formulas ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Load:
    """Jobs that arrive at random, ``rate`` a second, at ``workers`` that take ``service_s`` for one, on average.

    ``variability`` is the service time's variance over the square of its mean: 1 for exponential times, for which all
    results are exact (M/M/c); 0 for fixed ones. For other values the waits are Allen and Cunneen's approximation.
    Waits are infinite for a utilisation of 1 or more.
    """

    rate: float
    workers: int
    service_s: float
    variability: float = 1.0

    @property
    def utilisation(self) -> float:
        return self.rate * self.service_s / self.workers

    @property
    def waiting_probability(self) -> float:
        """The probability that a job finds all workers busy: Erlang's C."""
        if self.utilisation >= 1:
            return 1.0
        offered = self.rate * self.service_s
        blocking = 1.0  # Erlang's B, by recursion: its sums of powers and factorials overflow
        for workers in range(1, self.workers + 1):
            blocking = offered * blocking / (workers + offered * blocking)
        return blocking / (1 - self.utilisation * (1 - blocking))

    @property
    def mean_wait_s(self) -> float:
        """From scheduled to started."""
        return self.waiting_probability * self._wait_of_those_that_wait_s

    @property
    def mean_queue(self) -> float:
        """Jobs that wait, by Little's law."""
        return self.rate * self.mean_wait_s

    def wait_quantile_s(self, share: float) -> float:
        """Return the wait that the given share of the jobs, from 0 to 1, does not exceed."""
        if self.waiting_probability <= 1 - share:
            return 0.0
        return self._wait_of_those_that_wait_s * math.log(self.waiting_probability / (1 - share))

    @property
    def _wait_of_those_that_wait_s(self) -> float:
        if self.utilisation >= 1:
            return math.inf
        return self.service_s / (self.workers * (1 - self.utilisation)) * (1 + self.variability) / 2


def workers_needed(rate: float, service_s: float, wait_s: float, variability: float = 1.0, share: float = 0.95) -> int:
    """Return how many workers keep the wait of the given share of the jobs at or below ``wait_s``."""
    workers = int(rate * service_s) + 1
    while Load(rate, workers, service_s, variability).wait_quantile_s(share) > wait_s:
        workers += 1
    return workers


# -- arrivals and service times ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Service:
    """How long tasks take: how to draw a time, and the statistics of the times."""

    mean_s: float
    variability: float
    draw: Callable[[random.Random], float]

    @classmethod
    def fixed(cls, mean_s: float) -> Service:
        return cls(mean_s, 0.0, lambda _: mean_s)

    @classmethod
    def exponential(cls, mean_s: float) -> Service:
        return cls(mean_s, 1.0, lambda rng: rng.expovariate(1 / mean_s))

    @classmethod
    def measured(cls, times_s: Sequence[float]) -> Service:
        mean_s = statistics.fmean(times_s)
        return cls(mean_s, statistics.pvariance(times_s, mean_s) / mean_s**2, lambda rng: rng.choice(times_s))


def poisson(rate: float, seconds: float, rng: random.Random) -> Iterator[float]:
    """Yield arrival times at random, ``rate`` a second on average."""
    at = rng.expovariate(rate)
    while at < seconds:
        yield at
        at += rng.expovariate(rate)


@dataclass(frozen=True, slots=True)
class Overhead:
    """The overhead of a job for its worker beside the task, in seconds, as ``--check`` measures it."""

    idle_s: float = 0.0  # from scheduled to started, in an idle worker
    busy_s: float = 0.0  # from the end of one task to the start of the next, in a worker that finds a job waiting
    held_s: float = 0.0  # the same, to the start of a job that the worker already holds, see --prefetch


@dataclass(frozen=True, slots=True)
class Retries:
    """How many attempts fail, and how many seconds later the next one follows: ``backoff_s(attempt)``, from 1."""

    share: float
    max_retries: int
    backoff_s: Callable[[int], float]

    @property
    def attempts_per_job(self) -> float:
        return sum(self.share**n for n in range(self.max_retries + 1))


# -- the simulation ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Summary:
    mean: float
    p95: float
    p99: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Summary:
        return cls.of_weighted((value, 1.0) for value in values)

    @classmethod
    def of_weighted(cls, pairs: Iterable[tuple[float, float]]) -> Summary:
        """Summarise weighted values: for instance a queue's length, weighted by how long it lasted."""
        ordered = sorted(pairs)
        total = math.fsum(weight for _, weight in ordered)
        mean = math.fsum(value * weight for value, weight in ordered) / total
        quantiles: list[float] = []
        for share in (0.95, 0.99):
            so_far = 0.0
            for value, weight in ordered:
                so_far += weight
                if so_far >= share * total * (1 - 1e-12):
                    quantiles.append(value)
                    break
        return cls(mean, *quantiles)


@dataclass(slots=True)
class Trace:
    """The events, simulated or real, in seconds from the beginning. Jobs are in the order of arrival."""

    arrivals: list[float]
    starts: list[float] = field(default_factory=list[float])  # of the first attempts
    ends: list[float] = field(default_factory=list[float])  # of the last ones
    queue: list[tuple[float, int]] = field(default_factory=list[tuple[float, int]])  # its length from each time on
    busy: list[tuple[float, float]] = field(default_factory=list[tuple[float, float]])  # start and end of each attempt
    attempts: int = 0
    buried: int = 0

    def to_started(self, since_s: float = 0.0) -> Summary:
        return self._latency(self.starts, since_s)

    def to_finished(self, since_s: float = 0.0) -> Summary:
        return self._latency(self.ends, since_s)

    def queue_length(self, since_s: float = 0.0) -> Summary:
        """Jobs that wait for a worker, until the last one has arrived."""
        until_s = self.arrivals[-1]
        ends = [at for at, _ in self.queue[1:]] + [until_s]
        return Summary.of_weighted(
            (length, min(end, until_s) - max(at, since_s))
            for (at, length), end in zip(self.queue, ends, strict=True)
            if min(end, until_s) > max(at, since_s)
        )

    def queue_length_at(self, moment_s: float) -> int:
        index = bisect_right(self.queue, (moment_s, math.inf))
        return self.queue[index - 1][1] if index else 0

    def utilisation(self, workers: int, since_s: float = 0.0) -> float:
        until_s = self.arrivals[-1]
        busy_s = math.fsum(max(0.0, min(end, until_s) - max(begin, since_s)) for begin, end in self.busy)
        return busy_s / (workers * (until_s - since_s))

    def _latency(self, moments: list[float], since_s: float) -> Summary:
        return Summary.of(
            moment - arrival for arrival, moment in zip(self.arrivals, moments, strict=True) if arrival >= since_s
        )


class Simulation:
    """Workers that take the jobs of one queue, the oldest first, as Beanstalkd hands them out.

    ``service_s(job)`` is called once for each attempt. A worker takes up to ``prefetch`` waiting jobs at a time, and
    runs them one after the other.
    """

    def __init__(  # noqa: PLR0913  what there is to say of a queue
        self,
        arrivals: Iterable[float],
        service_s: Callable[[int], float],
        workers: int,
        *,
        overhead: Overhead = Overhead(),
        prefetch: int = 1,
        retries: Retries | None = None,
        rng: random.Random | None = None,
    ) -> None:
        self._trace = Trace(list(arrivals))
        self._service_s = service_s
        self._idle = workers
        self._overhead = overhead
        self._prefetch = prefetch
        self._retries = retries
        self._rng = rng or random.Random(0)
        self._ready: list[int] = []  # a heap: a retried job goes ahead of later arrivals
        self._attempt = [0] * len(self._trace.arrivals)
        # The next events: the time, and the job that becomes ready, or None if a worker becomes free.
        self._events: list[tuple[float, int, int | None]] = []
        self._count = 0  # keeps simultaneous events in order

    def run(self) -> Trace:
        """Simulate until the last job has ended."""
        trace = self._trace
        trace.starts = [math.nan] * len(trace.arrivals)
        trace.ends = [math.nan] * len(trace.arrivals)
        for job, at in enumerate(trace.arrivals):
            self._plan(at, job)
        while self._events:
            now, _, ready = heapq.heappop(self._events)
            if ready is None:
                self._become_free(now)
            else:
                self._become_ready(now, ready)
        return trace

    def _plan(self, at: float, job: int | None) -> None:
        heapq.heappush(self._events, (at, self._count, job))
        self._count += 1

    def _become_ready(self, now: float, job: int) -> None:
        heapq.heappush(self._ready, job)
        if self._idle:
            self._idle -= 1
            self._take(now, now + self._overhead.idle_s)
        self._note_queue(now)

    def _become_free(self, now: float) -> None:
        if self._ready:
            self._take(now, now)
            self._note_queue(now)
        else:
            self._idle += 1

    def _take(self, now: float, start: float) -> None:
        """Have a worker take waiting jobs, and run them from ``start`` on."""
        end = start
        for _ in range(min(self._prefetch, len(self._ready))):
            end = start + self._attempt_job(heapq.heappop(self._ready), start)
            start = end + self._overhead.held_s
        free = end + self._overhead.busy_s
        self._trace.busy.append((now, free))
        self._plan(free, None)

    def _attempt_job(self, job: int, start: float) -> float:
        """Return how long the job takes."""
        service_s = self._service_s(job)
        end = start + service_s
        trace = self._trace
        trace.attempts += 1
        self._attempt[job] += 1
        if self._attempt[job] == 1:
            trace.starts[job] = start
        if self._retries is not None and self._rng.random() < self._retries.share:
            if self._attempt[job] <= self._retries.max_retries:
                self._plan(end + self._retries.backoff_s(self._attempt[job]), job)
                return service_s
            trace.buried += 1
        trace.ends[job] = end
        return service_s

    def _note_queue(self, now: float) -> None:
        self._trace.queue.append((now, len(self._ready)))


def simulate(  # noqa: PLR0913  likewise
    rate: float,
    service: Service,
    workers: int,
    seconds: float,
    *,
    seed: int = 1,
    overhead: Overhead = Overhead(),
    prefetch: int = 1,
    retries: Retries | None = None,
) -> Trace:
    """Simulate ``seconds`` of jobs that arrive at random, and the time needed to finish them."""
    # A separate random source for each: another number of workers meets the same jobs.
    arrivals = list(poisson(rate, seconds, random.Random(f"arrivals {seed}")))
    times_rng = random.Random(f"times {seed}")
    times = [service.draw(times_rng) for _ in arrivals]
    return Simulation(
        arrivals,
        times.__getitem__,
        workers,
        overhead=overhead,
        prefetch=prefetch,
        retries=retries,
        rng=random.Random(f"failures {seed}"),
    ).run()


def retries_like_ours(share: float, seed: int) -> Retries:
    """Return retries that follow the default policy of the extension."""
    from flask_backend.retry import DEFAULT_RETRY, Attempts

    rng = random.Random(f"backoff {seed}")
    return Retries(
        share,
        DEFAULT_RETRY.max_retries or 0,
        lambda attempt: DEFAULT_RETRY.backoff_s(Attempts(releases=attempt - 1, buries=0), rng.random),
    )


# -- the check against a real run ----------------------------------------------------------------------------

QUEUE = "com.example/default"
TOLERANCE = 0.15
SAMPLE_S = 0.01  # between two samples of the queue


def create_app() -> Flask:
    """Return the app that the check's workers run: its task sleeps, and records when it ran."""
    from flask import Flask

    from flask_backend import Backend

    app = Flask(__name__)
    ledger = os.open(os.environ["LEDGER"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    @Backend(app).task(QUEUE)
    def work(number: int, seconds: float) -> None:
        start = time.monotonic()  # one clock for all processes of a machine
        time.sleep(seconds)
        note = {"job": number, "pid": os.getpid(), "start": start, "end": time.monotonic()}
        os.write(ledger, json.dumps(note).encode() + b"\n")

    return app


@dataclass(frozen=True, slots=True)
class RealRun:
    """The results of real workers: the trace, which worker ran each job, and samples of the queue's length."""

    trace: Trace
    pids: list[int]
    samples: list[tuple[float, int]]

    @property
    def services(self) -> list[float]:
        return [end - start for start, end in zip(self.trace.starts, self.trace.ends, strict=True)]

    @property
    def sampled_queue_length(self) -> float:
        return statistics.fmean(length for _, length in self.samples)

    def gaps(self) -> list[float]:
        """Return the gaps between consecutive tasks of a worker."""
        by_pid: defaultdict[int, list[tuple[float, float]]] = defaultdict(list)
        for pid, start, end in zip(self.pids, self.trace.starts, self.trace.ends, strict=True):
            by_pid[pid].append((start, end))
        return [after[0] - before[1] for runs in by_pid.values() for before, after in pairwise(sorted(runs))]


class RealWorkers:
    """A beanstalkd and a supervisor with its workers."""

    def __init__(self, workers: int, folder: Path, *options: str) -> None:
        sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
        from support.beanstalkd import RealBeanstalkd
        from support.supervised import Supervised

        self._broker = RealBeanstalkd()
        self._supervised = Supervised(self._broker, folder, *options, workers=workers, app=__file__)

    def __enter__(self) -> Self:
        self._supervised.wait_ready()
        return self

    def __exit__(self, *_: object) -> None:
        self._supervised.end()
        self._broker.stop()

    def run(self, arrivals: Sequence[float], services: Sequence[float]) -> RealRun:
        """Put sleeping jobs at the given times with the given durations, and wait until all are done."""
        from support.waiting import wait_until

        begin = time.monotonic()
        samples: list[tuple[float, int]] = []
        is_over = threading.Event()
        sampler = threading.Thread(target=self._sample, args=(begin, is_over, samples))
        sampler.start()
        try:
            puts = self._put(begin, arrivals, services)
        finally:
            is_over.set()
            sampler.join()
        wait_until(lambda: self._broker.is_empty(QUEUE), "all jobs are done", 60 + sum(services))
        notes = sorted(self._notes()[-len(arrivals) :], key=lambda note: note["job"])
        trace = Trace(
            puts,
            [note["start"] - begin for note in notes],
            [note["end"] - begin for note in notes],
            attempts=len(notes),
        )
        return RealRun(trace, [note["pid"] for note in notes], samples)

    def _put(self, begin: float, arrivals: Sequence[float], services: Sequence[float]) -> list[float]:
        """Return the times when the puts began; the machine delays some."""
        puts: list[float] = []
        with self._broker.client(QUEUE) as client:
            for number, (at, service_s) in enumerate(zip(arrivals, services, strict=True)):
                body = json.dumps({"endpoint": "work", "args": [number, service_s]}).encode()
                time.sleep(max(0.0, begin + at - time.monotonic()))
                puts.append(time.monotonic() - begin)
                client.put(body)
        return puts

    def _sample(self, begin: float, is_over: threading.Event, samples: list[tuple[float, int]]) -> None:
        with self._broker.client(QUEUE) as client:
            while not is_over.wait(SAMPLE_S):
                asked = time.monotonic()
                length = int(client.stats_tube(QUEUE)["current-jobs-ready"])
                samples.append(((asked + time.monotonic()) / 2 - begin, length))

    def _notes(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self._supervised.ledger]


def measure_overhead(workers: RealWorkers, service: Service, count: int, rng: random.Random) -> Overhead:
    """Measure what workers need beside their tasks: by jobs that find them idle, and by jobs that all wait."""
    jobs = 200
    times = [service.draw(rng) for _ in range(jobs)]
    # Each job arrives when the previous one is surely done.
    apart = [sum(times[:n]) + n * 2 * service.mean_s for n in range(jobs)]
    idle = workers.run(apart, times)
    jobs *= count
    busy = workers.run([0.0] * jobs, [service.draw(rng) for _ in range(jobs)])
    gap_s = statistics.fmean(busy.gaps())
    return Overhead(idle.trace.to_started().mean, gap_s, gap_s)


@dataclass(frozen=True, slots=True)
class Comparison:
    """A quantity of a real run beside the simulation's; ``formula`` is for comparison only."""

    name: str
    real: float
    simulated: float
    formula: float | None = None
    is_binding: bool = True

    @property
    def difference(self) -> float:
        return self.simulated / self.real - 1

    @property
    def is_close(self) -> bool:
        return not self.is_binding or abs(self.difference) <= TOLERANCE

    def __str__(self) -> str:
        formula = "" if self.formula is None else f"{self.formula:10.2f}"
        mark = "" if self.is_close else f"   over {TOLERANCE:.0%}"
        return f"  {self.name:<30}{self.real:10.2f}{self.simulated:11.2f}{self.difference:+11.1%}{formula}{mark}"


def compare(real: RealRun, workers: int, overhead: Overhead, prefetch: int = 1) -> list[Comparison]:
    """Simulate the arrivals and service times of a real run, and compare the results."""
    service_s = real.services.__getitem__
    trace = Simulation(real.trace.arrivals, service_s, workers, overhead=overhead, prefetch=prefetch).run()
    rate = len(trace.arrivals) / trace.arrivals[-1]
    seen = Service.measured(real.services)
    load = Load(rate, workers, seen.mean_s + overhead.busy_s, seen.variability)
    length = statistics.fmean(trace.queue_length_at(at) for at, _ in real.samples)
    ran, ours = real.trace, trace
    in_formula = load.mean_wait_s * 1000
    return [
        Comparison("scheduled to started, ms", ran.to_started().mean * 1000, ours.to_started().mean * 1000, in_formula),
        Comparison(
            "scheduled to finished, ms",
            ran.to_finished().mean * 1000,
            ours.to_finished().mean * 1000,
            in_formula + seen.mean_s * 1000,
        ),
        Comparison(
            "started, p95, ms",
            ran.to_started().p95 * 1000,
            ours.to_started().p95 * 1000,
            load.wait_quantile_s(0.95) * 1000,
            is_binding=False,
        ),
        Comparison("queue, by stats-tube", real.sampled_queue_length, length, load.mean_queue),
        Comparison("queue, by Little's law", rate * ran.to_started().mean, rate * ours.to_started().mean),
    ]


def check(options: argparse.Namespace) -> bool:
    """Return whether the simulation agrees with real workers, and print both."""
    service = service_of(options)
    workers: int = options.workers or 2
    rng = random.Random(options.seed)
    prefetching = ("--prefetch", str(options.prefetch)) if options.prefetch > 1 else ()
    with tempfile.TemporaryDirectory() as folder, RealWorkers(workers, Path(folder), *prefetching) as real_workers:
        overhead = measure_overhead(real_workers, service, workers, rng)
        print(
            f"{workers} workers, tasks of {service.mean_s * 1000:g} ms ({options.shape}); measured beforehand:\n"
            f"  put to start {overhead.idle_s * 1000:.2f} ms in an idle worker, "
            f"{overhead.busy_s * 1000:.2f} ms between two tasks of a busy one"
        )
        comparisons: list[Comparison] = []
        for utilisation in options.utilisations:
            rate = utilisation * workers / service.mean_s
            arrivals = list(poisson(rate, options.seconds or 40, rng))
            run = real_workers.run(arrivals, [service.draw(rng) for _ in arrivals])
            print(f"utilisation {utilisation:g}: {rate:g} jobs/s, {len(arrivals)} jobs")
            print(f"  {'':<30}{'real':>10}{'simulated':>11}{'difference':>11}{'formula':>10}")
            here = compare(run, workers, overhead, options.prefetch)
            print(*here, sep="\n", flush=True)
            comparisons += here
    worst = max(abs(each.difference) for each in comparisons if each.is_binding)
    is_close = all(each.is_close for each in comparisons)
    print(f"largest difference of a mean: {worst:.1%}; {'agrees' if is_close else 'DOES NOT AGREE'}")
    return is_close


# -- the command line ----------------------------------------------------------------------------------------


def service_of(options: argparse.Namespace) -> Service:
    if options.service_file is not None:
        return Service.measured([float(line) / 1000 for line in options.service_file.read_text().split()])
    return {"fixed": Service.fixed, "exponential": Service.exponential}[options.shape](options.service_ms / 1000)


def show(options: argparse.Namespace, workers: int) -> Trace:
    """Simulate, print the result beside the formulas, and return it."""
    service = service_of(options)
    overhead = Overhead(options.idle_ms / 1000, options.busy_ms / 1000, options.held_ms / 1000)
    retries = retries_like_ours(options.fail, options.seed) if options.fail else None
    seconds: float = options.seconds or 600
    trace = simulate(
        options.rate,
        service,
        workers,
        seconds,
        seed=options.seed,
        overhead=overhead,
        prefetch=options.prefetch,
        retries=retries,
    )
    since_s = seconds / 10  # after this time the queue has its usual length
    rate = options.rate * (retries.attempts_per_job if retries else 1)
    load = Load(rate, workers, service.mean_s + overhead.busy_s, service.variability)
    print(f"{options.rate:g} jobs/s, {workers} workers, {seconds:g} s: {len(trace.arrivals)} jobs", end="")
    print(f", {trace.attempts} attempts, {trace.buried} buried" if retries else "")
    beside_s = (overhead.busy_s + overhead.held_s * (options.prefetch - 1)) / options.prefetch
    if rate > (most := workers / (service.mean_s + beside_s)):
        print(f"more than the workers can do: the queue grows by {rate - most:.1f} jobs a second")
    formula = "formula: mean" if options.prefetch == 1 else "formula, no prefetch: mean"
    print(f"{'':<26}{'mean':>10}{'p95':>10}{'p99':>10}{formula:>28}{'p95':>10}")
    print(f"{'utilisation':<26}{trace.utilisation(workers, since_s):10.3f}{'':20}{load.utilisation:28.3f}")
    length, started, finished = (
        trace.queue_length(since_s),
        trace.to_started(since_s),
        trace.to_finished(since_s),
    )
    print(f"{'queue, jobs':<26}{length.mean:10.2f}{length.p95:10.0f}{length.p99:10.0f}{load.mean_queue:28.2f}")
    wait_ms, p95_ms = load.mean_wait_s * 1000, load.wait_quantile_s(0.95) * 1000
    print(f"{'scheduled to started, ms':<26}{_in_ms(started)}{wait_ms:28.1f}{p95_ms:10.1f}")
    print(f"{'scheduled to finished, ms':<26}{_in_ms(finished)}", end="")
    print("" if retries else f"{wait_ms + service.mean_s * 1000:28.1f}")
    return trace


def _in_ms(summary: Summary) -> str:
    return "".join(f"{value * 1000:10.1f}" for value in (summary.mean, summary.p95, summary.p99))


def advise(options: argparse.Namespace) -> None:
    """Print how many workers are needed by formula, and the simulated results for that number."""
    service = service_of(options)
    workers = workers_needed(
        options.rate, service.mean_s + options.busy_ms / 1000, options.want_p95_ms / 1000, service.variability
    )
    print(f"95 of 100 jobs started within {options.want_p95_ms:g} ms: {workers} workers by formula")
    show(options, workers)


def show_table() -> None:
    """Print by formula how long jobs wait, in multiples of the mean service time."""
    counts = (1, 2, 4, 8, 16, 32, 64)
    print(f"| utilisation | {' | '.join('1 worker' if count == 1 else str(count) for count in counts)} |")
    print(f"|---|{'---|' * len(counts)}")
    for utilisation in (0.5, 0.6, 0.7, 0.8, 0.9, 0.95):
        loads = [Load(utilisation * count, count, 1.0) for count in counts]
        cells = [f"{load.mean_wait_s:.2f}, {load.wait_quantile_s(0.95):.1f}" for load in loads]
        print(f"| {utilisation:g} | {' | '.join(cells)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=float, help="jobs a second, at random")
    parser.add_argument("--workers", type=int)
    parser.add_argument("--service-ms", type=float, default=20, help="how long a task takes, on average")
    parser.add_argument("--shape", choices=["exponential", "fixed"], default="exponential")
    parser.add_argument("--service-file", type=Path, help="measured times of tasks instead, in ms, one a line")
    parser.add_argument("--idle-ms", type=float, default=0, help="from put to start in an idle worker")
    parser.add_argument("--busy-ms", type=float, default=0, help="between two tasks of a worker")
    parser.add_argument("--held-ms", type=float, default=0, help="the same, if the worker already holds the next job")
    parser.add_argument("--prefetch", type=int, default=1, help="how many jobs a worker takes at a time")
    parser.add_argument("--fail", type=float, default=0, help="the share of attempts that fail, and are retried")
    parser.add_argument("--seconds", type=float, help="how long jobs come: 600, and with --check 40 for each load")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--want-p95-ms", type=float, help="print how many workers keep the wait below this")
    parser.add_argument("--table", action="store_true", help="mean and p95 of the wait, in service times")
    parser.add_argument("--check", action="store_true", help="compare with real workers")
    parser.add_argument("--utilisations", type=float, nargs="+", default=[0.5, 0.7, 0.85], help="for --check")
    options = parser.parse_args()
    if options.check:
        sys.exit(not check(options))
    if options.table:
        show_table()
        return
    if options.rate is None or (options.workers is None) == (options.want_p95_ms is None):
        parser.error("expected --rate with either --workers or --want-p95-ms, or --check")
    if options.want_p95_ms is not None:
        advise(options)
    else:
        show(options, options.workers)


if __name__ == "__main__":
    main()
