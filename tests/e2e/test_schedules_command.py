"""`flask-backend schedules`: the list, and run, pause, resume and forget, without an app."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner
from support.beanstalkd import free_port

from flask_backend.cli import main
from flask_backend.names import schedule_tube
from flask_backend.periodic.definition import Definition
from flask_backend.periodic.token import Entry, Release, Token
from flask_backend.periodic.when import Cron, Every

QUEUE = "com.example/default"
PROGRAM = Path(sys.executable).parent / "flask-backend"


@pytest.fixture
def run(broker, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("FLASK_APP", "BACKEND_CONNECTION_URI"):
        monkeypatch.delenv(name, raising=False)

    def run(*args: str, code: int = 0, uri: str = broker.uri):
        result = CliRunner().invoke(main, ["schedules", *args, *([] if uri is None else ["--broker", uri])])
        assert result.exit_code == code, result.output
        return result

    return run


def put(broker, queue: str, *entries: Entry) -> None:
    token = Token(queue, 1, Release(1.0, "r"), {entry.definition.name: entry for entry in entries})
    broker.put(schedule_tube(queue), token.encode())


@pytest.fixture
def known(broker):
    """Two periodic tasks of a queue that no scheduler watches."""
    now = int(time.time())
    nightly = Definition("nightly", QUEUE, "report", Cron("30 2 * * *", "Europe/Prague"), args=("x",), overlap=False)
    often = Definition("a-name-that-is-rather-long", QUEUE, "often", Every(300), catch_up="skip")
    put(broker, QUEUE, Entry(nightly, now, now - 86400, None, None, 12, 3, 1), Entry(often, now))
    return nightly


def test_the_list_in_words_with_a_warning_without_schedulers(run, known):
    result = run()
    text = " ".join(result.output.split())
    assert f"{QUEUE}, 0 schedulers" in text
    assert "At 02:30 every day (Europe/Prague) no overlap" in text
    assert "Every 5 minutes (UTC) catch up skip, grace 1m -" in text
    assert f"no scheduler watches {QUEUE}: its periodic tasks are not scheduled" in result.stderr
    assert "no scheduler" not in result.stdout


def test_the_list_as_json(run, known):
    [queue] = json.loads(run("--json").stdout)
    assert (queue["queue"], queue["schedulers"]) == (QUEUE, 0)
    _, nightly = queue["schedules"]
    assert nightly["expression"] == "30 2 * * *"
    assert nightly["next"] > time.time()
    assert (nightly["scheduled"], nightly["missed"], nightly["skipped"]) == (12, 3, 1)


def test_it_fits_into_80_columns(broker, known, tmp_path):
    # `script` would need a package: the layout is that of every table, and wraps in a narrow terminal.
    from flask_backend.cli.output import lay_out_table
    from flask_backend.cli.schedule_table import table_of
    from flask_backend.config import Address, Settings
    from flask_backend.operations.schedules import Schedules

    with Schedules(Settings(Address("127.0.0.1", broker.port))) as schedules:
        [queue] = schedules.queues()
    lines = [line for row in lay_out_table(*table_of(queue), 80) for line in row]
    assert max(map(len, lines)) <= 80


def test_pause_and_resume_ask_and_keep_the_state(run, known, broker):
    assert "stdin is not a terminal; pass --yes" in run("pause", "nightly", code=1).output
    assert run("pause", "nightly", "--yes").stdout == "paused nightly until it is resumed\n"
    assert run("pause", "nightly").stdout == "paused nightly until it is resumed\n"  # nothing to ask
    assert "paused" in run().stdout
    assert json.loads(run("resume", "nightly", "--yes", "--json").stdout)["is_paused"] is False
    assert run("resume", "nightly").stdout == "nightly is not paused\n"


def test_forget_removes_a_task_and_the_last_one_ends_the_warning(run, known, broker):
    assert "use `flask-backend schedules forget NAME`" in " ".join(run().stderr.split())
    assert run("forget", "nightly", "--yes").stdout == "forgot nightly\n"
    assert "there is no periodic task 'nightly'" in run("forget", "nightly", "--yes", code=1).output
    forgotten = json.loads(run("forget", "a-name-that-is-rather-long", "--yes", "--json").stdout)
    assert forgotten["queue"] == QUEUE
    assert run().stderr == f"no periodic tasks at {broker.uri}: no scheduler has run there\n"
    assert broker.is_empty(schedule_tube(QUEUE))


def test_forget_is_refused_while_a_scheduler_has_the_task(run, known, broker):
    retired = Entry(Definition("gone", QUEUE, "report", Every(5)), 1, retired=1)
    put(broker, "other", retired, Entry(Definition("here", "other", "report", Every(5)), 1))
    with broker.client(schedule_tube("other")):
        refused = " ".join(run("forget", "here", "--yes", code=1).output.split())
        assert "here is still scheduled by supervisors that serve other: remove it from the app" in refused
        run("forget", "gone", "--yes")
        [other] = [each for each in json.loads(run("--json").stdout) if each["queue"] == "other"]
    assert [each["name"] for each in other["schedules"]] == ["here"]


def test_run_prints_the_id_of_the_job_and_does_not_overlap(run, known, broker):
    job = int(run("run", "nightly", "--yes").stdout)
    body = json.loads(broker.peek(job))
    assert (body["endpoint"], body["args"], body["headers"]["schedule"]) == ("report", ["x"], "nightly")
    assert "slot" not in body["headers"]
    assert f"job {job}, the last call of nightly, is unfinished" in run("run", "nightly", "--yes", code=1).output
    assert "job" in json.loads(run("run", "a-name-that-is-rather-long", "--yes", "--json").stdout)


def test_a_name_of_two_queues_needs_the_queue(run, known, broker):
    put(broker, "other", Entry(Definition("nightly", "other", "report", Every(5)), 1))
    shown = run("run", "nightly", "--yes", code=1).output
    assert "several queues have a periodic task 'nightly': com.example/default, other" in shown
    run("run", "nightly", "--queue", "other", "--yes")
    assert "there is no periodic task 'x' on other" in run("pause", "x", "-q", "other", "--yes", code=1).output


def test_nothing_and_no_broker_are_one_sentence(run, broker):
    result = run()
    assert (result.stdout, result.stderr) == ("", f"no periodic tasks at {broker.uri}: no scheduler has run there\n")
    assert json.loads(run("--json").stdout) == []
    away = run(uri=f"btq://127.0.0.1:{free_port()}", code=1)
    assert away.stderr.startswith("Error: cannot connect to Beanstalkd")
    assert "Error: No such command 'stop'" in run("stop", code=2).output


def test_the_broker_may_be_named_before_the_subcommand(broker, known, tmp_path):
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("BACKEND_", "FLASK_"))}
    command = [PROGRAM, "schedules", "--broker", broker.uri, "run", "nightly", "--yes"]
    result = subprocess.run(command, capture_output=True, text=True, env=inherited, cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    assert broker.count(QUEUE, "ready") == 1


def test_check_shows_them_too(tmp_path, broker):
    (tmp_path / "app.py").write_text(
        "from flask import Flask\nfrom flask_backend import Backend\n"
        "app = Flask(__name__)\nbackend = Backend(app)\n"
        '@backend.periodic("30 2 * * *", timezone="Europe/Prague")\n@backend.task("q")\ndef nightly(): ...\n'
    )
    command = [PROGRAM, "check"]
    environment = os.environ | {"BACKEND_CONNECTION_URI": broker.uri}
    shown = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert "  periodic nightly: At 02:30 every day (Europe/Prague)\n" in shown.stdout
    told = subprocess.run([*command, "--json"], capture_output=True, text=True, env=environment, cwd=tmp_path)
    [queue] = json.loads(told.stdout)["queues"]
    expected = {"name": "nightly", "task": "nightly", "when": "30 2 * * *", "timezone": "Europe/Prague"}
    assert queue["periodic"] == [expected]
