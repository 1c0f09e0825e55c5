"""Arbitrary content on the broker, in every command, on every output."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from support.waiting import wait_until

from flask_backend.cli import main
from flask_backend.visible import visible_lines

PROGRAM = Path(sys.executable).parent / "flask-backend"

APP = """
from flask import Flask
from flask_backend import Backend, Retry

app = Flask(__name__)
app.config["BACKEND_RETRY"] = Retry(max_retries=0)
backend = Backend(app)

@backend.task("q", retry=Retry(max_retries=0))
def grüßen(*args, **kwargs):
    app.logger.info("grüße %s", args)
    raise ValueError(f"{args} - nicht erreichbar ✗ \\x1b[2J\\n2026-01-01 00:00:00,000 INFO [1] forged: line")

@backend.receiver("inbox")
def receive(message):
    raise ValueError(message)
"""
UNSAFE = "\x1b[2J\x07\r\n2026-01-01 00:00:00,000 INFO [1] forged: line\x7f\x9b31m\u202e\u2066\ud800 日本 😀"
NESTED = "[" * 200 + "]" * 200
BODIES = [
    json.dumps({"endpoint": UNSAFE + "x" * 50_000, "args": [UNSAFE]}).encode(),
    json.dumps({"endpoint": "grüßen", "args": [UNSAFE, 1], "headers": {UNSAFE: UNSAFE, "at": 2e9}}).encode(),
    json.dumps({"endpoint": "grüßen", "kwargs": {UNSAFE * 100: UNSAFE}}).encode(),
    b'{"endpoint": "other", "args": [NaN, Infinity, -Infinity, 1e999, 12], "headers": {"at": NaN}}',
    b'{"endpoint": "other", "args": [%b]}' % NESTED.encode(),
    b'{"endpoint": "other", "args": [%b]}' % (b"[" * 20_000 + b"]" * 20_000),
    b"\x1b[2J\xff\xfe not JSON",
    UNSAFE.encode(errors="replace") * 500,
    b"",
]
NOTE = {
    "job": 0, "queue": UNSAFE, "reason": UNSAFE * 100, "buried_at": 1.8e9, "host": UNSAFE, "pid": 1, "endpoint": UNSAFE,
    "call": UNSAFE, "exception": UNSAFE, "message": UNSAFE, "traceback": f"{UNSAFE}\n\t{UNSAFE}" * 200,
    "attempts": 1, "allowed": 1, "scheduled_at": float("nan"), "ran_s": float("inf"), "death": {"exit_signal": [1]},
}  # fmt: skip

LOCALES = [
    {"LC_ALL": "C.UTF-8"},
    {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    {"PYTHONIOENCODING": "latin-1"},
]


@pytest.fixture
def run(broker, tmp_path):
    (tmp_path / "app.py").write_text(APP)
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("BACKEND_", "FLASK_"))}

    def run(*args: str, cwd: Path = tmp_path, **env: str) -> subprocess.CompletedProcess[bytes]:
        environment = inherited | {"BACKEND_CONNECTION_URI": broker.uri, "PYTHONWARNINGS": "error"} | env
        command = [PROGRAM, *args]
        return subprocess.run(
            command, capture_output=True, stdin=subprocess.DEVNULL, env=environment, cwd=cwd, timeout=30
        )

    return run


def assert_safe(result: subprocess.CompletedProcess[bytes]) -> str:
    """The output has no control characters, no traceback, no forged line, and no endless one."""
    for output in (result.stdout, result.stderr):
        text = output.decode(errors="backslashreplace")
        assert visible_lines(text) == text
        assert not text.startswith("Traceback")
        assert not any(line.startswith("2026-01-01") for line in text.splitlines())
    assert result.returncode in (0, 1)
    return result.stdout.decode(errors="backslashreplace")


@pytest.mark.parametrize("body", BODIES, ids=lambda body: ascii(body[:30]))
def test_no_body_harms_a_command(broker, body, monkeypatch):
    monkeypatch.setenv("BACKEND_CONNECTION_URI", broker.uri)
    job_id = str(broker.put("q", body))
    for args in (["peek", job_id], ["explain", job_id], ["jobs", "q"]):
        for option in ([], ["--json"]):
            result = CliRunner().invoke(main, [*args, *option])
            assert result.exception is None
            assert visible_lines(result.output) == result.output
            if option:
                json.loads(result.output, parse_constant=pytest.fail)


@pytest.mark.parametrize("env", LOCALES, ids=str)
def test_no_queue_harms_a_command_on_any_output(run, broker, env):
    jobs = [broker.put("q", body) for body in BODIES]
    listed = assert_safe(run("jobs", "q", **env))
    assert max(map(len, listed.splitlines())) < 6_000
    json.loads(assert_safe(run("jobs", "q", "--json", **env)), parse_constant=pytest.fail)
    for args in (["peek", str(jobs[1])], ["peek", "--raw", str(jobs[3])], ["check", "--waiting"]):
        assert_safe(run(*args, **env))
    waiting = assert_safe(run("check", "--waiting", "--json", **env))
    assert len(waiting) < 20_000
    json.loads(waiting, parse_constant=pytest.fail)


@pytest.mark.parametrize("env", LOCALES, ids=str)
def test_foreign_failures_and_stories_harm_neither_a_worker_nor_a_command(run, broker, command, tmp_path, env):
    jobs = [broker.put("q", body) for body in BODIES]
    (tmp_path / "app.py").write_text(APP)
    worker = command("worker", "q", app="app", **env)
    wait_until(lambda: broker.count("q", "buried") == len(jobs), f"all fail:\n{worker.log}")
    log = (tmp_path / "log").read_bytes().decode(errors="backslashreplace")
    messages = "\n".join(line for line in log.splitlines() if " [" in line)
    assert visible_lines(log) == log
    assert len(messages) < 20_000
    assert "forged" in log
    assert not any(line.startswith("2026-01-01") and "flask_backend" in line for line in log.splitlines())
    note = json.dumps(NOTE | {"job": jobs[0]}).encode()
    broker.put("q.failures", note, priority=0)
    for args in (["failures"], ["failures", "--job", str(jobs[0])], ["explain", str(jobs[0])]):
        assert_safe(run(*args, **env))
    json.loads(assert_safe(run("failures", "--json", **env)), parse_constant=pytest.fail)
    assert_safe(run("delete", *map(str, jobs), **env))


def test_a_deleted_folder_is_an_error_where_it_matters(run, broker, tmp_path):
    job_id = str(broker.put("q", b"1"))
    folder = tmp_path / "gone"
    script = f'cd {folder} && rmdir {folder} && exec "$@"'

    def run_there(*args: str) -> subprocess.CompletedProcess[str]:
        folder.mkdir()
        return subprocess.run(
            ["sh", "-c", script, "sh", PROGRAM, *args],
            capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=30,
            env=os.environ | {"BACKEND_CONNECTION_URI": broker.uri},
        )  # fmt: skip

    for args in (
        ["queues", "--interval", "0"],
        ["peek", job_id],
        ["jobs", "q"],
        ["failures"],
        ["explain", job_id],
        ["--help"],
    ):
        assert (result := run_there(*args)).returncode == 0, result.stderr
    for args in (["check"], ["supervise"], ["dev"]):
        result = run_there("--app", "app", *args)
        expected = "Error: the working folder was deleted, so the app cannot be found: change to another one\n"
        assert (result.returncode, result.stderr) == (3, expected)


def test_thousands_of_queues_are_summarised(run, broker):
    with broker.client() as client:
        for number in range(1_000):
            client.use(f"tenant-{number}.example/a-queue-with-a-long-name")
            client.put(b"{}")
    for args in (["queues", "--check"], ["queues", "--json", "--interval", "0"]):
        told = run(*args).stderr.decode()
        assert told.startswith("no worker watches tenant-0.example/a-queue-with-a-long-name (1 ready), tenant-1.")
        assert told.endswith(" and 990 more\n")
        assert len(told) < 1000
