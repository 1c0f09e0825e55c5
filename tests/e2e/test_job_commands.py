"""The commands for single jobs, as a user types them."""

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
from pathlib import Path

import pytest
from support.supervised import Command
from support.waiting import wait_until

from flask_backend.broker.cursors import Owner

BIN = Path(sys.executable).parent / "flask-backend"
QUEUE = "com.example/default"
OTHER = "com.example/other"
INBOX = "com.example/inbox"

APP = """
from flask import Flask
from flask_backend import Backend, Retry

app = Flask(__name__)
backend = Backend(app)

@backend.task("com.example/default", retry=Retry(max_retries=2, min_backoff=600))
def hello(target, *, loud=False):
    raise ValueError("no luck")

@backend.task("com.example/default", retry=Retry(max_retries=0))
def once():
    raise ValueError("no\\nluck, " + "at all " * 20)

@backend.task("com.example/default", delay=30, priority=5)
def both(): ...

@backend.task("com.example/other")
def both(): ...

@backend.receiver("com.example/inbox")
def inbox(message): ...
"""


@pytest.fixture
def folder(tmp_path):
    """A folder with an app.py, which Flask finds by itself."""
    (tmp_path / "app.py").write_text(APP)
    return tmp_path


@pytest.fixture
def run(broker, folder):
    """Run a command in that folder, for the test's own broker."""

    def run(*args: str | int, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [BIN, *map(str, args)], capture_output=True, text=True, cwd=folder, env=environment(broker, env), timeout=30
        )

    return run


@pytest.fixture
def run_without_app(run, folder):
    (folder / "app.py").unlink()
    return run


def environment(broker, env: dict[str, str]) -> dict[str, str]:
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("BACKEND_", "FLASK_"))}
    return inherited | broker.env | env


def in_terminal(broker, folder: Path, *args: str | int, answer: str = "", program: tuple[str, ...] = ()) -> str:
    """Run a command in a terminal of 80 columns; return its output."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    command = [*(program or (BIN,)), *map(str, args)]
    process = subprocess.Popen(
        command, cwd=folder, env=environment(broker, {}), stdin=theirs, stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    os.write(ours, answer.encode())
    shown = b""
    while True:
        try:
            shown += os.read(ours, 1 << 16)
        except OSError:  # the other side is closed
            break
    os.close(ours)
    assert process.wait(20) == 0, shown
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown.decode()).replace("\r\n", "\n")


def call(endpoint: str, *args, **kwargs) -> bytes:
    return json.dumps({"endpoint": endpoint, "args": args, "kwargs": kwargs}).encode()


@pytest.fixture
def failed(broker, folder):
    """Let a worker fail; return the ids of a job to be retried and of a buried one."""
    again, buried = broker.put(QUEUE, call("hello", "world")), broker.put(QUEUE, call("once"))
    worker = Command(broker, folder, "worker", QUEUE, app=str(folder / "app.py"))
    try:
        wait_until(lambda: broker.count(QUEUE, "delayed") and broker.count(QUEUE, "buried"), f"both:\n{worker.log}")
        worker.send(signal.SIGTERM)
        assert worker.wait() == 0
    finally:
        worker.end()
    return again, buried


class TestPeek:
    def test_it_shows_everything_known_of_a_call(self, broker, run_without_app):
        job = broker.put(QUEUE, b'{"endpoint":"hello","args":["w"],"headers":{"at":1767225600.5}}', priority=5, ttr=90)
        result = run_without_app("peek", job, TZ="UTC")
        assert (result.returncode, result.stderr) == (0, "")
        assert re.sub(r"age:( +)\ds", r"age:\1Xs", result.stdout) == (
            f"job:       {job}\n"
            f"queue:     {QUEUE}\n"
            "state:     ready\n"
            "priority:  5\n"
            "age:       Xs\n"
            "ttr:       1m30s\n"
            "attempts:  0\n"
            "counters:  reserves 0, timeouts 0, releases 0, buries 0, kicks 0\n"
            "scheduled: 2026-01-01 00:00:00 +0000\n"
            'headers:   {"at": 1767225600.5}\n'
            'call:      hello("w")\n'
        )

    def test_the_cursor_of_a_long_task_is_shown_and_deleted_with_the_job(self, broker, run_without_app):
        job = broker.put(QUEUE, b'{"endpoint":"hello","args":["w"],"headers":{"id":"7f"}}')
        tube = Owner(job, QUEUE, "7f").tube
        body = {"job": job, "queue": QUEUE, "uid": "7f", "number": 2, "cursor": {"page": 3}}
        broker.put(tube, json.dumps(body).encode(), ttr=1)
        assert run_without_app("peek", job).stdout.endswith('cursor:    {"page": 3}\n')
        assert json.loads(run_without_app("peek", job, "--json").stdout)["cursor"] == {"page": 3}
        assert "It goes on at its last saved checkpoint" in run_without_app("explain", job).stdout
        assert tube not in run_without_app("queues").stdout
        assert run_without_app("delete", job, "--yes").returncode == 0
        assert broker.is_empty(tube)

    def test_another_message_is_shown_as_json_with_its_remaining_delay(self, broker, run_without_app):
        job = broker.put(INBOX, b'{"any":1}', delay=600)
        shown = run_without_app("peek", job).stdout
        assert re.search(r"state: +delayed\n", shown)
        assert re.search(r"time left: (10m|9m5\ds)\n", shown)
        assert shown.endswith('body:      9 bytes\n  {\n    "any": 1\n  }\n')

    def test_raw_is_only_the_body(self, broker, run_without_app):
        body = b"\x00\xff\r\nno text\n"
        job = broker.put(QUEUE, body)
        result = subprocess.run([BIN, "peek", str(job), "--raw", "--broker", broker.uri], capture_output=True)
        assert (result.stdout, result.stderr, result.returncode) == (body, b"", 0)

    def test_json_has_the_body_decoded(self, broker, run_without_app):
        with broker.client(QUEUE) as client:
            job = client.reserve_job(client.put(call("hello", "\ud800"), ttr=60)).id
            told = json.loads(run_without_app("peek", job, "--json").stdout)
        assert told.pop("time_left_s") <= 60
        assert told.pop("age_s") < 30
        assert told == {
            "broker": broker.uri,
            "job": job,
            "queue": QUEUE,
            "state": "reserved",
            "priority": 65536,
            "delay_s": 0,
            "ttr_s": 60,
            "reserves": 1,
            "timeouts": 0,
            "releases": 0,
            "buries": 0,
            "kicks": 0,
            "attempts": 1,
            "expires_at": None,
            "cursor": None,
            "bytes": 55,
            "body": {"endpoint": "hello", "args": ["\ud800"], "kwargs": {}},
            "story": None,
        }
        text, binary = broker.put(QUEUE, b"text"), broker.put(QUEUE, b"\xff")
        assert json.loads(run_without_app("peek", text, "--json").stdout)["text"] == "text"
        assert json.loads(run_without_app("peek", binary, "--json").stdout)["base64"] == "/w=="

    def test_a_buried_job_has_a_line_of_its_story(self, broker, run, failed):
        _, buried = failed
        shown = run("peek", buried).stdout
        assert re.search(r"attempts: +1\n", shown)
        assert r"story:     failed once: ValueError: no\nluck, at all" in shown
        assert f"\n           flask-backend failures --job {buried}\n" in shown
        assert json.loads(run("peek", buried, "--json").stdout)["story"]["exception"] == "ValueError"

    def test_it_shows_when_a_call_expires(self, broker, run_without_app):
        body = b'{"endpoint":"hello","args":["w"],"headers":{"expires":1767225600}}'
        job, other = broker.put(QUEUE, body), broker.put(QUEUE, body.replace(b"1767225600", b"7767225600"))
        shown = run_without_app("peek", job, TZ="UTC").stdout
        assert re.search(r"^expires:   2026-01-01 00:00:00 \+0000, .+ ago$", shown, re.MULTILINE)
        assert json.loads(run_without_app("peek", job, "--json").stdout)["expires_at"] == 1767225600
        assert re.search(r"^expires:   2216-.+, in \d+d", run_without_app("peek", other).stdout, re.MULTILINE)
        listed = run_without_app("jobs", QUEUE).stdout
        assert re.search(r"^id +state +age +expires in +attempts +call$", listed, re.MULTILINE)
        assert re.search(rf"^ *{job} +ready +\S+ +expired +0 +hello", listed, re.MULTILINE)
        [late, early] = json.loads(run_without_app("jobs", QUEUE, "--json").stdout)["jobs"]
        assert (late["expires_at"], early["expires_at"]) == (7767225600, 1767225600)
        assert f"Job {job} expired " in run_without_app("explain", job).stdout
        assert json.loads(run_without_app("explain", job, "--json").stdout)["reason"] == "expired"

    @pytest.mark.parametrize("option", ["--raw", "--json"])
    def test_a_missing_job_is_exit_1(self, run_without_app, option):
        result = run_without_app("peek", 99, option)
        assert (result.returncode, result.stdout) == (1, "")
        assert result.stderr == "Error: job 99 is gone: it has finished, was deleted, or never existed\n"

    @pytest.mark.parametrize(
        ("args", "message"),
        [
            (["0"], "'0' is not a job id: expected a whole number from 1"),
            (["1", "--raw", "--json"], "--raw and --json exclude each other"),
        ],
    )
    def test_wrong_usage_is_exit_2(self, run_without_app, args, message):
        result = run_without_app("peek", *args)
        assert (result.returncode, message in result.stderr) == (2, True)


MASKED_APP = """
from flask import Flask
from flask_backend import Backend, Retry

app = Flask(__name__)
app.config["BACKEND_MASK"] = ("pin", "token")
backend = Backend(app)

@backend.task("q", retry=Retry(max_retries=0))
def login(user, pin, data=None):
    raise ValueError("refused")
"""


def test_secret_values_are_hidden_in_all_that_the_commands_show(broker, folder, run):
    (folder / "app.py").write_text(MASKED_APP)
    body = call("login", "ada", "4711", data={"a": [{"access_token": "4711"}]})
    waits, fails = broker.put("q", body, delay=1000), broker.put("q", body)
    worker = Command(broker, folder, "worker", "q", app=str(folder / "app.py"))
    try:
        wait_until(lambda: broker.count("q", "buried"), f"it is buried:\n{worker.log}")
        worker.send(signal.SIGTERM)
        worker.wait()
    finally:
        worker.end()
    address = f"app.config['BACKEND_CONNECTION_URI'] = {broker.uri!r}\nbackend ="
    (folder / "app.py").write_text(MASKED_APP.replace("backend =", address))
    named = {"BACKEND_CONNECTION_URI": ""}  # so that the app is asked for it
    for words in (("peek", waits), ("peek", waits, "--json"), ("jobs", "q"), ("failures", "--job", fails)):
        shown = run(*words, **named)
        assert shown.returncode == 0, shown.stderr
        assert "4711" not in shown.stdout + shown.stderr, words
        assert "***" in shown.stdout, words
    by_address = run("peek", waits)  # the app is not loaded: only the usual words are known
    assert by_address.stdout.count("4711") == 1


class TestJobs:
    def test_they_are_listed_newest_first_with_their_main_facts(self, broker, run_without_app):
        ready = broker.put(QUEUE, call("hello", "world"))
        delayed = broker.put(QUEUE, call("hello", target="x"), delay=7200)
        broker.put(OTHER, call("both"))
        with broker.client(QUEUE) as client:
            buried = client.put(b"no json\n", priority=0)
            client.bury(client.reserve())
            reserved = client.reserve_job(client.put(b"[1]")).id
            result = run_without_app("jobs", QUEUE)
        assert (result.returncode, result.stderr) == (0, "")
        title, *lines = result.stdout.splitlines()
        assert re.fullmatch(r"id +state +age +due in +attempts +call", title.strip())
        rows = [re.split(r" {2,}", line.strip(), maxsplit=5) for line in lines]
        assert [(row[0], row[1], *row[3:]) for row in rows] == [
            (str(reserved), "reserved", "-", "1", "[1]"),
            (str(buried), "buried", "-", "1", r"no json\n"),
            (str(delayed), "delayed", rows[2][3], "0", 'hello(target="x")'),
            (str(ready), "ready", "-", "0", 'hello("world")'),
        ]
        assert re.fullmatch(r"2h|1h59m", rows[2][3])

    def test_states_are_chosen_and_json_is_for_programs(self, broker, run_without_app):
        for number in range(3):
            broker.put(QUEUE, call("hello", number), delay=600 * (number > 0))
        result = run_without_app("jobs", QUEUE, "--state", "delayed", "--state", "buried", "--json")
        told = json.loads(result.stdout)
        assert [(job["call"], job["state"], job["attempts"]) for job in told.pop("jobs")] == [
            ("hello(2)", "delayed", 0),
            ("hello(1)", "delayed", 0),
        ]
        assert told == {
            "broker": broker.uri,
            "queue": QUEUE,
            "counted": 2,
            "looked_at": 3,
            "is_complete": True,
        }

    def test_it_stops_when_all_counted_jobs_are_found(self, broker, run_without_app):
        with broker.client(OTHER) as client:
            for _ in range(1200):
                client.put(b"")
            client.use(QUEUE)
            client.put(b"[]")
        assert json.loads(run_without_app("jobs", QUEUE, "--json").stdout)["looked_at"] == 500

    def test_it_reports_when_it_stopped_at_a_bound(self, broker, run_without_app):
        ids = [broker.put(queue, b"[]") for queue in (QUEUE, QUEUE, QUEUE, OTHER)]
        result = run_without_app("jobs", QUEUE, "--scan", 2)
        assert [line.split()[0] for line in result.stdout.splitlines()] == ["id", str(ids[2])]
        assert result.stderr == "looked at the newest 2 ids; 1 of 3 jobs found: --scan N looks further\n"
        result = run_without_app("jobs", QUEUE, "--limit", 2)
        assert [line.split()[0] for line in result.stdout.splitlines()] == ["id", str(ids[2]), str(ids[1])]
        assert result.stderr == "the newest 2 of 3 jobs: --limit N shows more\n"

    def test_no_jobs_are_not_an_error(self, broker, run_without_app):
        broker.put(QUEUE, b"[]")
        result = run_without_app("jobs", QUEUE, "--state", "buried")
        assert (result.returncode, result.stdout, result.stderr) == (0, "", f"no buried jobs in {QUEUE}\n")
        result = run_without_app("jobs", "nowhere")
        assert result.stderr.startswith("no jobs in nowhere: queue nowhere does not exist at btq://")

    def test_in_a_terminal_nothing_wraps(self, broker, folder):
        broker.put(QUEUE, call("hello", "日本語" * 100))
        broker.put(QUEUE, call("hello", "long" * 100), delay=600)
        lines = in_terminal(broker, folder, "jobs", QUEUE).splitlines()
        assert len(lines) == 3
        assert len(lines[1]) == 80
        assert lines[1].endswith("longlong…")
        assert sum(2 if ord(char) > 0x3000 else 1 for char in lines[2]) in (79, 80)

    def test_a_slow_scan_shows_its_progress(self, broker, folder):
        with broker.client(QUEUE) as client:
            client.put(b"[]")
            client.use(OTHER)
            for _ in range(1200):
                client.put(b"")
        code = "from flask_backend.cli import main, scanning; scanning._MOMENT_S = 0; main()"
        shown = in_terminal(broker, folder, "jobs", QUEUE, program=(sys.executable, "-c", code))
        assert re.search(r"looking at ids +\[#+-*\] +\d+%", shown)
        assert all(len(line) <= 80 for line in re.split("[\r\n]", shown))


def test_peek_and_jobs_and_explain_need_no_flask(broker, tmp_path):
    job = broker.put(QUEUE, call("hello"))
    code = (
        "import sys\nfrom flask_backend.cli import main\n"
        f"for args in (['peek', '{job}'], ['jobs', '{QUEUE}'], ['explain', '{job}']):\n"
        "    main([*args], standalone_mode=False)\n"
        "assert 'flask' not in sys.modules and 'psutil' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path, env=environment(broker, {}))


class TestCall:
    def test_it_schedules_and_prints_the_id(self, broker, run):
        result = run("call", "hello", '["wörld"]', "--yes")
        assert (result.returncode, result.stderr) == (0, "")
        message = json.loads(broker.peek(int(result.stdout)))
        assert list(message.pop("headers")) == ["id", "at"]
        assert message == {"endpoint": "hello", "args": ["wörld"], "kwargs": {}}

    def test_arguments_have_names_and_options_set_the_job(self, broker, run):
        how = ("--delay", "59.5", "--priority", "3", "--ttr", "7")
        told = json.loads(run("call", "hello", '{"target": 1, "loud": true}', *how, "--yes", "--json").stdout)
        stats = broker.job(told["job"])
        assert (stats["tube"], stats["state"], stats["delay"], stats["pri"], stats["ttr"]) == (
            QUEUE,
            "delayed",
            60,
            3,
            7,
        )
        message = json.loads(broker.peek(told["job"]))
        assert (message["args"], message["kwargs"]) == ([], {"target": 1, "loud": True})
        assert told == {"broker": broker.uri, "job": told["job"], "queue": QUEUE, "uid": message["headers"]["id"]}

    def test_an_array_and_an_object_are_arguments_of_both_kinds(self, broker, run):
        message = json.loads(broker.peek(int(run("call", "hello", '["w"]', '{"loud": true}', "--yes").stdout)))
        assert (message["args"], message["kwargs"]) == (["w"], {"loud": True})

    @pytest.mark.parametrize("words", [("hello", '["w"]', "[1]"), ("hello", "{}", "{}"), ("inbox", "1", "{}")], ids=str)
    def test_two_values_of_other_kinds_are_exit_2(self, broker, run, words):
        assert run("call", *words, "--yes").returncode == 2
        assert broker.jobs() == 0

    def test_a_call_may_expire(self, broker, run):
        job = int(run("call", "hello", '["w"]', "--expires", "90.5", "--yes").stdout)
        headers = json.loads(broker.peek(job))["headers"]
        assert headers["expires"] - headers["at"] == pytest.approx(90.5, abs=0.5)

    @pytest.mark.parametrize(
        ("args", "message"),
        [
            (("hello", '["w"]', "--delay", "60", "--expires", "60"), "expected a time after the delay of 60 s"),
            (("hello", '["w"]', "--expires", "0"), "0.0 is not in the range x>0"),
            (("inbox", "1", "--expires", "5"), "a message cannot expire"),
        ],
    )
    def test_an_expiry_that_makes_no_sense_is_exit_2(self, broker, run, args, message):
        result = run("call", *args, "--yes")
        assert result.returncode == 2
        assert message in " ".join(result.stderr.split())
        assert broker.jobs() == 0

    def test_omitted_options_come_from_the_decorator(self, broker, run):
        stats = broker.job(int(run("call", "both", "--queue", QUEUE, "--priority", "1", "--yes").stdout))
        assert (stats["delay"], stats["pri"]) == (30, 1)

    def test_it_asks_for_confirmation(self, broker, folder, run):
        shown = in_terminal(broker, folder, "call", "hello", '["world"]', "--delay", 90, answer="y\n")
        assert f'Schedule hello("world") on {QUEUE} in 1m30s? [y/N]' in shown
        assert broker.count(QUEUE, "delayed") == 1
        result = run("call", "hello", '["world"]')
        assert (result.returncode, broker.jobs()) == (1, 1)
        assert "stdin is not a terminal; pass --yes to confirm" in result.stderr

    def test_a_receiver_gets_the_message(self, broker, run):
        result = run("call", "inbox", '{"any": "json"}', "--yes")
        assert broker.peek(int(result.stdout)) == b'{"any":"json"}'
        result = run("call", "inbox", "--yes")
        assert (result.returncode, "a receiver needs a message: pass it as JSON" in result.stderr) == (2, True)

    def test_an_endpoint_of_several_queues_needs_the_queue(self, broker, run):
        result = run("call", "both", "--yes")
        assert result.returncode == 2
        assert f"several queues have 'both': pass --queue {QUEUE} or --queue {OTHER}" in result.stderr
        assert run("call", "both", "--queue", OTHER, "--yes").returncode == 0
        assert broker.count(OTHER, "ready") == 1

    def test_an_unknown_endpoint_is_answered_with_similar_ones(self, run):
        result = run("call", "helo", "--yes")
        assert result.returncode == 2
        assert re.search(r"no task or receiver 'helo'\. Known names, closest first:\n  hello\n", result.stderr)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ("{x", "'{x' is not JSON (Expecting"),
            ("[]", "hello(target, *, loud=False) cannot be called with these arguments: missing a required argument"),
            ('"world"', """pass a single argument as '["world"]'"""),
        ],
    )
    def test_arguments_that_do_not_fit_are_refused(self, broker, run, arguments, message):
        result = run("call", "hello", arguments, "--yes")
        assert (result.returncode, result.stdout, broker.jobs()) == (2, "", 0)
        assert message in result.stderr


class TestExplain:
    """Each reason, as it arises."""

    def explain(self, run, job: int) -> dict:
        result = run("explain", job, "--json")
        assert (result.returncode, result.stderr) == (0, "")
        told = json.loads(result.stdout)
        assert told["job"] == job
        return told

    def test_gone(self, broker, run):
        told = self.explain(run, 99)
        assert told == {
            "broker": broker.uri,
            "job": 99,
            "queue": None,
            "state": None,
            "reason": "gone",
            "text": "Job 99 is gone: it has finished, was deleted, or never existed.",
        }

    def test_the_text_is_printed_without_json(self, broker, folder):
        job = broker.put(QUEUE, call("gone"))
        shown = in_terminal(broker, folder, "explain", job)
        assert " ".join(shown.split()) == (
            f"No worker watches {QUEUE} to take job {job}: start one with `flask-backend supervise --queue {QUEUE}`. "
            f"Job {job} cannot run: queue '{QUEUE}' has no task 'gone' in this version of the app."
        )
        assert all(len(line) <= 80 for line in shown.splitlines())
        assert f"\n`flask-backend supervise --queue {QUEUE}`" in shown  # in full, to be copied

    def test_paused_while_workers_are_idle(self, broker, run, command, folder):
        command("worker", QUEUE, app=str(folder / "app.py"))
        wait_until(lambda: broker.waiting(QUEUE), "the worker waits")
        with broker.client() as client:
            client.pause_tube(QUEUE, 600)
        told = self.explain(run, broker.put(QUEUE, call("once")))
        assert (told["reason"], told["state"]) == ("paused", "ready")
        assert 590 <= told["pause_left_s"] <= 600
        assert f"; `flask-backend resume {QUEUE}` ends the pause." in told["text"]
        assert "No worker" not in told["text"]

    def test_no_worker(self, broker, run):
        told = self.explain(run, broker.put(QUEUE, call("once")))
        assert (told["reason"], told["workers"]) == ("no-worker", 0)
        assert f"`flask-backend supervise --queue {QUEUE}`" in told["text"]

    def test_busy_and_reserved(self, broker, run):
        with broker.client(QUEUE) as client:
            held, next_one = client.put(call("once"), ttr=60), client.put(call("both"))
            client.reserve()
            busy, reserved = self.explain(run, next_one), self.explain(run, held)
        assert [busy[key] for key in ("reason", "ready", "workers", "idle")] == ["busy", 1, 1, 0]
        assert (busy["attempt"], busy["allowed"]) == (1, 10)
        assert [reserved[key] for key in ("reason", "ttr_s", "attempt", "allowed")] == ["reserved", 60, 1, 1]
        assert reserved["silent_s"] + reserved["time_left_s"] == 60

    def test_delayed(self, broker, run):
        told = self.explain(run, broker.put(QUEUE, call("once"), delay=600))
        assert (told["reason"], told["state"]) == ("delayed", "delayed")
        assert 590 <= told["due_in_s"] <= 600

    def test_retry_and_buried_with_its_story(self, run, failed):
        again, buried = failed
        told = self.explain(run, again)
        assert [told[key] for key in ("reason", "attempt", "allowed")] == ["retry", 2, 3]
        assert told["text"].startswith(f"Job {again} has failed once; attempt 2 of 3 is due at ")
        told = self.explain(run, buried)
        assert told["reason"] == "buried"
        assert r"failed once: ValueError: no\nluck, at all" in told["text"]

    def test_buried_without_a_story(self, broker, run):
        with broker.client(QUEUE) as client:
            job = client.put(call("once"))
            client.bury(client.reserve())
        told = self.explain(run, job)
        assert told["reason"] == "buried"
        assert told["text"].startswith(f"Job {job} was buried without a story")

    @pytest.mark.parametrize(
        ("body", "reason", "text"),
        [
            (call("gone"), "unknown-endpoint", f"queue '{QUEUE}' has no task 'gone' in this version of the app"),
            (call("hello"), "bad-arguments", "missing a required argument: 'target'"),
            (b"{}", "bad-body", "the JSON object has no 'endpoint'"),
        ],
    )
    def test_a_job_that_the_app_cannot_run(self, broker, run, body, reason, text):
        with broker.client(QUEUE):  # a worker watches
            told = self.explain(run, broker.put(QUEUE, body))
        assert told["reason"] == reason
        assert text in told["text"]

    def test_without_an_app_only_the_broker_is_asked(self, broker, run_without_app):
        with broker.client(QUEUE) as client:
            told = self.explain(run_without_app, client.put(call("gone")))
        assert (told["reason"], told["allowed"]) == ("busy", None)

    def test_an_app_that_cannot_be_loaded_is_skipped(self, broker, run, folder):
        (folder / "app.py").write_text("import nonexistent_module")
        job = broker.put(QUEUE, call("gone"))
        result = run("explain", job)
        assert result.returncode == 0
        assert "Warning: going on without the app" in result.stderr
        assert "No module named 'nonexistent_module'" in result.stderr
        assert result.stdout.startswith(f"No worker watches {QUEUE}")

    def test_without_the_app_that_knows_the_broker_it_is_exit_3(self, run, folder):
        (folder / "app.py").write_text("import nonexistent_module")
        result = run("explain", 1, BACKEND_CONNECTION_URI="")
        assert (result.returncode, result.stdout) == (3, "")
        assert "To go on without the app, pass the address of Beanstalkd with --broker." in result.stderr


class TestCheckWaiting:
    def test_all_waiting_jobs_fit(self, broker, run):
        broker.put(QUEUE, call("hello", "world"))
        broker.put(OTHER, call("both"), delay=600)
        broker.put(INBOX, b"[]")
        broker.put("com.external/queue", b"no json")
        result = run("check", "--waiting")
        assert (result.returncode, result.stderr) == (0, "")
        assert result.stdout.startswith(
            f"app:    app\nbroker: {broker.uri}\nqueue:  {QUEUE}\n  task both\n  task hello\n"
        )
        assert result.stdout.endswith("\n  receiver inbox\nall 3 waiting jobs fit\n")

    def test_jobs_that_do_not_fit_are_shown_in_groups(self, broker, run):
        examples = [broker.put(QUEUE, call("hello", name=number)) for number in range(12)]
        examples += [broker.put(QUEUE, call("gone", number), delay=600) for number in range(3)]
        broker.put(QUEUE, call("hello", "fits"))
        unreadable = broker.put(INBOX, b"{")
        broker.put(INBOX, b"{}")
        with broker.client(OTHER) as client:
            buried = client.put(call("gone"))
            client.bury(client.reserve())
            client.put(call("both"))
            client.bury(client.reserve())
        result = run("check", "--waiting")
        assert result.returncode == 1
        needs, calls, buried_calls, body, summary = result.stdout.splitlines()[-5:]
        assert needs == (
            f"12 jobs need hello(name=...), which this version lacks (of {QUEUE}), e.g. job {examples[11]}: "
            "hello(target, *, loud=False) cannot be called with these arguments: missing a required argument: 'target'"
        )
        assert calls == f"3 jobs call gone(...), which this version lacks (of {QUEUE}), e.g. job {examples[14]}"
        assert buried_calls == f"1 buried job calls gone(...), which this version lacks (of {OTHER}), e.g. job {buried}"
        assert body.startswith(
            f"1 job has a body that no version can read (of {INBOX}), e.g. job {unreadable}: the body is not JSON"
        )
        assert summary == "16 of 18 waiting jobs do not fit; 1 of 2 buried ones"

    def test_jobs_that_have_expired_need_no_task(self, broker, run):
        for endpoint, expires in (("gone", 1), ("both", 2), ("both", 2**33)):
            message = json.loads(call(endpoint)) | {"headers": {"expires": expires}}
            broker.put(QUEUE, json.dumps(message).encode(), delay=600)
        broker.put(INBOX, b'{"headers": {"expires": 1}}')
        result = run("check", "--waiting")
        assert result.returncode == 0
        assert result.stdout.endswith("\nall 2 waiting jobs fit; 2 jobs expired and will be deleted\n")
        assert json.loads(run("check", "--waiting", "--json").stdout)["waiting"]["expired"] == 2

    def test_json_extends_that_of_check(self, broker, run):
        job = broker.put(QUEUE, call("gone"))
        result = run("check", "--waiting", "--json")
        told = json.loads(result.stdout)
        assert result.returncode == 1
        assert told.pop("waiting") == {
            "jobs": 1,
            "buried": 0,
            "expired": 0,
            "misfits": [
                {
                    "queue": QUEUE,
                    "reason": "unknown-endpoint",
                    "needs": "gone(...)",
                    "why": f"queue '{QUEUE}' has no task 'gone' in this version of the app",
                    "jobs": 1,
                    "buried": 0,
                    "example": job,
                }
            ],
            "counted": 1,
            "looked_at": 1,
            "is_complete": True,
        }
        assert set(told) == {"app", "broker", "queues"}

    def test_the_check_reports_when_it_stopped_at_a_bound(self, broker, run):
        for _ in range(2):
            broker.put(QUEUE, call("once"))
        result = run("check", "--waiting", "--scan", 1)
        assert (result.returncode, result.stdout.splitlines()[-1]) == (0, "the only waiting job that was found fits")
        assert result.stderr == "looked at the newest 1 ids; 1 of 2 jobs found: --scan N looks further\n"

    def test_a_bound_without_a_scan_is_exit_2(self, run):
        result = run("check", "--scan", 10)
        assert (result.returncode, "--scan needs --waiting" in result.stderr) == (2, True)
