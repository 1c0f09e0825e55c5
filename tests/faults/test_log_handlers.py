"""Handlers of the app that raise or never return: supervisors and workers go on."""

from __future__ import annotations

import os
import signal

import pytest
from support.waiting import wait_until
from support.workload import QUEUE

pytestmark = pytest.mark.any_broker

APP = """
import logging, os, sys, threading, time

class Handler(logging.Handler):
    def emit(self, record):
        {emit}

{others}
logging.getLogger().addHandler(Handler(level=logging.ERROR))
logging.getLogger().setLevel(logging.INFO)
from support.workload import app, backend
"""
FILE = "logging.basicConfig(filename=os.environ['APP_LOG'], level=logging.INFO)"


@pytest.fixture(params=["", FILE], ids=["alone", "beside a file"])
def start(request, supervise, tmp_path):
    def start(emit: str, **options):
        (tmp_path / "handled.py").write_text(APP.format(emit=emit, others=request.param))
        supervised = supervise(app="handled", APP_LOG=str(tmp_path / "app.log"), **options)
        supervised.wait_reserving(supervised.size)
        return supervised

    return start


def everything(supervised, tmp_path) -> str:
    app_log = tmp_path / "app.log"
    return supervised.log + (app_log.read_text() if app_log.exists() else "")


def replaces_dead_workers(supervised) -> None:
    before = set(supervised.workers())
    os.kill(victim := min(before), signal.SIGKILL)
    wait_until(lambda: len(now := set(supervised.workers())) == len(before) and victim not in now, "it is replaced")


@pytest.mark.parametrize(
    "emit",
    ["raise ConnectionError('the chat is down')", "sys.exit(9)", "raise type('Odd', (Exception,), {'__str__': None})"],
)
def test_a_handler_that_raises_stops_nothing(start, tasks, tmp_path, emit):
    supervised = start(emit, workers=2)
    workers = supervised.workers()
    tasks.fail()
    wait_until(lambda: supervised.broker.count(QUEUE, "delayed") == 1, "the failure is settled")
    assert supervised.workers() == workers
    replaces_dead_workers(supervised)
    wait_until(lambda: "ValueError: no luck" in everything(supervised, tmp_path), "the failure is in a log")
    wait_until(lambda: "was killed by signal 9" in everything(supervised, tmp_path), "the death is in a log")
    assert everything(supervised, tmp_path).count("the log handler Handler has failed: ") == 2  # once in each process
    supervised.send(signal.SIGTERM)
    supervised.assert_clean_exit(0)


@pytest.mark.parametrize("emit", ["time.sleep(600)", "threading.Lock().__enter__(); os.read(os.pipe()[0], 1)"])
def test_a_handler_that_never_returns_does_not_stop_the_supervisor(start, tasks, tmp_path, emit):
    supervised = start(emit, workers=2)
    replaces_dead_workers(supervised)
    replaces_dead_workers(supervised)
    tasks.note("done")
    supervised.wait_for_line("note done")
    assert "the log handler Handler has failed: it took longer than 2 s" in everything(supervised, tmp_path)
    assert everything(supervised, tmp_path).count("was killed by signal 9") == 2
    supervised.send(signal.SIGTERM)
    supervised.assert_clean_exit(0)
