"""The app learns of exits, starts and reloads in a helper process, and no receiver can harm the supervisor."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from support import supervised
from support.waiting import wait_until

pytestmark = pytest.mark.any_broker
PROGRAM = Path(supervised.__file__).with_name("eventful.py")


class Eventful:
    """The program under test, and the events that its receiver has recorded."""

    def __init__(self, folder: Path, workers: int, drain_timeout_s: float, **env: str) -> None:
        self.workers = workers * len(env.get("QUEUES", "q").split())
        self._ledger, self._log = folder / "ledger", folder / "log"
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, str(PROGRAM), str(workers), str(drain_timeout_s)],
                stdout=log,
                stderr=log,
                env={**os.environ, "LEDGER": str(self._ledger), "PYTHONWARNINGS": "error", **env},
                cwd=folder,
            )

    @property
    def log(self) -> str:
        return self._log.read_text()

    def wait_for_log(self, text: str) -> None:
        wait_until(lambda: text in self.log, f"{text!r} in the log:\n{self.log}")

    def records(self, name: str | None = None) -> list[dict]:
        lines = self._ledger.read_text().splitlines() if self._ledger.exists() else []
        return [record for record in map(json.loads, lines) if name is None or record.get("name") == name]

    def wait_for(self, name: str, times: int = 1) -> list[dict]:
        return wait_until(
            lambda: records if len(records := self.records(name)) >= times else None,
            f"{times} of {name}",
        )

    def children(self) -> list[int]:
        return [child.pid for child in psutil.Process(self.process.pid).children()]

    def wait_full(self, without: set[int] = frozenset()) -> list[int]:
        """Wait until all workers are ready, and none of these lives."""

        def find() -> list[int] | None:
            ready = {record["ready"] for record in self.records() if "ready" in record}
            found = [pid for pid in self.children() if pid in ready]
            return found if len(found) == self.workers and not without & set(found) else None

        return wait_until(find, f"{self.workers} workers; log:\n{self.log}")

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def stop(self) -> int:
        self.send(signal.SIGTERM)
        return self.process.wait(20)


@pytest.fixture
def eventful(tmp_path):
    started: list[Eventful] = []

    def start(workers: int = 2, drain_timeout_s: float = 5.0, **env: str) -> Eventful:
        program = Eventful(tmp_path, workers, drain_timeout_s, **env)
        started.append(program)
        program.wait_for_log("ready: ")
        return program

    yield start
    for program in started:
        family = []
        if program.process.poll() is None:
            family = psutil.Process(program.process.pid).children(recursive=True)
            program.process.kill()
        for child in family:
            child.kill()
        program.process.wait()


def test_a_killed_worker_is_an_event_with_its_facts(eventful):
    program = eventful()
    (ready,) = program.wait_for("supervisor_ready")
    assert ready["queues"] == {"q": 2}
    assert ready["supervisor_pid"] == program.process.pid
    assert ready["generation"] == 0
    victim, _ = program.wait_full()
    os.kill(victim, signal.SIGKILL)
    (exited,) = program.wait_for("worker_exited")
    assert exited["worker_pid"] == victim
    assert (exited["queue"], exited["exit_kind"], exited["exit_status"]) == ("q", "died_idle", None)
    assert exited["exit_signal"] == signal.SIGKILL
    assert exited["description"].startswith(f"worker {victim} of q was killed by signal 9")
    assert exited["sender"] not in (victim, program.process.pid)
    program.wait_full(without={victim})
    assert program.stop() == 0
    planned = program.records("worker_exited")[1:]
    assert [record["exit_kind"] for record in planned] == ["planned"] * 2


def test_the_sender_of_events_has_no_socket_of_a_worker(eventful):
    program = eventful(workers=4)
    program.wait_for("supervisor_ready")
    os.kill(program.wait_full()[0], signal.SIGKILL)
    (exited,) = program.wait_for("worker_exited")
    assert len([file for file in exited["fds"] if file.startswith("socket:")]) == 1  # through which children lend
    assert program.stop() == 0


def test_without_a_receiver_there_is_no_event_and_no_helper(eventful):
    program = eventful(DEAF="1")
    os.kill(program.wait_full()[0], signal.SIGKILL)
    program.wait_for_log("; replaced ")
    assert program.stop() == 0
    assert not any("name" in record for record in program.records())


def test_a_burst_of_deaths_is_sent_by_a_few_helpers(eventful):
    program = eventful(workers=7, QUEUES="a b c")
    program.wait_for("supervisor_ready")
    victims = program.wait_full()
    for pid in victims:
        os.kill(pid, signal.SIGKILL)
    exited = program.wait_for("worker_exited", 21)
    assert sorted(record["worker_pid"] for record in exited) == sorted(victims)
    assert len({record["sender"] for record in exited}) < 10
    program.wait_full(without=set(victims))
    assert program.stop() == 0


@pytest.mark.parametrize("how", ["raises", "exits", "crashes", "starts a thread", "blocks"])
def test_a_receiver_that_misbehaves_harms_nothing(eventful, how):
    program = eventful(workers=3, RECEIVER=how, SENDER_S="0.5")
    program.wait_for("supervisor_ready")
    for _ in range(4):
        before = program.wait_full()
        os.kill(before[0], signal.SIGKILL)
        after = program.wait_full(without={before[0]})
        assert set(before[1:]) < set(after)
    match how:
        case "raises":
            program.wait_for_log("ValueError: no such channel")
        case "exits":
            program.wait_for_log("SystemExit: enough")
        case "crashes":
            program.wait_for_log("worker_exited may not have reached all receivers: their process was killed by signal")
        case "starts a thread":
            program.wait_for("worker_exited", 4)
        case "blocks":
            program.wait_for_log(
                "worker_exited may not have reached all receivers: they took too long, and their process was killed"
            )
    assert program.log.count("; replaced ") == 4
    assert "giving up" not in program.log
    assert program.stop() == 0


def test_a_receiver_that_blocks_delays_the_end_of_a_drain_by_a_second_at_most(eventful):
    program = eventful(drain_timeout_s=0.5, RECEIVER="blocks")
    program.wait_for("supervisor_ready")
    program.wait_full()
    began = time.monotonic()
    assert program.stop() == 0
    assert 0.5 <= time.monotonic() - began < 4
    (blocking,) = [record["blocks"] for record in program.records() if "blocks" in record]
    assert not psutil.pid_exists(blocking)
    assert "they took too long" in program.log


def test_a_second_term_does_not_wait_for_receivers(eventful):
    program = eventful(drain_timeout_s=60, RECEIVER="blocks", SENDER_S="30")
    program.wait_for("supervisor_ready")
    program.wait_full()
    program.send(signal.SIGTERM)
    wait_until(lambda: any("blocks" in record for record in program.records()), "a receiver blocks")
    began = time.monotonic()
    assert program.stop() == 0
    assert time.monotonic() - began < 4


def test_the_events_of_a_drain_are_sent_before_the_end(eventful):
    program = eventful(workers=5)
    program.wait_for("supervisor_ready")
    workers = program.wait_full()
    assert program.stop() == 0
    assert sorted(record["worker_pid"] for record in program.records("worker_exited")) == sorted(workers)


def test_a_reload_is_an_event_of_the_new_code(eventful):
    program = eventful()
    program.wait_for("supervisor_ready")
    old = program.wait_full()
    time.sleep(0.5)  # they live for that long at least
    for generation in (1, 2):
        program.send(signal.SIGHUP)
        reloaded = program.wait_for("supervisor_reloaded", generation)
        assert reloaded[-1]["generation"] == generation
        assert reloaded[-1]["queues"] == {"q": 2}
        old = program.wait_full(without=set(old))
    exited = program.wait_for("worker_exited", 4)
    assert [record["is_old"] for record in exited] == [True] * 4
    assert all(record["lived_s"] > 0.5 for record in exited[:2]), "counted from their start, not from the reload"
    assert len(program.records("supervisor_ready")) == 1
    assert program.stop() == 0


def test_a_sender_that_blocks_is_killed_by_the_image_after_a_reload_and_no_event_is_lost(eventful):
    program = eventful(RECEIVER="blocks", SENDER_S="6")
    program.wait_for("supervisor_ready")
    os.kill(program.wait_full()[0], signal.SIGKILL)
    blocking = wait_until(
        lambda: [record["blocks"] for record in program.records() if "blocks" in record], "a receiver blocks"
    )
    program.send(signal.SIGHUP)
    program.wait_for_log(f"helper {blocking[0]} of the old code did not end in time and was killed")
    assert not psutil.pid_exists(blocking[0])
    assert program.stop() == 0


def test_the_sender_ends_with_a_killed_supervisor(eventful):
    program = eventful(RECEIVER="starts a thread")
    program.wait_for("supervisor_ready")
    children = program.wait_full()
    os.kill(children[0], signal.SIGKILL)
    program.process.kill()
    wait_until(lambda: not any(psutil.pid_exists(pid) for pid in children), "all are gone")
