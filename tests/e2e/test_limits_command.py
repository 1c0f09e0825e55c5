"""What a person on call sees of limits: `limits`, `status`, `explain` and `health`, while workers wait."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support.limited import APP, waiting
from support.limited_app import GPU, MAIL
from support.supervised import title
from support.waiting import wait_until

from flask_backend.broker.limits import registry_tube

PROGRAM = Path(sys.executable).parent / "flask-backend"


@pytest.fixture
def run(broker, tmp_path):
    def run(*args: str) -> subprocess.CompletedProcess[str]:
        env = {**os.environ, **broker.env, "PYTHONWARNINGS": "error", "COLUMNS": "80"}
        return subprocess.run([PROGRAM, *args], capture_output=True, text=True, env=env, cwd=tmp_path, timeout=30)

    return run


@pytest.fixture
def put(broker):
    def put(queue: str, endpoint: str, *args) -> int:
        return broker.put(queue, json.dumps({"endpoint": endpoint, "args": list(args)}).encode())

    return put


@pytest.fixture
def supervised(supervise, broker, put, tmp_path):
    """Two workers run a task of the limit, the third waits with its job."""
    supervised = supervise("--queue", f"{GPU}=3", "--queue", f"{MAIL}=1", app=APP)
    for number in range(2):
        put(GPU, "train_until", str(tmp_path / "go"), number)
    wait_until(lambda: len(supervised.ledger) == 2, f"both run:\n{supervised.log}")
    return supervised


def test_one_sees_who_uses_a_limit_who_waits_and_why_a_job_does_not_run(supervised, run, put, broker, tmp_path):
    job = put(GPU, "train", "third")
    behind = put(GPU, "train", "fourth")
    put(MAIL, "mail", 1)
    wait_until(lambda: waiting(broker, "gpu") == 1, "one waits")
    wait_until(lambda: broker.is_empty(MAIL), "the mail is sent")

    status = json.loads(run("status", "--json").stdout)
    [told] = [each for each in status if each["pid"] == supervised.pid]
    [waits] = [worker for worker in told["workers"] if worker["limited_for_s"] is not None]
    assert (waits["limit"], waits["job_id"], waits["task"], waits["state"]) == ("gpu", job, "train", "ready")
    assert waits["activity"].startswith("waits for limit gpu ")
    [gpu] = [queue for queue in told["queues"] if queue["name"] == GPU]
    assert (gpu["ready"], gpu["busy"]) == (3, 2)

    uses = {use["limit"]: use for use in json.loads(run("limits", "--json").stdout)}
    assert list(uses) == ["gpu", "mail"]
    assert {key: uses["gpu"][key] for key in ("n", "per", "used", "missing", "waiting")} == {
        "n": 2,
        "per": None,
        "used": 2,
        "missing": 0,
        "waiting": 1,
    }
    assert (uses["mail"]["n"], uses["mail"]["per"], uses["mail"]["workers"]) == (3, 1, [])
    of_gpu = uses["gpu"]["workers"]
    assert sorted(worker["task"] for worker in of_gpu) == ["train", "train_until", "train_until"]
    assert [worker["pid"] for worker in of_gpu if worker["waits"]] == [waits["pid"]]

    shown = run("limits").stdout
    assert max(map(len, shown.splitlines())) <= 80
    assert re.search(r"^gpu +2 +2 +- +1$", shown, re.MULTILINE)
    assert f"{waits['pid']}  {GPU}  waits for limit gpu" in shown

    reserved, ready = (json.loads(run("--app", APP, "explain", str(each), "--json").stdout) for each in (job, behind))
    assert (reserved["reason"], ready["reason"]) == ("reserved", "limited")
    assert reserved["text"].endswith("and 1 worker has a job and waits, perhaps with this one.")
    assert (ready["limit_used"], ready["limit_waiting"]) == (2, 1)

    (tmp_path / "go").touch()
    wait_until(lambda: broker.is_empty(GPU), "all are done")
    [use] = [use for use in json.loads(run("limits", "--json").stdout) if use["limit"] == "gpu"]
    assert (use["used"], use["waiting"], use["workers"]) == (0, 0, [])


def test_a_worker_that_is_killed_while_it_waits_has_not_crashed_and_a_stop_gives_its_job_back(
    supervised, put, broker, tmp_path
):
    job = put(GPU, "train", "third")
    seen: set[int] = set()
    for _ in range(4):  # once more than a job may crash its worker
        pid = wait_until(lambda: waiting_pid(supervised, seen), "one waits")
        seen.add(pid)
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: waiting_pid(supervised, seen), "the next one waits")
    stats = broker.job(job)
    assert (stats["state"], stats["releases"], stats["buries"]) == ("reserved", 0, 0)

    supervised.process.terminate()
    wait_until(lambda: broker.job(job)["state"] == "ready", "it goes back")
    (tmp_path / "go").touch()
    assert supervised.wait() == 0
    assert broker.job(job)["releases"] == 0


def waiting_pid(supervised, seen: set[int]) -> int | None:
    return next((pid for pid in supervised.workers() if "waits for" in title(pid) and pid not in seen), None)


def test_without_limits_and_with_missing_tokens(run, broker, put, command):
    result = run("limits")
    assert (result.returncode, result.stdout) == (0, "")
    assert result.stderr == f"no limits at {broker.uri}: no limited task has run there\n"
    assert run("limits", "--json").stdout == "[]\n"

    command("worker", GPU, app=APP)
    put(GPU, "train", 1)
    wait_until(lambda: broker.count(registry_tube("gpu"), "ready") and broker.is_empty(GPU), "it has run")
    broker.take("flask-backend.limit/gpu")
    result = run("limits")
    assert re.search(r"^gpu +0 +2 +- +0$", result.stdout, re.MULTILINE)
    assert result.stderr == "limit gpu: 1 token is gone; a worker that waits replaces them\n"


def test_without_a_broker_it_is_one_sentence(run):
    result = run("limits", "--broker", "btq://127.0.0.1:1")
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.startswith("Error: cannot connect to Beanstalkd")
    assert len(result.stderr.splitlines()) <= 2
