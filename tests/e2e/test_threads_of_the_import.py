"""Commands end, even if the import of the app has started threads."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from support.workload import QUEUE

from flask_backend.cli import main

pytestmark = pytest.mark.any_broker

APP = str(Path(__file__).parents[1] / "support" / "endings.py")


@pytest.mark.parametrize(
    ("args", "code"),
    [
        (["check"], 0),
        (["check", "--json"], 0),
        (["supervise", "--queue", "com.example/other"], 3),
        (["worker", "com.example/other"], 3),
        (["supervise", "--queue", QUEUE, "--queue", QUEUE], 2),
        (["call", "capture", "[1]", "--yes"], 0),
    ],
    ids=lambda value: value if isinstance(value, int) else " ".join(value),
)
def test_a_command_ends_although_the_import_has_started_a_thread(command, args, code):
    running = command(*args, app=APP, ENDING="import_thread")
    assert running.wait() == code
    assert "prices" in running.log


@pytest.mark.parametrize(("queue", "code"), [(QUEUE, 0), ("com.example/other", 3)])
def test_a_command_of_flask_ends_although_the_import_has_started_a_thread(broker, queue, code):
    args = ["check"] if code == 0 else ["supervise", "--queue", queue]
    environment = os.environ | {"BACKEND_CONNECTION_URI": broker.uri, "ENDING": "import_thread"}
    program = [sys.executable, "-m", "flask", "--app", APP, "backend", *args]
    result = subprocess.run(program, env=environment, capture_output=True, text=True, timeout=30)
    assert result.returncode == code
    assert "prices" in result.stderr


def test_a_test_runner_survives_a_check():
    result = CliRunner().invoke(main, ["--app", APP, "check"])
    assert result.exit_code == 0
    assert f"queue:  {QUEUE}" in result.output


def test_a_thread_of_a_failed_import_does_not_delay_the_end(command):
    running = command("check", app=APP, ENDING="import_thread import_fails")
    assert running.wait() == 3
    assert "RuntimeError: no settings" in running.log
