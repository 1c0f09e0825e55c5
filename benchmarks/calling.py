"""Schedule calls of one contender's no-op task in a separate process, and print the measurements as JSON.

Usage: python calling.py MODULE fill COUNT        schedule COUNT calls
       python calling.py MODULE fill_logging COUNT  the same, of the task that logs a line
       python calling.py MODULE each SECONDS      calls a second, one by one
       python calling.py MODULE many COUNT        calls a second, all at once
       python calling.py MODULE memory COUNT      peak of traced memory while COUNT calls are scheduled at once, in MB
       python calling.py MODULE pace COUNT STAMPS  from each call to the start of its task on an idle worker, in ms
       python calling.py MODULE spend HOW SECONDS PID  CPU time of each call, here and in the process PID, in µs;
                                                  HOW is one of OPERATIONS
"""

from __future__ import annotations

import json
import random
import sys
import time
import tracemalloc
from collections.abc import Callable
from functools import partial
from pathlib import Path

import stamps
from contenders import Caller, load
from cpu import cpu_s

# The first calls open connections and fill caches; they are not counted.
WARM_UP = 20
WARM_UP_S = 0.05
MANY = 5_000  # calls at once, as in a small map
PATIENCE_S = 30
# The worker idles for a random time, so that no polling loop falls into step.
IDLE_S = (0.005, 0.010)


def fill(caller: Caller, count: str) -> None:
    caller.call_many(int(count))


def fill_logging(caller: Caller, count: str) -> None:
    caller.call_logging(int(count))


def each(caller: Caller, seconds: str) -> float:
    for _ in range(WARM_UP):
        caller.call()
    start = time.perf_counter()
    calls = repeat(caller.call, 100, float(seconds))
    return calls / (time.perf_counter() - start)


def repeat(call: Callable[[], object], times: int, seconds: float) -> int:
    """Call a function, a number of times in a row, until the time is over; return how often."""
    calls = 0
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        for _ in range(times):
            call()
        calls += times
    return calls


def spend(caller: Caller, how: str, seconds: str, broker_pid: str) -> float:
    schedule, calls_in_each = OPERATIONS[how](caller)
    repeat(schedule, 1, WARM_UP_S)
    before = time.process_time() + cpu_s(int(broker_pid))
    calls = repeat(schedule, max(1, 100 // calls_in_each), float(seconds)) * calls_in_each
    return (time.process_time() + cpu_s(int(broker_pid)) - before) / calls * 1e6


def many(caller: Caller, count: str) -> float:
    caller.call_many(WARM_UP)
    start = time.perf_counter()
    caller.call_many(int(count))
    return int(count) / (time.perf_counter() - start)


def memory(caller: Caller, count: str) -> float:
    caller.call_many(WARM_UP)
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    caller.call_many(int(count))
    _, peak = tracemalloc.get_traced_memory()
    return (peak - before) / 1e6


def pace(caller: Caller, count: str, path: str) -> list[float]:
    called: list[int] = []
    for number in range(WARM_UP + int(count)):
        time.sleep(random.uniform(*IDLE_S))
        called.append(time.monotonic_ns())
        caller.call()
        wait_for(number + 1, Path(path))
    started = stamps.read(Path(path))
    return [(then - now) / 1e6 for now, then in zip(called, started, strict=True)][WARM_UP:]


def wait_for(count: int, path: Path) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while stamps.count(path) < count:
        if time.monotonic() > deadline:
            raise TimeoutError(f"no worker ran the task within {PATIENCE_S} s")
        time.sleep(0.001)


# A function that schedules, and how many calls.
OPERATIONS: dict[str, Callable[[Caller], tuple[Callable[[], None], int]]] = {
    "call": lambda caller: (caller.call, 1),
    "call_with_keywords": lambda caller: (caller.call_with_keywords, 1),
    "call_many": lambda caller: (partial(caller.call_many, MANY), MANY),
}
ACTIONS: dict[str, Callable[..., object]] = {
    action.__name__: action for action in (fill, fill_logging, each, many, memory, pace, spend)
}

if __name__ == "__main__":
    _, module, action, *arguments = sys.argv
    print(json.dumps(ACTIONS[action](load(module), *arguments)))
