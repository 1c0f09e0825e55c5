"""Delays, times to run, timeouts and pauses, on both servers: each event happens, and at the right time."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from servers import START, Embedded
from support.waiting import wait_until
from wire import Wire

EARLY_S = 0.05  # clocks are read on both sides
LATE_S = 0.7  # on a busy machine


@pytest.fixture(scope="module", params=START)
def port(request):
    running = START[request.param]()
    yield running.port
    running.stop()


class Stopwatch:
    def __init__(self) -> None:
        self._began = time.monotonic()

    def reads(self, seconds: float) -> bool:
        elapsed = time.monotonic() - self._began
        assert seconds - EARLY_S <= elapsed <= seconds + LATE_S, f"{elapsed:.3f} s instead of {seconds} s"
        return True


def a_delayed_job_is_ready_after_its_delay(wire: Wire, _other: Wire) -> None:
    watch = Stopwatch()
    job_id = wire.put(delay=1)
    assert wire.reserve() is None
    assert wire.reserve(timeout=5) == job_id
    assert watch.reads(1)


def a_job_released_with_a_delay_is_ready_after_it(wire: Wire, _other: Wire) -> None:
    job_id = wire.reserved()
    watch = Stopwatch()
    wire.ask(f"release {job_id} 0 1")
    assert wire.reserve(timeout=5) == job_id
    assert watch.reads(1)


def delayed_jobs_are_ready_in_the_order_in_which_they_are_due(wire: Wire, _other: Wire) -> None:
    late, early = wire.put(delay=2), wire.put(delay=1)
    assert wire.reserve(timeout=5) == early
    assert wire.reserve(timeout=5) == late


def a_reserve_waits_as_long_as_it_is_told(wire: Wire, _other: Wire) -> None:
    watch = Stopwatch()
    assert wire.ask("reserve-with-timeout 1") == b"TIMED_OUT"
    assert watch.reads(1)


def a_pause_ends_by_itself(wire: Wire, other: Wire) -> None:
    tube = wire.ask("list-tube-used").split()[1].decode()
    watch = Stopwatch()
    wire.ask(f"pause-tube {tube} 1")
    job_id = other.put()
    assert wire.reserve(timeout=5) == job_id
    assert watch.reads(1)
    assert wire.stats(f"-tube {tube}")["pause"] == "0"


def a_job_whose_time_is_over_goes_to_another(wire: Wire, other: Wire) -> None:
    watch = Stopwatch()
    job_id = wire.reserved(ttr=1)
    other.send("reserve-with-timeout 5")
    wire.has_reply(1.1)  # no job arrives
    wire.ask("list-tube-used")  # beanstalkd may miss the expiry of a silent holder's job
    assert other.read() == b"RESERVED %d 1\r\nx" % job_id
    assert watch.reads(1)
    assert [wire.ask(f"{command} {job_id}") for command in ("touch", "delete")] == [b"NOT_FOUND"] * 2
    stats = other.stats(f"-job {job_id}")
    assert [stats[key] for key in ("timeouts", "reserves", "releases")] == ["1", "2", "0"]


def a_touch_makes_the_time_to_run_start_again(wire: Wire, other: Wire) -> None:
    job_id = wire.reserved(ttr=2)
    watch = Stopwatch()
    wire.has_reply(1)
    assert wire.ask(f"touch {job_id}") == b"TOUCHED"
    assert int(wire.stats(f"-job {job_id}")["time-left"]) == 1
    other.send("reserve-with-timeout 5")
    wire.has_reply(2.1)
    wire.ask("list-tube-used")
    assert other.read() == b"RESERVED %d 1\r\nx" % job_id
    assert watch.reads(3)


def a_reserve_in_the_last_second_of_a_held_job_is_warned_at_once(wire: Wire, _other: Wire) -> None:
    wire.reserved(ttr=1)
    watch = Stopwatch()
    assert wire.ask("reserve") == b"DEADLINE_SOON"
    assert wire.ask("reserve-with-timeout 0") == b"DEADLINE_SOON"
    assert watch.reads(0)


def who_waits_is_warned_when_the_last_second_of_a_held_job_begins(wire: Wire, _other: Wire) -> None:
    watch = Stopwatch()
    wire.reserved(ttr=2)
    assert wire.ask("reserve-with-timeout 100") == b"DEADLINE_SOON"
    assert watch.reads(1)


def who_could_have_a_job_is_not_warned(wire: Wire, _other: Wire) -> None:
    wire.reserved(ttr=1)
    job_id = wire.put()
    assert wire.reserve() == job_id


def who_times_out_before_that_is_not_warned(wire: Wire, _other: Wire) -> None:
    watch = Stopwatch()
    wire.reserved(ttr=10)
    assert wire.ask("reserve-with-timeout 1") == b"TIMED_OUT"
    assert watch.reads(1)


def the_age_of_a_job_and_the_time_that_it_has_left_are_told(wire: Wire, _other: Wire) -> None:
    job_id = wire.put(delay=3)
    wire.has_reply(1.1)
    stats = wire.stats(f"-job {job_id}")
    assert (stats["age"], stats["time-left"]) == ("1", "1")


SCENARIOS = [
    a_delayed_job_is_ready_after_its_delay,
    a_job_released_with_a_delay_is_ready_after_it,
    delayed_jobs_are_ready_in_the_order_in_which_they_are_due,
    a_reserve_waits_as_long_as_it_is_told,
    a_pause_ends_by_itself,
    a_job_whose_time_is_over_goes_to_another,
    a_touch_makes_the_time_to_run_start_again,
    a_reserve_in_the_last_second_of_a_held_job_is_warned_at_once,
    who_waits_is_warned_when_the_last_second_of_a_held_job_begins,
    who_could_have_a_job_is_not_warned,
    who_times_out_before_that_is_not_warned,
    the_age_of_a_job_and_the_time_that_it_has_left_are_told,
]


def test_everything_that_takes_time_takes_its_time(port):
    def play(scenario) -> str:
        first, second = (Wire(port, scenario.__name__) for _ in range(2))
        try:
            scenario(first, second)
        except AssertionError as error:
            return f"{scenario.__name__}: {error}"
        finally:
            first.close()
            second.close()
        return ""

    with ThreadPoolExecutor(len(SCENARIOS)) as threads:
        failures = list(filter(None, threads.map(play, SCENARIOS)))
    assert not failures, "\n".join(failures)


def test_the_embedded_broker_ends_every_time_to_run(request):
    server = Embedded()
    request.addfinalizer(server.stop)
    holders = [Wire(server.port, "silent") for _ in range(50)]
    control = Wire(server.port, "silent")
    watch = Stopwatch()
    for holder in holders:
        holder.reserved(ttr=1)
    wait_until(lambda: control.stats()["job-timeouts"] == "50", "all times to run have ended")
    assert watch.reads(1)
    for wire in (*holders, control):
        wire.close()
