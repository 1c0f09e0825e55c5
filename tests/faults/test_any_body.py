"""Bodies of every shape, depth, size and encoding, through real workers.

``BODIES`` and ``BODIES_SEED`` in the environment are the number of bodies of the long version, and the seed of all.
"""

from __future__ import annotations

import json
import os
import re
import signal
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest
from click.testing import CliRunner
from support.beanstalkd import Beanstalkd
from support.bodies import INBOX, MARKER, TASKS, Body, Fate, digest, is_note_of_ours, make
from support.supervised import Supervised
from support.waiting import wait_until

from flask_backend.broker.connection import Connection
from flask_backend.cli import main
from flask_backend.config import Address
from flask_backend.errors import BrokerError
from flask_backend.options import PutOptions
from flask_backend.visible import visible_lines

BODIES = int(os.environ.get("BODIES", "100000"))
SEED = int(os.environ.get("BODIES_SEED", "1"))
WORKERS = 2  # of each queue
A_ROUND = 2_000
WARM_UP_ROUNDS = 3
# The largest bodies take a few MB while they are read; how much of that a process keeps varies.
USS_SLACK_BYTES = 4 << 20
A_WRITE = 100  # of up to 64 KiB each

RECORD = re.compile(r"(\d{4}-\d\d-\d\d) \d\d:\d\d:\d\d,\d{3} ([A-Z]+) \[(\d+)\] [\w.]+: ")


@dataclass
class Tail:
    """The lines that a file has got since the last look."""

    path: Path
    offset: int = 0

    def lines(self) -> list[str]:
        with self.path.open("rb") as file:
            file.seek(self.offset)
            text = file.read()
        self.offset += len(text)
        assert text[-1:] in (b"", b"\n")
        return text.decode().split("\n")[:-1]


@dataclass
class Tally:
    """What was tried, and what became of it."""

    fates: Counter[tuple[str, Fate | None]] = field(default_factory=Counter)
    certain: int = 0
    log_lines: int = 0
    bytes: int = 0
    uss_bytes: list[list[int]] = field(default_factory=list)
    cpu_s: float = 0
    commands: int = 0

    def __str__(self) -> str:
        kinds = Counter[str]()
        for (kind, _), count in self.fates.items():
            kinds[kind] += count
        width = max(map(len, kinds))
        lines = [f"{sum(kinds.values()):,} bodies, {self.bytes >> 20:,} MiB"]
        lines += [f"  {kind:{width}} {count:7,}  {self._told(kind)}" for kind, count in kinds.most_common()]
        lines.append(f"the fate of {self.certain:,} was foretold, and was theirs; nothing was executed but their calls")
        lines.append(f"no worker ended; {self.log_lines:,} lines of the log, none forged; {self.commands:,} commands")
        mib = [f"{max(each) / 2**20:.1f}" for each in self.uss_bytes]
        lines.append(f"CPU of the workers: {self.cpu_s:.0f} s")
        lines.append(f"private memory of the largest worker after each round, MiB: {' '.join(mib)}")
        return "\n".join(lines)

    def _told(self, kind: str) -> str:
        return ", ".join(f"{self.fates[kind, fate]:,} {fate.value}" for fate in Fate if self.fates[kind, fate])


class Trial:
    """A supervisor with workers for all bodies, and checks of what they do."""

    def __init__(self, broker: Beanstalkd, supervised: Supervised, log_format: str) -> None:
        self._broker = broker
        self._supervised = supervised
        self._is_json = log_format == "json"
        self._connection = Connection(Address("127.0.0.1", broker.port), 20)
        self._log = Tail(supervised.log_path)
        self._ledger = Tail(Path(supervised.environment["LEDGER"]))
        self.tally = Tally()
        supervised.wait_for_log("ready: ")
        self._wait_idle()
        self._pids = set(supervised.workers())
        self._family = {*self._pids, supervised.pid}
        assert self._ledger.lines() == ["executed os.system"] * len(self._pids) == ["executed os.system"] * 2 * WORKERS

    def play(self, bodies: list[Body]) -> dict[int, Body]:
        """Have workers take these bodies; return those that are left, by the ids of their jobs."""
        jobs = self._put(bodies)
        self._wait_idle()
        fates = self._fates(jobs)
        self._check_calls(jobs, fates)
        failed = sum(fates[job_id] is not Fate.DONE for job_id, body in jobs.items() if body.tube in (TASKS, INBOX))
        self._check_log(failed)
        assert set(self._supervised.workers()) == self._pids, self._supervised.log[-3000:]
        self.tally.uss_bytes.append([psutil.Process(pid).memory_full_info().uss for pid in self._pids])
        return {job_id: body for job_id, body in jobs.items() if fates[job_id] is not Fate.DONE}

    def clear(self, left: dict[int, Body]) -> None:
        """Delete what is left: a round finds the broker as the one before."""
        self._connection.delete_each(left)
        for tube in (TASKS, INBOX):
            reader = Connection(self._connection.address, 20, watch=f"{tube}.failures")
            while jobs := reader.reserve_ready(50):
                reader.delete_each(job.id for job in jobs)
            reader.close()

    def end(self) -> None:
        times = [psutil.Process(pid).cpu_times() for pid in self._pids]
        self.tally.cpu_s = sum(each.user + each.system for each in times)
        assert not (Path(self._supervised.environment["LEDGER"]).parent / MARKER).exists()
        self._connection.close()
        self._supervised.send(signal.SIGTERM)
        self._supervised.assert_clean_exit(0)

    def _put(self, bodies: list[Body]) -> dict[int, Body]:
        jobs: dict[int, Body] = {}
        for tube in sorted({body.tube for body in bodies}):
            for some in _parts([body for body in bodies if body.tube == tube]):
                results: list[int | BrokerError] = []
                pending = self._connection.send_puts(tube, [body.data for body in some], PutOptions(100, 0, 60))
                pending.collect(results)
                jobs |= {int(job_id): body for job_id, body in zip(results, some, strict=True)}
        self.tally.bytes += sum(len(body.data) for body in bodies)
        return jobs

    def _wait_idle(self) -> None:
        def is_idle() -> bool:
            tubes = [self._broker.tube(tube) for tube in (TASKS, INBOX)]
            return all(
                tube["current-jobs-ready"] == tube["current-jobs-reserved"] == 0 and tube["current-waiting"] == WORKERS
                for tube in tubes
            )

        wait_until(is_idle, f"all jobs are settled; log:\n{self._supervised.log[-3000:]}", 300)

    def _fates(self, jobs: dict[int, Body]) -> dict[int, Fate | None]:
        states = {record.id: record.state for record in self._connection.stats_job(jobs)}
        fates: dict[int, Fate | None] = {}
        for job_id, body in jobs.items():
            state = states.get(job_id, "done")
            if body.tube not in (TASKS, INBOX):
                assert state == "ready", body
                fates[job_id] = None
            else:
                fates[job_id] = Fate(state)
                assert body.fate in (None, fates[job_id]), (body, state)
                self.tally.certain += body.fate is not None
            self.tally.fates[body.kind, fates[job_id]] += 1
        return fates

    def _check_calls(self, jobs: dict[int, Body], fates: dict[int, Fate | None]) -> None:
        """Only the calls in the bodies were run, once each, with their own arguments; and nothing else was executed."""
        calls = [line.split(" ") for line in self._ledger.lines()]
        assert [each for each in calls if each[0] == "executed"] == []
        ran = {int(job_id): call for job_id, call in calls}
        assert len(ran) == len(calls)
        assert ran.keys() == {job_id for job_id, fate in fates.items() if fate is Fate.DONE}
        for job_id, call in ran.items():
            body = jobs[job_id]
            assert call == (body.call or _call_in(body)), body

    def _check_log(self, failed: int) -> None:
        """Each failure is one record, and each record is one of our processes' own."""
        lines = self._log.lines()
        levels = [level for level in map(self._level_of, lines) if level]
        self.tally.log_lines += len(lines)
        assert sum(level in ("WARNING", "ERROR", "CRITICAL") for level in levels) == failed

    def _level_of(self, line: str) -> str:
        assert visible_lines(line) == line
        if self._is_json:
            told = json.loads(line, parse_constant=pytest.fail)
            assert told["pid"] in self._family
            return told["level"]
        record = RECORD.match(line)
        if record is None:
            return ""  # of a record of several lines
        assert int(record[3]) in self._family, line
        return record[2]


def _parts(bodies: list[Body]) -> Iterator[list[Body]]:
    for begin in range(0, len(bodies), A_WRITE):
        yield bodies[begin : begin + A_WRITE]


def _call_in(body: Body) -> str:
    told = json.loads(body.data)
    if body.tube == INBOX:
        return digest("receive", [told], {})
    return digest(told["endpoint"], told.get("args", ()), told.get("kwargs", {}))


def check_commands(left: dict[int, Body], tally: Tally) -> None:
    """Every command ends well over what is left, and prints only what is safe."""
    some = [
        next(job_id for job_id, body in left.items() if body.kind == kind) for kind in {b.kind for b in left.values()}
    ]
    every = [["queues", "--interval", "0"], ["check", "--waiting"], *(["jobs", tube] for tube in (TASKS, INBOX))]
    every += [["failures"], *(["failures", tube] for tube in (TASKS, INBOX))]
    every += [[command, str(job_id)] for job_id in some for command in ("peek", "explain")]
    every += [["failures", "--job", str(job_id)] for job_id in some]
    for args in every:
        for option in ([], ["--json"]):
            result = CliRunner().invoke(main, ["--app", "support.bodies_app", *args, *option])
            told = f"{args}: {result.output[-2000:]}"
            assert result.exception is None or isinstance(result.exception, SystemExit), told
            assert result.exit_code in (0, 1), told
            assert visible_lines(result.output) == result.output, told
            if option and result.stdout:
                json.loads(result.stdout, parse_constant=pytest.fail)
            tally.commands += 1


def check_bodies(broker, supervise, monkeypatch, log_format: str, count: int) -> None:
    options = ("--queue", TASKS, "--queue", INBOX, "--log-format", log_format)
    supervised = supervise(*options, workers=WORKERS, app="support.bodies_app")
    trial = Trial(broker, supervised, log_format)
    left: dict[int, Body] = {}
    first = count if log_format == "json" else 0  # other bodies for each format
    for begin in range(first, first + count, A_ROUND):
        trial.clear(left)
        left = trial.play([make(SEED, number) for number in range(begin, min(first + count, begin + A_ROUND))])
    monkeypatch.setenv("BACKEND_CONNECTION_URI", broker.uri)
    strange = [
        job_id for job_id, body in left.items() if body.tube not in (TASKS, INBOX) and not is_note_of_ours(body.data)
    ]
    check_commands({job_id: body for job_id, body in left.items() if body.tube in (TASKS, INBOX)}, trial.tally)
    assert all(broker.job(job_id) for job_id in strange)
    trial.end()
    print(f"seed {SEED}, logs in {log_format}: {trial.tally}")  # noqa: T201
    warm = [max(each) for each in trial.tally.uss_bytes[WARM_UP_ROUNDS:]]
    if len(warm) > 2 * WARM_UP_ROUNDS:
        assert max(warm[-WARM_UP_ROUNDS:]) <= max(warm[:WARM_UP_ROUNDS]) + USS_SLACK_BYTES


@pytest.mark.any_broker
@pytest.mark.parametrize("log_format", ["text", "json"])
def test_no_body_harms_a_worker(broker, supervise, monkeypatch, log_format):
    check_bodies(broker, supervise, monkeypatch, log_format, 500)


@pytest.mark.soak
@pytest.mark.any_broker
@pytest.mark.timeout(7_200)
@pytest.mark.parametrize("log_format", ["text", "json"])
def test_none_of_very_many_bodies_harms_a_worker(broker, supervise, monkeypatch, log_format):
    check_bodies(broker, supervise, monkeypatch, log_format, BODIES // 2)
