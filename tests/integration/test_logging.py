"""The log lines of workers and supervisors, in both formats, and the logging that is left to the app."""

from __future__ import annotations

import json
import re

import pytest
from support.waiting import wait_until
from support.workload import INBOX, QUEUE

pytestmark = pytest.mark.any_broker

APP = f"""
import logging
import os
import signal
import time
from pathlib import Path

from flask import Flask
from flask_backend import Backend

app = Flask("shop")
app.config.from_prefixed_env()
backend = Backend(app)

@backend.task({QUEUE!r})
def greet(name):
    app.logger.info("hello %s", name)
    logging.getLogger("elsewhere").warning("bye %s", name, extra={{"order": 7}})
    if name == "nobody":
        raise ValueError("nobody\\nis here")

@backend.task({QUEUE!r})
def greet_when(gate):
    Path(gate + ".waiting").touch()
    while not Path(gate).exists():
        time.sleep(0.01)
    started = time.monotonic()
    app.logger.info("hello at last")
    app.logger.info("it took %.1f s", time.monotonic() - started)

@backend.task({QUEUE!r})
def kill_worker():
    os.kill(os.getpid(), signal.SIGKILL)

@backend.receiver({INBOX!r})
def inbox(message):
    app.logger.info("got %s", message)
"""
OWN_FORMAT = "import logging\nlogging.basicConfig(level='WARNING', format='MINE %(levelname)s %(message)s')\n"
OWN_FILTER = """
import logging.config
logging.config.dictConfig({
    "version": 1,
    "disable_existing_loggers": False,
    "filters": {"job": {"()": "flask_backend.logs.JobContext"}},
    "formatters": {
        "mine": {"format": "MINE %(message)s (%(task)s %(job_id)s %(attempt)s %(queue)s)"},
        "json": {"()": "flask_backend.logs.JsonFormatter"},
    },
    "handlers": {
        "text": {"class": "logging.StreamHandler", "filters": ["job"], "formatter": "mine"},
        "json": {"class": "logging.FileHandler", "filename": "json.log", "filters": ["job"], "formatter": "json"},
    },
    "root": {"level": "INFO", "handlers": ["text", "json"]},
})
"""


@pytest.fixture
def start(command, broker, tmp_path):
    """Start a worker of the shop, with some code before its own, and wait until it works."""

    def start(*args: str, code: str = "", queue: str = QUEUE, **env: str):
        running = command("worker", queue, *args, app=write(tmp_path, code), **env)
        wait_until(lambda: broker.waiting(queue) == 1, f"the worker reserves; log:\n{running.log}")
        return running

    return start


def write(folder, code: str = "", more: str = "") -> str:
    path = folder / "shop.py"
    path.write_text(code + APP + more)
    return str(path)


def call(broker, endpoint: str, *args: object) -> int:
    return broker.put(QUEUE, json.dumps({"endpoint": endpoint, "args": args}).encode())


def fail_twice(broker) -> int:
    job_id = call(broker, "greet", "nobody")
    wait_until(lambda: broker.count(QUEUE, "delayed") == 1, "the job waits for its second attempt")
    with broker.client(QUEUE) as client:
        client.kick_job(job_id)
    wait_until(
        lambda: (broker.job(job_id)["releases"], broker.count(QUEUE, "delayed")) == (2, 1), "it has failed again"
    )
    return job_id


def objects(text: str) -> list[dict]:
    """Read the log's lines, each of which must be JSON."""
    return [json.loads(line) for line in text.splitlines()]


def test_lines_of_a_task_name_its_job_and_attempt(start, broker):
    worker = start()
    job_id = fail_twice(broker)
    for attempt in (1, 2):
        worker.wait_for_log(f"shop: hello nobody [greet job {job_id} attempt {attempt}]\n")
        worker.wait_for_log(f"elsewhere: bye nobody [greet job {job_id} attempt {attempt}]\n")
        worker.wait_for_log(f"failed (job {job_id}, attempt {attempt} of 10), next try in ")
    assert re.search(r"INFO \[\d+\] flask_backend\.worker: ready: \S+\n", worker.log)


def test_json_lines_of_a_task_have_its_job_and_attempt(start, broker):
    worker = start("--log-format", "json")
    job_id = fail_twice(broker)
    wait_until(lambda: worker.log.count("next try in") == 2, "both failures are logged")
    told = objects(worker.log)
    for attempt in (1, 2):
        facts = {"task": "greet", "job_id": job_id, "attempt": attempt, "queue": QUEUE}
        lines = [line for line in told if line.items() >= facts.items()]
        assert [line["logger"] for line in lines] == ["shop", "elsewhere", "flask_backend.task"]
        assert [line["message"] for line in lines[:2]] == ["hello nobody", "bye nobody"]
        assert lines[1]["order"] == 7
        assert lines[2]["exception"].endswith("ValueError: nobody\nis here")
    assert not [line for line in told if line["logger"] == "flask_backend.worker" and "job_id" in line]


def test_the_environment_chooses_the_format_and_receivers_have_jobs_too(start, broker):
    worker = start(queue=INBOX, BACKEND_LOG_FORMAT="json")
    job_id = broker.put(INBOX, b'"news"')
    worker.wait_for_log("got news")
    told = next(line for line in objects(worker.log) if line["message"] == "got news")
    assert told["logger"] == "shop"
    assert (told["task"], told["job_id"], told["attempt"], told["queue"]) == ("inbox", job_id, 1, INBOX)


def test_an_app_that_configures_logging_is_left_alone(start, broker):
    worker = start("--log-format", "json", code=OWN_FORMAT)
    call(broker, "greet", "Ada")
    worker.wait_for_log("bye")
    assert worker.log == "MINE WARNING bye Ada\n"


OWN_WITHOUT_NAMES = """
import logging.config
def configure():
    logging.config.dictConfig({
        "version": 1,
        "formatters": {"line": {"format": "MINE %(levelname)s %(name)s: %(message)s"}},
        "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line"}},
        "root": {"level": "INFO", "handlers": ["stderr"]},
    })
"""
PLACES = {
    "at import": (f"{OWN_WITHOUT_NAMES}\nconfigure()\n", ""),
    "at import, after ours": (OWN_WITHOUT_NAMES, "configure()\n"),
    "in a hook": (OWN_WITHOUT_NAMES, f"backend.before_first_task({QUEUE!r})(configure)\n"),
    "in a task": (OWN_WITHOUT_NAMES, f"backend.task({QUEUE!r})(configure)\n"),
    "all disabled": ("", "logging.disable(logging.CRITICAL)\n"),
    "no handlers": ("", f"backend.before_first_task({QUEUE!r})(logging.getLogger().handlers.clear)\n"),
}


@pytest.mark.parametrize("place", PLACES)
def test_our_lines_survive_a_configuration_that_does_not_name_us(supervise, broker, tmp_path, place):
    supervised = supervise(workers=1, app=write(tmp_path, *PLACES[place]))
    supervised.wait_ready()
    if place == "in a task":
        call(broker, "configure")
    call(broker, "greet", "nobody")
    supervised.wait_for_log("ERROR flask_backend.task: task greet of " if "at import" in place else "task greet of ")
    supervised.wait_for_log("ValueError: nobody")
    call(broker, "kill_worker")
    supervised.wait_for_log("was killed by signal 9")
    supervised.wait_for_log("has crashed its worker")


def test_such_an_app_may_use_the_filter_and_the_formatter(start, broker, tmp_path):
    worker = start(code=OWN_FILTER)
    job_id = call(broker, "greet", "Ada")
    worker.wait_for_log(f"MINE bye Ada (greet {job_id} 1 {QUEUE})\n")
    worker.wait_for_log(f"MINE ready: {QUEUE} (None None None None)\n")
    log = tmp_path / "json.log"
    wait_until(lambda: "bye Ada" in log.read_text(), "the other handler has written its line")
    assert objects(log.read_text())[-1].items() >= {"job_id": job_id, "attempt": 1}.items()


def test_the_line_on_a_dead_worker_has_its_facts(supervise, broker, tmp_path):
    supervised = supervise("--log-format", "json", workers=1, app=write(tmp_path))
    supervised.wait_ready()
    [pid] = supervised.workers()
    job_id = call(broker, "kill_worker")
    supervised.wait_for_log("has crashed its worker")  # logged by another process than ...
    supervised.wait_for_log('"exit_signal"')
    told = objects(supervised.log)
    death = next(line for line in told if "exit_signal" in line)
    assert (death["logger"], death["level"]) == ("flask_backend.supervisor", "ERROR")
    assert (death["worker_pid"], death["exit_signal"], death["job_id"], death["queue"]) == (pid, 9, job_id, QUEUE)
    settled = next(line for line in told if line["logger"] == "flask_backend.task")
    facts = {"level": "WARNING", "task": "kill_worker", "job_id": job_id, "attempt": 1, "queue": QUEUE}
    assert settled.items() >= facts.items()


def test_an_unresponsive_broker_fails_no_line_and_delays_it_by_its_timeout_at_most(start, broker, tmp_path):
    worker = start(FLASK_BACKEND_TIMEOUT="1")
    gate = tmp_path / "gate"
    job_id = call(broker, "greet_when", str(gate))
    wait_until((tmp_path / "gate.waiting").exists, "the task runs")
    broker.freeze()
    try:
        gate.touch()
        worker.wait_for_log(f"shop: hello at last [greet_when job {job_id}]\n")
        worker.wait_for_log(" s [greet_when job")
    finally:
        broker.thaw()
    took_s = float(re.search(r"it took (\S+) s", worker.log)[1])
    assert took_s < 3
    assert "Logging error" not in worker.log
