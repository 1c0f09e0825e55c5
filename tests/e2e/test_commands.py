"""The commands for queues and failures, as typed by a person and as run by programs."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import time
from contextlib import suppress
from pathlib import Path

import pytest
from click.testing import CliRunner
from support.waiting import wait_until
from support.workload import QUEUE

from flask_backend.broker.connection import Connection
from flask_backend.cli import main
from flask_backend.config import Address, Settings
from flask_backend.masking import Mask
from flask_backend.operations.console import Console
from flask_backend.stories import Story, here_and_now
from flask_backend.worker.settlement import StoryWriter, bury

PROGRAM = Path(sys.executable).parent / "flask-backend"
OTHER = "com.example/images"
COLUMNS = 80
TRACEBACK = 'Traceback (most recent call last):\n  File "app.py", line 3, in hello\nValueError: no luck'


@pytest.fixture
def environment(broker):
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("BACKEND_", "FLASK_"))}
    return inherited | {"BACKEND_CONNECTION_URI": broker.uri, "TERM": "xterm", "PYTHONWARNINGS": "error"}


@pytest.fixture
def run(environment, tmp_path):
    def run(*args: str, **env: str) -> subprocess.CompletedProcess[str]:
        command = [PROGRAM, *args]
        return subprocess.run(
            command,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            env=environment | env,
            cwd=tmp_path,
            timeout=30,
        )

    return run


@pytest.fixture
def run_json(run):
    def run_json(*args: str):
        result = run(*args, "--json")
        assert result.returncode == 0, result.stderr
        return json.loads(result.stdout)

    return run_json


@pytest.fixture
def at_terminal(environment, tmp_path):
    """Run a command in a terminal of 80 columns, answer its question; return its exit code and its output."""

    def at_terminal(*args: str, answer: str | None = None, **env: str) -> tuple[int, str]:
        ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, COLUMNS, 0, 0))
        ends = {"stdin": theirs, "stdout": theirs, "stderr": theirs}
        with subprocess.Popen([PROGRAM, *args], **ends, env=environment | env, cwd=tmp_path) as process:
            os.close(theirs)
            seen = b""
            with suppress(OSError):  # how Linux reports that the other side is closed
                while data := os.read(ours, 4096):
                    seen += data
                    if answer is not None and seen.endswith(b"[y/N]: "):
                        os.write(ours, f"{answer}\n".encode())
            code = process.wait(20)
        os.close(ours)
        return code, seen.decode().replace("\r\n", "\n")

    return at_terminal


MANY = 10_000
EVERY = {
    ("failures", "--json"): 1_000_000,
    ("failures", "--limit", "1000000"): 100,
    ("failures", "--limit", "1000000", "--json"): MANY * 1900,
    ("delete", "--all", "--yes"): 10,
}
SHOW_PEAK = """
import sys
from flask_backend.cli import main
try:
    main(prog_name="flask-backend")
finally:
    print(open("/proc/self/status").read(), file=sys.stderr)
"""


@pytest.fixture
def many_buried(broker):
    """Bury many jobs, each with a story of two kilobytes, in little time."""

    def make(count: int) -> None:
        worker = Connection(Address("127.0.0.1", broker.port), 30, watch=QUEUE)
        worker.ask([b"use %b\r\n" % QUEUE.encode()])
        ids = [int(reply.words[0]) for reply in worker.ask([b"put 0 0 600 2\r\n{}\r\n"] * count)]
        worker.ask([b"reserve-with-timeout 0\r\n"] * count)
        worker.ask([b"use %b.failures\r\n" % QUEUE.encode()])
        for job_id in ids:
            told = FAILED | here_and_now() | {"traceback": "x" * 1500, "message": f"no luck with {job_id}"}
            note = Story(job=job_id, queue=QUEUE, **told).encode()
            worker.ask([b"put 0 0 60 %d\r\n%b\r\n" % (len(note), note)])
        worker.ask([b"bury %d 0\r\n" % job_id for job_id in ids])
        worker.close()

    return make


@pytest.fixture
def buried(broker):
    """Bury jobs as workers do; return their ids. Jobs without a reason have no story."""

    def make(count: int = 1, queue: str = QUEUE, **told) -> list[int]:
        worker = Connection(Address("127.0.0.1", broker.port), 5, watch=queue)
        ids = [broker.put(queue, b'{"endpoint": "hello", "args": ["world"]}') for _ in range(count)]
        worker.ask([b"reserve-with-timeout 0\r\n"] * count)
        for job_id in ids:
            if told:
                note = Story(**{"job": job_id, "queue": queue, **here_and_now(), **told})
                bury(worker, note, 65536, StoryWriter(Mask()))
            else:
                worker.bury(job_id, 65536)
        worker.close()
        return ids

    return make


FAILED = {
    "reason": "failed 10 times",
    "endpoint": "hello",
    "call": 'hello("world")',
    "exception": "ValueError",
    "message": "no luck",
    "traceback": TRACEBACK,
    "attempts": 10,
    "allowed": 10,
    "ran_s": 0.25,
}
KILLED = {
    "reason": "it has crashed its worker 3 times",
    "endpoint": "resize",
    "message": "worker 812 of com.example/images was killed by signal 9 (Killed) (lived 0.4 s, peak 31 MiB)",
    "death": {"worker_pid": 812, "exit_signal": 9, "exit_status": None},
}


def lines_of(result) -> list[str]:
    return result.stdout.splitlines()


def assert_fits(screen: str) -> None:
    for line in screen.splitlines():
        assert len(re.sub(r"\x1b\[[\d;]*m", "", line)) <= COLUMNS, line


class TestQueues:
    def test_a_table_has_a_line_for_each_and_unwatched_queues_are_named(self, run, broker, command, buried):
        command("worker", QUEUE)
        wait_until(lambda: broker.waiting(QUEUE) == 1, "the worker waits")
        buried(2, OTHER)
        broker.put(OTHER, b"x")
        broker.put(OTHER, b"x", delay=100)
        result = run("queues", "--interval", "0")
        assert result.returncode == 0
        assert [re.split(r"  +", line) for line in lines_of(result)] == [
            ["queue", "ready", "reserved", "delayed", "buried", "waits", "workers"],
            [QUEUE, "0", "0", "0", "0", "-", "1, 1 idle"],
            [OTHER, "1", "0", "1", "2", lines_of(result)[2].split()[5], "none"],
        ]
        assert result.stderr == f"no worker watches {OTHER} (1 ready)\n"

    def test_rates_are_measured_over_the_interval(self, environment, broker, tmp_path):
        broker.put(QUEUE, b"x")
        process = subprocess.Popen(
            [PROGRAM, "queues", "--interval", "0.5", "--json"], env=environment, cwd=tmp_path, stdout=subprocess.PIPE
        )
        with broker.client() as client:
            wait_until(lambda: has_looked(client), "the first look")
            for _ in range(20):
                broker.put(QUEUE, b"x")
            broker.take(QUEUE)
        out, _ = process.communicate(timeout=20)
        [queue] = json.loads(out)
        assert 0 < queue["put_per_s"] <= 40
        assert queue["put_per_s"] == pytest.approx(20 * queue["deleted_per_s"], rel=0.05)

    def test_json_is_a_list_of_objects(self, run_json, broker):
        broker.put(QUEUE, b"x")
        printed = run_json("queues", "--interval", "0")
        assert 0 <= printed[0].pop("next_wait_s") < 60
        assert printed == [
            {
                "broker": broker.uri,
                "queue": QUEUE,
                "ready": 1,
                "reserved": 0,
                "delayed": 0,
                "buried": 0,
                "watching": 0,
                "waiting": 0,
                "put": 1,
                "deleted": 0,
                "pause_left_s": 0,
                "put_per_s": None,
                "deleted_per_s": None,
            }
        ]

    def test_a_server_without_queues_is_not_an_error(self, run, broker):
        result = run("queues", "--interval", "0")
        assert (result.returncode, result.stdout) == (0, "")
        assert result.stderr == f"no queues at {broker.uri}: it has no jobs and no workers\n"
        assert run("queues", "--interval", "0", "--json").stdout == "[]\n"

    def test_check_fails_while_ready_jobs_have_no_worker_paused_or_not(self, run, broker):
        broker.put(QUEUE, b"x", delay=100)
        fine = run("queues", "--check")
        assert (fine.returncode, fine.stdout, fine.stderr) == (0, "", "")
        broker.put(QUEUE, b"x")
        with broker.client() as client:
            client.pause_tube(QUEUE, 100)
        bad = run("queues", "--check")
        assert (bad.returncode, bad.stdout, bad.stderr) == (1, "", f"no worker watches {QUEUE} (1 ready)\n")

    def test_an_unreachable_server_is_one_line(self, run):
        result = run("queues", "--broker", "btq://127.0.0.1:1")
        assert (result.returncode, result.stdout) == (1, "")
        assert result.stderr.startswith("Error: cannot connect to Beanstalkd at btq://127.0.0.1:1: ")


def has_looked(client) -> bool:
    """Whether it has requested the statistics of both existing queues: ours, and the server's own."""
    return client.stats()["cmd-stats-tube"] > 1


class TestFailures:
    def test_a_real_worker_is_shown(self, run, broker, tasks, command):
        command("worker", QUEUE)
        job = tasks.choosy("never")
        wait_until(lambda: broker.count(QUEUE, "buried") == 1, "it is buried")
        result = run("failures")
        assert re.match(r"queue +endpoint +exception +count +last +newest +message", result.stdout)
        assert re.search(rf"{QUEUE} +choosy +KeyError +1 +\ds ago +{job.id} +'no luck'", result.stdout)
        assert f"job {job.id} of {QUEUE}\nreason:    KeyError is not retried\n" in result.stdout
        assert "call:      choosy(\"never\")\nexception: KeyError: 'no luck'\nattempts:  1 of 2\n" in result.stdout
        assert re.search(r"scheduled: 20\d\d-.*ago\nburied:    20\d\d-.*ago\nran:       0\.\d+ s\n", result.stdout)
        assert re.search(r"worker:    pid \d+ on \S+\n\nTraceback \(most recent call last\):\n", result.stdout)
        assert f"flask-backend retry {job.id}\n" in result.stderr
        assert f"flask-backend delete {job.id}\n" in result.stderr

    def test_they_are_grouped_and_those_without_a_story_counted(self, run, buried):
        _, last = buried(2, **FAILED)
        buried(3, OTHER)
        [newest] = buried(1, OTHER, **KILLED, buried_at=time.time() + 1)
        result = run("failures")
        rows = [re.split(r"  +", line) for line in lines_of(result)[:4]]
        assert [[row[0], *row[1:4], row[5]] for row in rows[1:]] == [
            [OTHER, "resize", "SIGKILL", "1", str(newest)],
            [QUEUE, "hello", "ValueError", "2", str(last)],
            [OTHER, "-", "buried without a story", "3", "-"],
        ]
        assert f"died:      {KILLED['message']}\n" in result.stdout
        assert "worker:    pid 812 on " in result.stdout
        assert f"buried in {OTHER} without a story: 3" in result.stderr
        assert f"flask-backend jobs {OTHER} --state buried\n" in result.stderr

    def test_a_queue_may_be_chosen(self, run, buried):
        buried(1, OTHER, **KILLED)
        [job_id] = buried(1, **FAILED)
        result = run("failures", QUEUE)
        assert OTHER not in result.stdout
        assert f"job {job_id} of {QUEUE}\n" in result.stdout

    def test_json_has_the_notes_of_each_group(self, run_json, broker, buried):
        first, second = buried(2, **FAILED)
        buried(3)
        told, untold = run_json("failures")
        assert {key: told[key] for key in ("broker", "queue", "endpoint", "kind", "count")} == {
            "broker": broker.uri,
            "queue": QUEUE,
            "endpoint": "hello",
            "kind": "ValueError",
            "count": 2,
        }
        assert [(note["job"], note["traceback"]) for note in told["notes"]] == [(second, TRACEBACK), (first, TRACEBACK)]
        assert untold == {**told, "endpoint": None, "kind": None, "count": 3, "notes": []}

    def test_older_stories_than_the_limit_are_only_counted(self, run, run_json, buried):
        for second in range(5):
            buried(1, **FAILED, buried_at=1_000_000_000 + second)
        buried()
        for options, read, unread in (((), 5, 0), (("--limit", "2"), 2, 3), (("--limit", "5"), 5, 0)):
            result = run("failures", *options)
            assert re.search(rf"\n{QUEUE} +hello +ValueError +{read} ", result.stdout)
            assert bool(re.search(rf"\n{QUEUE} +- +with an older story, not read +{unread} ", result.stdout)) == (
                unread > 0
            )
            left_out = f"the newest {read} stories; {unread} older ones were not read: --limit N reads more\n"
            assert (left_out in result.stderr) == (unread > 0)
            told = run_json("failures", *options)
            assert [(each["kind"], each["count"], len(each["notes"]), each["is_unread"]) for each in told] == [
                ("ValueError", read, read, False),
                (None, 1, 0, False),
                *([(None, unread, 0, True)] if unread else []),
            ]
        result = run("failures", "--limit", "0")
        assert (result.returncode, "--limit" in result.stderr) == (2, True)

    def test_a_thousand_stories_of_a_queue_are_read_by_default(self, run_json, many_buried):
        many_buried(1001)
        assert [(each["kind"], each["count"]) for each in run_json("failures")] == [("ValueError", 1000), (None, 1)]

    def test_memory_does_not_grow_with_the_number_of_stories(self, environment, many_buried):
        def measure(*args: str) -> tuple[int, int]:
            """Return the peak of the memory of a command, in bytes, and the number of bytes that it printed."""
            command = [sys.executable, "-c", SHOW_PEAK, *args]
            with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment) as process:
                printed = sum(map(len, iter(lambda: process.stdout.read(1 << 16), b"")))
                peak_kb = int(re.search(rb"VmHWM:\s+(\d+) kB", process.stderr.read())[1])
            assert process.returncode == 0
            return peak_kb * 1024, printed

        least, _ = measure("failures", "--json")
        many_buried(MANY)
        for args, least_printed in EVERY.items():
            peak, printed = measure(*args)
            assert peak - least < 12 * 1024**2, args  # the stories have 20 MB
            assert printed >= least_printed

    def test_forged_numbers_make_a_job_one_without_a_story(self, run, run_json, broker, buried):
        [job_id] = buried(1)
        note = {"job": job_id, "queue": QUEUE, "reason": "x", "buried_at": 1e9, "host": "h", "pid": 1}
        for field in ("ran_s", "attempts", "scheduled_at", "pid", "buried_at"):
            for number in ("1" + "0" * 4000, "1" + "0" * 5000, "1e999", "-1", "NaN"):
                forged = json.dumps(note | {field: 7}).replace(f'"{field}": 7', f'"{field}": {number}')
                broker.put(f"{QUEUE}.failures", forged.encode())
        result = run("failures")
        assert (result.returncode, "buried without a story" in result.stdout) == (0, True)
        assert [(each["kind"], each["count"]) for each in run_json("failures")] == [(None, 1)]

    def test_nothing_buried_is_not_an_error(self, run, broker):
        result = run("failures")
        assert (result.returncode, result.stdout) == (0, "")
        assert result.stderr == f"no buried jobs at {broker.uri}\n"
        assert "queue nowhere does not exist" in run("failures", "nowhere").stderr

    def test_one_story_is_shown_in_full(self, run, run_json, buried):
        wanted, _ = buried(2, **FAILED)
        result = run("failures", "--job", str(wanted))
        assert result.stdout.startswith(f"job {wanted} of {QUEUE}\nreason:    failed 10 times\ncall:      hello(")
        assert result.stdout.endswith(f"\n\n{TRACEBACK}\n")
        assert run_json("failures", "--job", str(wanted))["exception"] == "ValueError"

    def test_a_job_without_a_story_is_an_error_that_says_why(self, run, broker, buried):
        [untold] = buried()
        ready = broker.put(QUEUE, b"x")
        for job_id, why in [
            (untold, f"job {untold} of {QUEUE} was buried without a story: by a program other"),
            (ready, f"job {ready} of {QUEUE} is ready: only buried jobs have a story"),
            (999, "job 999 is gone"),
        ]:
            result = run("failures", "--job", str(job_id))
            assert (result.returncode, result.stdout) == (1, "")
            assert result.stderr.startswith(f"Error: {why}")

    def test_the_content_of_a_job_cannot_act_on_the_terminal(self, run, run_json, buried):
        evil = "\x1b[2J\x1b]0;gotcha\x07\r\n\ud800"
        told = dict.fromkeys(("reason", "endpoint", "call", "exception", "message", "traceback"), evil)
        buried(1, **FAILED | told)
        result = run("failures")
        assert result.returncode == 0, result.stderr
        assert result.stdout.isascii()
        assert "\x1b" not in result.stdout
        assert "\\x1b[2J" in result.stdout
        assert run_json("failures")[0]["notes"][0]["message"] == evil

    def test_the_suggested_commands_name_the_broker_if_it_was_typed(self, run, broker, buried):
        [job_id] = buried(1, **FAILED)
        result = run("failures", "--broker", broker.uri, BACKEND_CONNECTION_URI="btq://127.0.0.1:1")
        assert f"flask-backend retry {job_id} --broker {broker.uri}\n" in result.stderr


class TestRetry:
    def test_jobs_run_again_and_their_stories_are_deleted(self, run, broker, tasks, command):
        worker = command("worker", QUEUE)
        job = tasks.decide("bury")
        wait_until(lambda: broker.count(QUEUE, "buried") == 1, "it is buried")
        result = run("retry", str(job.id), "--yes")
        assert (result.returncode, result.stdout, result.stderr) == (0, "retried 1 job\n", "")
        worker.wait_for_line("decide bury", times=2)
        wait_until(lambda: broker.count(f"{QUEUE}.failures", "ready") == 1, "the second story alone")

    def test_ids_that_cannot_be_retried_are_named_and_are_exit_1(self, run, broker, buried):
        [job_id] = buried(1, **FAILED)
        delayed = broker.put(QUEUE, b"x", delay=100)
        result = run("retry", str(job_id), "999", str(delayed), "--yes")
        assert (result.returncode, result.stdout) == (1, "retried 2 jobs\n")
        assert result.stderr == "job 999 is gone\n"

    def test_all_of_a_queue_or_of_all_are_retried_after_a_yes(self, run, run_json, broker, buried):
        ids, others = [*buried(2, **FAILED), *buried(2)], buried(1, OTHER, **KILLED)
        assert sorted(run_json("retry", "--all", "--queue", QUEUE, "--yes")["retried"]) == ids
        assert broker.count(OTHER, "buried") == 1
        assert run_json("retry", "--all", "-y") == {"broker": broker.uri, "retried": others, "refused": []}
        nothing = run("retry", "--all", "-y")
        assert (nothing.returncode, nothing.stdout) == (0, "")
        assert nothing.stderr == f"no buried jobs at {broker.uri}\n"

    def test_matching_jobs_are_retried(self, run, broker, buried):
        buried(2, **FAILED)
        buried(1, **FAILED | {"exception": "app.errors.Oops"})
        buried()
        assert run("retry", "--all", "--match", "h*/Oops", "--yes").stdout == "retried 1 job\n"
        assert run("retry", "--all", "--match", "hello", "--yes").stdout == "retried 2 jobs\n"
        assert run("retry", "--all", "--match", "hello", "--yes").stderr == "no buried jobs that match hello\n"
        assert broker.count(QUEUE, "buried") == 1

    def test_nothing_is_done_without_a_terminal_and_without_yes(self, run, broker, buried):
        buried(12, **FAILED)
        result = run("retry", "--all", "--match", "/ValueError")
        assert (result.returncode, result.stdout) == (1, "")
        assert result.stderr == (
            f"Error: Retry 12 buried jobs of {QUEUE} that match /ValueError? "
            "stdin is not a terminal; pass --yes to confirm.\n"
        )
        assert broker.count(QUEUE, "buried") == 12

    def test_a_no_changes_nothing_and_a_yes_does_what_was_asked(self, run, at_terminal, broker, buried):
        buried(1, **FAILED)
        buried(2, OTHER)
        [one] = buried(1, QUEUE, **FAILED)
        code, seen = at_terminal("retry", str(one), answer="n")
        assert (code, "Retry 1 job? [y/N]: n" in seen) == (1, True)
        assert broker.job(one)["state"] == "buried"
        run("delete", str(one), "--yes")
        code, seen = at_terminal("retry", "--all", answer="n")
        assert code == 1
        assert f"       1  {QUEUE}\n       2  {OTHER}\nRetry 3 buried jobs of 2 queues? [y/N]: n\nAborted!" in seen
        assert broker.count(QUEUE, "buried") == broker.count(OTHER, "buried") - 1 == 1
        code, seen = at_terminal("retry", "--all", answer="y")
        assert (code, seen.endswith("retried 3 jobs\n")) == (0, True)
        assert broker.count(QUEUE, "ready") == broker.count(OTHER, "ready") - 1 == 1

    @pytest.mark.parametrize(
        ("args", "message"),
        [
            ([], "choose the jobs to retry: pass their IDs, or --all for all buried jobs"),
            (["1", "--all"], "pass their IDs, or --all"),
            (["1", "--match", "hello"], "they go with --all, not with IDs"),
            (["--all", "--match", "/"], "'/': expected ENDPOINT, ENDPOINT/EXCEPTION or /EXCEPTION"),
            (["0"], "Invalid value for '[ID]...'"),
        ],
    )
    def test_wrong_usage_shows_what_is_expected(self, args, message):
        result = CliRunner().invoke(main, ["retry", *args])
        assert (result.exit_code, result.stdout) == (2, "")
        assert message in result.stderr


class TestDelete:
    def test_jobs_in_any_state_except_reserved_are_deleted_after_a_look_at_them(self, run, at_terminal, broker, buried):
        [job_id] = buried(1, **FAILED)
        ready = broker.put(QUEUE, b'{"endpoint": "greet", "args": ["Ada"]}')
        assert run("delete", str(job_id)).returncode == 1
        code, seen = at_terminal("delete", str(job_id), str(ready), answer="n")
        assert code == 1
        assert seen.startswith(
            f'  {job_id}  {QUEUE}  buried  hello("world")\n  {ready}  {QUEUE}  ready  greet("Ada")\n'
            "Delete 2 jobs? [y/N]: n\n"
        )
        assert broker.jobs() == 3
        result = run("delete", str(job_id), str(ready), "999", "--yes")
        assert (result.returncode, result.stdout, result.stderr) == (1, "deleted 2 jobs\n", "job 999 is gone\n")
        assert broker.jobs() == 0

    def test_with_all_only_the_buried_ones_are_deleted(self, run_json, broker, buried):
        ids = [*buried(2, **FAILED), *buried(1)]
        broker.put(QUEUE, b"x")
        broker.put(QUEUE, b"x", delay=100)
        assert sorted(run_json("delete", "--all", "--yes")["deleted"]) == ids
        assert broker.jobs() == 2


class TestPauseAndResume:
    def test_a_worker_gets_nothing_until_the_queue_is_resumed(self, run, run_json, broker, tasks, command):
        worker = command("worker", QUEUE)
        wait_until(lambda: broker.waiting(QUEUE) == 1, "the worker waits")
        paused = run("pause", QUEUE, "--yes")
        assert (paused.returncode, paused.stdout) == (0, f"paused {QUEUE} until it is resumed\n")
        tasks.note("resumed")
        assert re.search(rf"^{QUEUE} +until resumed +1 ", run("queues", "--interval", "0").stdout, re.MULTILINE)
        assert not worker.wrote("note resumed")
        assert run_json("resume", QUEUE, "--yes")["pause_left_s"] == 0
        worker.wait_for_line("note resumed")
        assert run("resume", QUEUE).stdout == f"{QUEUE} is not paused\n"

    def test_a_pause_may_have_an_end(self, run, run_json, broker):
        broker.put(QUEUE, b"x")
        assert 98 <= run_json("pause", QUEUE, "--for", "100", "--yes")["pause_left_s"] <= 100
        assert re.search(r"1m\d\ds", run("queues", "--interval", "0").stdout)
        assert run("pause", QUEUE, "--for", "0").returncode == 2

    def test_both_ask_for_confirmation(self, run, at_terminal, broker):
        broker.put(QUEUE, b"x")
        assert "stdin is not a terminal" in run("pause", QUEUE).stderr
        code, seen = at_terminal("pause", QUEUE, "--for", "90", answer="n")
        assert (code, seen.splitlines()[0]) == (1, f"Pause {QUEUE} (1 ready, 0 workers) for 1m30s? [y/N]: n")
        assert broker.tube(QUEUE)["pause"] == 0
        assert at_terminal("pause", QUEUE, answer="y")[0] == 0
        code, seen = at_terminal("resume", QUEUE, answer="n")
        assert (code, seen.splitlines()[0]) == (1, f"Resume {QUEUE} (1 ready, 0 workers)? [y/N]: n")
        assert broker.tube(QUEUE)["pause"] > 0

    @pytest.mark.parametrize("command", ["pause", "resume"])
    def test_a_missing_queue_is_an_error(self, run, command):
        result = run(command, "nowhere", "--yes")
        assert (result.returncode, result.stdout) == (1, "")
        assert result.stderr.startswith("Error: queue nowhere does not exist at btq://")


class TestTerminal:
    """What a person sees in 80 columns."""

    @pytest.fixture
    def full(self, broker, buried):
        """A server with one of everything."""
        buried(12, **FAILED | {"exception": "requests.exceptions.ConnectionError", "message": "no luck " * 50})
        buried(1, OTHER, **KILLED)
        buried(1, OTHER, reason="it can never run: the body is not JSON in UTF-8: Expecting value: line 1 column 1")
        broker.put(OTHER, b"x")
        with Console(Settings(Address("127.0.0.1", broker.port))) as console:
            console.pause(QUEUE, 100)

    def test_a_queue_without_workers_is_red_and_a_paused_one_yellow(self, full, at_terminal):
        code, seen = at_terminal("queues", "--interval", "0.1")
        assert code == 0
        assert re.search(rf"\x1b\[31m{OTHER} ", seen)
        assert re.search(rf"\x1b\[33m{QUEUE} +1m\d\ds\x1b\[0m\n\x1b\[33m +0 +0 +0 +12 ", seen)
        assert_fits(seen)

    def test_no_color_disables_colors(self, full, at_terminal):
        for args in (["queues", "--interval", "0"], ["failures"]):
            _, seen = at_terminal(*args, NO_COLOR="1")
            assert "\x1b" not in seen

    def test_no_line_of_the_failures_is_too_long(self, full, at_terminal):
        code, seen = at_terminal("failures")
        assert code == 0
        assert "requests.exceptions.ConnectionError" in seen
        assert re.search(r"\n +12 .* no luck no .*…\n", seen)
        assert_fits(seen)


def test_no_command_imports_flask_unless_it_needs_the_address_from_the_app(environment, broker, tmp_path):
    code = (
        "import sys\nfrom flask_backend.cli import main\n"
        "for args in ['queues', '--interval', '0'], ['failures'], ['retry', '--all'], ['delete', '1', '-y'], "
        "['pause', 'q'], ['resume', 'q']:\n"
        "    try:\n        main(args)\n    except SystemExit:\n        pass\n"
        "    assert 'flask' not in sys.modules, args\n"
    )
    subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, env=environment, cwd=tmp_path, timeout=30
    )


def test_the_app_gives_the_address_of_the_broker_if_nothing_else_does(environment, broker, buried, tmp_path):
    (tmp_path / "website.py").write_text(
        "from flask import Flask\nfrom flask_backend import Backend\napp = Flask(__name__)\n"
        f"app.config['BACKEND_CONNECTION_URI'] = {broker.uri!r}\nBackend(app)\n"
    )
    [job_id] = buried(1, **FAILED)
    del environment["BACKEND_CONNECTION_URI"]
    command = [PROGRAM, "--app", "website.py", "failures"]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=30)
    assert f"job {job_id} of {QUEUE}" in result.stdout
    assert f"flask-backend retry {job_id} --broker {broker.uri}\n" in result.stderr


def test_a_reader_that_closes_early_is_not_an_error(environment, buried, tmp_path):
    buried(3, **FAILED)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([PROGRAM, "failures"], **pipes, text=True, env=environment, cwd=tmp_path) as process:
        assert process.stdout.readline().startswith("queue ")
        process.stdout.close()
        assert "Traceback" not in process.stderr.read()


def test_an_interrupted_command_ends_in_a_line(environment, broker, tmp_path):
    broker.put(QUEUE, b"x")
    process = subprocess.Popen(
        [PROGRAM, "queues", "--interval", "60"], env=environment, cwd=tmp_path, stderr=subprocess.PIPE, text=True
    )
    with broker.client() as client:
        wait_until(lambda: has_looked(client), "the first look")
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=20)
    assert (process.returncode, stderr.strip()) == (1, "Aborted!")
