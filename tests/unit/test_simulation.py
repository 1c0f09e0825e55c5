"""The formulas and the simulation of benchmarks/simulation.py; its --check compares them with real workers."""

from __future__ import annotations

import importlib.util
import math
import random
import statistics
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from flask_backend import Retry

PATH = Path(__file__).parents[2] / "benchmarks" / "simulation.py"


@pytest.fixture(scope="module")
def simulation():
    spec = importlib.util.spec_from_file_location("simulation", PATH)
    module = importlib.util.module_from_spec(spec)
    sys.modules["simulation"] = module  # where dataclasses look for it
    spec.loader.exec_module(module)
    yield module
    del sys.modules["simulation"]


def test_one_worker_is_found_busy_as_often_as_it_is_busy(simulation):
    assert simulation.Load(rate=8, workers=1, service_s=0.1).waiting_probability == pytest.approx(0.8)


# From the textbook's sums, which are short for few workers: C(2, 1) = 1/3, C(3, 2) = 4/9.
@pytest.mark.parametrize(
    ("workers", "offered", "probability"),
    [(2, 1.0, 1 / 3), (3, 2.0, 4 / 9), (5, 4.0, 0.5541), (10, 8.0, 0.4092), (100, 90.0, 0.2171)],
)
def test_erlang_c_has_its_known_values(simulation, workers, offered, probability):
    load = simulation.Load(rate=offered, workers=workers, service_s=1.0)
    assert load.waiting_probability == pytest.approx(probability, abs=5e-4)
    assert load.waiting_probability == pytest.approx(erlang_c_by_sums(workers, offered))


def erlang_c_by_sums(workers, offered):
    terms = [offered**n / math.factorial(n) for n in range(workers)]
    last = offered**workers / math.factorial(workers) / (1 - offered / workers)
    return last / (sum(terms) + last)


def test_a_thousand_workers_overflow_nothing(simulation):
    load = simulation.Load(rate=980, workers=1000, service_s=1.0)
    assert 0 < load.waiting_probability < 1


def test_mean_wait_of_one_worker_matches_the_textbook(simulation):
    load = simulation.Load(rate=8, workers=1, service_s=0.1)
    assert load.mean_wait_s == pytest.approx(0.4)  # rho * s / (1 - rho)
    assert load.mean_queue == pytest.approx(3.2)  # rho² / (1 - rho)


def test_fixed_times_wait_half_as_long_before_one_worker(simulation):
    """Pollaczek and Khinchine's formula, which equals Allen and Cunneen's for one worker."""
    assert simulation.Load(8, 1, 0.1, variability=0).mean_wait_s == pytest.approx(0.2)


def test_quantiles_of_the_wait_match_its_distribution(simulation):
    load = simulation.Load(rate=8, workers=1, service_s=0.1)
    at = load.wait_quantile_s(0.95)
    assert 0.8 * math.exp(-(10 - 8) * at) == pytest.approx(0.05)  # P(W > t) of M/M/1
    assert load.wait_quantile_s(0.2) == 0  # jobs that find the worker idle


def test_more_jobs_than_the_workers_can_do_wait_forever(simulation):
    load = simulation.Load(rate=100, workers=2, service_s=0.02)
    assert load.utilisation == 1
    assert load.mean_wait_s == math.inf
    assert load.wait_quantile_s(0.95) == math.inf


def test_workers_needed_is_the_smallest_sufficient_number(simulation):
    for rate, wait_s in ((85, 0.1), (85, 0.01), (1000, 0.001), (0.5, 10.0)):
        needed = simulation.workers_needed(rate, 0.02, wait_s)
        assert simulation.Load(rate, needed, 0.02).wait_quantile_s(0.95) <= wait_s
        assert needed == 1 or simulation.Load(rate, needed - 1, 0.02).wait_quantile_s(0.95) > wait_s


@pytest.mark.parametrize(("utilisation", "workers"), [(0.5, 1), (0.7, 2), (0.85, 4)])
def test_simulation_agrees_with_erlang_within_the_standard_error(simulation, utilisation, workers):
    service = simulation.Service.exponential(1.0)
    rate = utilisation * workers
    load = simulation.Load(rate, workers, 1.0)
    traces = [simulation.simulate(rate, service, workers, 5_000 / rate, seed=seed) for seed in range(12)]
    since_s = 500 / rate
    waits = [trace.to_started(since_s).mean for trace in traces]
    assert_is_near(load.mean_wait_s, waits)
    assert_is_near(load.mean_queue, [trace.queue_length(since_s).mean for trace in traces])
    assert_is_near(load.utilisation, [trace.utilisation(workers, since_s) for trace in traces])
    assert_is_near(load.mean_wait_s + 1.0, [trace.to_finished(since_s).mean for trace in traces])
    assert_is_near(load.wait_quantile_s(0.95), [trace.to_started(since_s).p95 for trace in traces])


def test_simulation_agrees_with_pollaczek_and_khinchine(simulation):
    service = simulation.Service.measured([0.5, 0.5, 0.5, 2.5])
    assert service.variability == pytest.approx(0.75)
    load = simulation.Load(0.8, 1, service.mean_s, service.variability)
    traces = [simulation.simulate(0.8, service, 1, 8_000, seed=seed) for seed in range(12)]
    assert_is_near(load.mean_wait_s, [trace.to_started(800).mean for trace in traces])


def assert_is_near(expected, values):
    """Within three standard errors of independent runs, which are small enough to be meaningful."""
    error = statistics.stdev(values) / math.sqrt(len(values))
    assert error < 0.06 * expected
    assert statistics.fmean(values) == pytest.approx(expected, abs=3 * error)


def test_littles_law_holds_exactly(simulation):
    """It holds exactly if the waits are counted from the first job to the last one's start."""
    trace = simulation.simulate(80, simulation.Service.exponential(0.02), 2, 50)
    waited = sum(start - at for at, start in zip(trace.arrivals, trace.starts, strict=True))
    moments = [at for at, _ in trace.queue]
    area = sum(length * (b - a) for (_, length), a, b in zip(trace.queue, moments, moments[1:], strict=False))
    assert area == pytest.approx(waited)


def test_the_same_seed_has_the_same_result_and_another_one_another(simulation):
    service = simulation.Service.exponential(0.02)
    first, second, third = (simulation.simulate(85, service, 2, 20, seed=seed) for seed in (1, 1, 2))
    assert first == second
    assert first != third


def test_jobs_run_in_turn_in_all_workers(simulation):
    trace = simulation.Simulation([0.0, 0.0, 0.0, 5.0], lambda _: 1.0, workers=2).run()
    assert trace.starts == [0.0, 0.0, 1.0, 5.0]
    assert trace.ends == [1.0, 1.0, 2.0, 6.0]
    assert [trace.queue_length_at(at) for at in (-1.0, 0.5, 1.5, 5.5)] == [0, 1, 0, 0]
    assert trace.utilisation(2) == pytest.approx(3 / 10)


def test_overhead_delays_jobs_that_find_a_worker_idle_and_jobs_that_wait_for_one(simulation):
    overhead = simulation.Overhead(idle_s=0.25, busy_s=0.5)
    trace = simulation.Simulation([0.0, 0.0], lambda _: 1.0, workers=1, overhead=overhead).run()
    assert trace.starts == [0.25, 1.75]


def test_prefetched_jobs_run_in_their_holder_even_if_others_are_idle(simulation):
    services = [1.0, 1.0, 9.0, 1.0]
    held = simulation.Overhead(busy_s=0.5, held_s=0.125)
    trace = simulation.Simulation([0.0, 0.0, 0.5, 0.5], services.__getitem__, 2, prefetch=2, overhead=held).run()
    assert trace.starts == [0.0, 0.0, 1.5, 10.625]
    alone = simulation.Simulation([0.0, 0.0, 0.5, 0.5], services.__getitem__, 2, overhead=held).run()
    assert alone.starts == [0.0, 0.0, 1.5, 1.5]


def test_failed_jobs_come_back_after_their_backoff_ahead_of_later_ones(simulation):
    retries = simulation.Retries(share=1.0, max_retries=1, backoff_s=lambda attempt: 10.0 * attempt)
    trace = simulation.Simulation([0.0, 10.5, 10.5], lambda _: 1.0, workers=1, retries=retries).run()
    assert trace.starts == [0.0, 10.5, 12.5]
    assert trace.ends[0] == 12.5  # due at 11.0, and next when the second job's first attempt has ended
    assert (trace.attempts, trace.buried) == (6, 3)


def test_share_of_failures_determines_the_number_of_attempts(simulation):
    retries = simulation.retries_like_ours(0.2, seed=1)
    assert retries.attempts_per_job == pytest.approx(1.25, abs=1e-6)
    trace = simulation.simulate(50, simulation.Service.fixed(0.01), 2, 400, retries=retries)
    assert trace.attempts / len(trace.arrivals) == pytest.approx(1.25, rel=0.02)


def test_backoff_matches_the_default_policy(simulation):
    retries = simulation.retries_like_ours(0.2, seed=1)
    assert retries.max_retries == Retry().max_retries
    for attempt in range(1, 10):
        nominal = 2 ** (attempt - 1)
        assert nominal <= retries.backoff_s(attempt) <= math.ceil(nominal * 1.5)


def test_summary_weighs_values(simulation):
    summary = simulation.Summary.of_weighted([(0.0, 96.0), (10.0, 3.5), (100.0, 0.5)])
    assert (summary.mean, summary.p95, summary.p99) == (pytest.approx(0.85), 0.0, 10.0)
    assert simulation.Summary.of(range(1, 101)) == simulation.Summary(50.5, 95, 99)


def test_the_number_of_arrivals_matches_the_rate(simulation):
    arrivals = list(simulation.poisson(100, 100, random.Random(1)))
    assert arrivals == sorted(arrivals)
    assert len(arrivals) == pytest.approx(10_000, abs=300)
    gaps = [b - a for a, b in pairwise(arrivals)]
    assert statistics.stdev(gaps) == pytest.approx(0.01, rel=0.05)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--rate", "85", "--workers", "2", "--seconds", "20"], "85 jobs/s, 2 workers, 20 s"),
        (["--rate", "85", "--want-p95-ms", "100", "--seconds", "20"], "3 workers by formula"),
        (["--rate", "120", "--workers", "2", "--seconds", "20"], "the queue grows by 20.0 jobs a second"),
        (["--rate", "85", "--workers", "3", "--seconds", "20", "--fail", "0.1"], "attempts, 0 buried"),
        (["--table"], "| 0.8 | 4.00, 13.9 | 1.78, 6.6 |"),
    ],
)
def test_command_prints_the_requested_results(simulation, monkeypatch, capsys, arguments, text):
    monkeypatch.setattr(sys, "argv", ["simulation.py", *arguments])
    simulation.main()
    assert text in capsys.readouterr().out


@pytest.mark.parametrize(("prefetch", "keeps_up"), [("1", False), ("8", True)])
def test_command_shows_whether_prefetch_lets_a_worker_keep_up(simulation, monkeypatch, capsys, prefetch, keeps_up):
    load = "--rate 1500 --workers 1 --service-ms 0.01 --busy-ms 1 --held-ms 0.4 --seconds 5"
    monkeypatch.setattr(sys, "argv", ["simulation.py", *load.split(), "--prefetch", prefetch])
    simulation.main()
    assert ("more than the workers can do" not in capsys.readouterr().out) is keeps_up
