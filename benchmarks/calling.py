"""Schedule calls of one contender's no-op task in a separate process, and print the measurements as JSON.

Usage: python calling.py MODULE fill COUNT        schedule COUNT calls
       python calling.py MODULE each SECONDS      calls a second, one by one
       python calling.py MODULE many COUNT        calls a second, all at once
       python calling.py MODULE memory COUNT      peak of traced memory while COUNT calls are scheduled at once, in MB
       python calling.py MODULE pace COUNT STAMPS  from each call to the start of its task on an idle worker, in ms
"""

from __future__ import annotations

import json
import random
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import stamps
from contenders import Caller, load

# The first calls open connections and fill caches; they are not counted.
WARM_UP = 20
PATIENCE_S = 30
# The worker idles for a random time, so that no polling loop falls into step.
IDLE_S = (0.005, 0.010)


def fill(caller: Caller, count: str) -> None:
    caller.call_many(int(count))


def each(caller: Caller, seconds: str) -> float:
    for _ in range(WARM_UP):
        caller.call()
    calls = 0
    start = now = time.perf_counter()
    while now - start < float(seconds):
        for _ in range(100):
            caller.call()
        calls += 100
        now = time.perf_counter()
    return calls / (now - start)


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


ACTIONS: dict[str, Callable[..., object]] = {"fill": fill, "each": each, "many": many, "memory": memory, "pace": pace}

if __name__ == "__main__":
    _, module, action, *arguments = sys.argv
    print(json.dumps(ACTIONS[action](load(module), *arguments)))
