"""Check what a beanstalkd with a binlog keeps when it is killed repeatedly under load. No worker of ours is involved.

Usage: python benchmarks/binlog.py [--runs N]. Each run puts 2,000 jobs, one by one or in pipelines of 500, before or
while three greenstalk clients reserve and delete. The server is killed (SIGKILL) and restarted eight times. Prints in
how many runs an acknowledged job was lost or corrupted.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import greenstalk

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from support.beanstalkd import Beanstalkd

from flask_backend.broker.producer import Producer
from flask_backend.config import Address, Settings
from flask_backend.options import Options

JOBS, KILLS, CONSUMERS = 2_000, 8, 3
BODY = b"%05d"


class Consumers:
    """Clients that reserve and delete, and reconnect when necessary."""

    def __init__(self, port: int) -> None:
        self.seen: set[int] = set()
        self.has_seen_mangled = False
        self._address = ("127.0.0.1", port)
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._work) for _ in range(CONSUMERS)]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        while not self._stop.is_set():
            try:
                with greenstalk.Client(self._address, encoding=None, watch="q") as client:
                    self._consume(client)
            except AssertionError:  # greenstalk's error for a body without its line break, or for half a reply
                self.has_seen_mangled = self._is_mangled()
            except (OSError, ValueError, greenstalk.Error):
                time.sleep(0.01)

    def _consume(self, client: greenstalk.Client[bytes]) -> None:
        while not self._stop.is_set():
            try:
                job = client.reserve(1)
            except greenstalk.TimedOutError:
                continue
            self.seen.add(job.id)
            client.delete(job)

    def _is_mangled(self) -> bool:
        """Retry: half a reply does not come twice."""
        try:
            with greenstalk.Client(self._address, encoding=None, use="q") as client:
                client.peek_ready()
        except AssertionError:
            return True
        except (OSError, greenstalk.Error):
            pass
        return self.has_seen_mangled


def put_all(broker: Beanstalkd, *, pipelined: bool) -> set[int]:
    with broker.client("q") as client:
        if not pipelined:
            return {client.put(BODY % n) for n in range(JOBS)}
    outcome = Producer(Settings(Address("127.0.0.1", broker.port))).put_many(
        "q", range(JOBS), lambda _, n: BODY % n, Options()
    )
    return {job_id for index in outcome.accepted if (job_id := outcome.accepted.find(index))}


def run(seed: int, *, pipelined: bool, meanwhile: bool) -> bool:
    """Return whether every job was processed intact."""
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        broker = Beanstalkd(Path(folder))
        consumers = Consumers(broker.port)
        if meanwhile:
            consumers.start()
        ids = put_all(broker, pipelined=pipelined)
        if not meanwhile:
            consumers.start()
        for goal in sorted(rng.sample(range(1, JOBS - 100), KILLS)):
            until(lambda goal=goal: len(consumers.seen) >= goal or consumers.has_seen_mangled)
            broker.kill()
            broker.start()
        until(lambda: ids <= consumers.seen or consumers.has_seen_mangled)
        consumers.stop()
        broker.stop()
        return ids <= consumers.seen


def until(condition: Callable[[], object], timeout_s: float = 5.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.001)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=10)
    runs = parser.parse_args().runs
    for pipelined in (False, True):
        for meanwhile in (False, True):
            bad = sum(not run(seed, pipelined=pipelined, meanwhile=meanwhile) for seed in range(runs))
            how = "in pipelines" if pipelined else "one by one"
            when = "while others are deleted" if meanwhile else "before any is deleted"
            print(f"put {how}, {when}: {bad} of {runs} runs lost or mangled a job", flush=True)


if __name__ == "__main__":
    main()
