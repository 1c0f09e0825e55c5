"""`flask-backend batches`, as a user types it, beside a real worker."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from flask import Flask
from support.waiting import wait_until

from flask_backend import Backend

BIN = Path(sys.executable).parent / "flask-backend"
APP = """
from flask import Flask
from flask_backend import Backend, Retry

app = Flask(__name__)
backend = Backend(app)

@backend.task("q", retry=Retry(max_retries=0))
def hello(name):
    if name == "bad":
        raise ValueError("no luck")

@backend.task("callbacks")
def done(): ...
"""


@pytest.fixture
def run(broker, tmp_path):
    def run(*args, **env):
        inherited = {key: value for key, value in os.environ.items() if not key.startswith(("BACKEND_", "FLASK_"))}
        environment = inherited | broker.env | env
        return subprocess.run([BIN, *args], capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=30)

    return run


@pytest.fixture
def send(broker):
    app = Flask("sending")
    app.config["BACKEND_CONNECTION_URI"] = broker.uri
    backend = Backend(app)
    hello, done = backend.task("q", "hello")(lambda name: None), backend.task("callbacks", "done")(lambda: None)

    def send(*names, when="done"):
        with app.app_context(), backend.batch(when=when) as batch:
            batch.on_complete(done)
            batch.map(hello, names)
        return batch.id

    return send


def test_it_shows_how_far_each_batch_is_and_what_holds_it_up(run, send, broker, command, tmp_path):
    name = send("good", "bad", "good")
    shown = run("batches")
    assert (shown.returncode, shown.stderr) == (0, "")
    [head, line] = shown.stdout.splitlines()
    assert head.split() == ["batch", "callback", "done", "buried", "age"]
    assert line.split()[:-1] == [name, "done", "0", "of", "3", "0"]
    assert max(map(len, (head, line))) <= 80
    (tmp_path / "batching.py").write_text(APP)
    command("worker", "q", app="batching")
    wait_until(lambda: broker.count("q", "buried"), "one is buried")
    wait_until(lambda: broker.tube("q")["current-jobs-reserved"] == broker.tube("q")["current-jobs-ready"] == 0, "done")
    assert run("batches").stdout.splitlines()[1].split()[:-1] == [name, "done", "2", "of", "3", "1"]
    [found] = json.loads(run("batches", "--json").stdout)
    assert found.pop("age_s") >= 0
    assert found == {
        "broker": broker.uri,
        "id": name,
        "callback": "done",
        "queue": "callbacks",
        "when": "done",
        "members": 3,
        "done": 2,
        "buried": 1,
        "is_open": False,
    }
    assert "flask-backend.batch/" not in run("queues").stdout
    with broker.client("q") as client:
        job = client.peek_buried().id
    assert run("delete", str(job), "--yes").returncode == 0
    assert broker.count("callbacks", "ready") == 1
    shown = run("batches")
    assert (shown.returncode, shown.stdout) == (0, "")
    assert shown.stderr == f"no batches at {broker.uri}: all are complete\n"
    assert run("batches", "--json").stdout == "[]\n"


def test_the_oldest_are_shown_and_the_number_of_the_others_is_told(run, send):
    names = [send("good", when="ended") for _ in range(3)]
    shown = run("batches", "--limit", "2")
    assert {line.split()[0] for line in shown.stdout.splitlines()[1:]} <= set(names)
    assert shown.stderr == "the oldest 2 of 3 batches: --limit N shows more\n"
    assert len(json.loads(run("batches", "--json").stdout)) == 3


def test_a_batch_that_is_being_sent_and_names_of_others_are_shown_safely(run, broker):
    facts = {"when": "done", "callback": "a\x1b[2Jb\n", "queue": "q", "queues": ["q"], "members": 3}
    broker.put("flask-backend.batch/one", json.dumps(facts).encode(), priority=0)
    broker.put("flask-backend.batch/two", b"\xff", priority=0)
    broker.put("flask-backend.batch/three", b'{"when":[1],"queues":7}', priority=0)
    shown = run("batches")
    assert shown.returncode == 0, shown.stderr
    [_, line] = shown.stdout.splitlines()
    assert "\x1b" not in line
    assert "being sent" in line


def test_without_a_broker_it_is_one_sentence(run, broker):
    broker.kill()
    shown = run("batches")
    assert (shown.returncode, shown.stdout) == (1, "")
    assert shown.stderr.startswith("Error: cannot connect to Beanstalkd at ")
    assert len(shown.stderr.splitlines()) == 1
