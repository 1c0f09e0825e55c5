"""Thousands of jobs fail in a real worker: what is kept of them can still be read."""

from __future__ import annotations

from collections import Counter

from support.waiting import wait_until

from flask_backend.broker.connection import Connection
from flask_backend.config import Address, Settings
from flask_backend.operations.console import Console
from flask_backend.operations.recent import StoryReader
from flask_backend.stories import MAX_WHOLE

APP = """
import logging
from flask import Flask
from flask_backend import Backend, Retry

logging.getLogger("flask_backend").setLevel(logging.CRITICAL)
app = Flask(__name__)
backend = Backend(app)


@backend.task("q", retry=Retry(0))
def old(number):
    raise ValueError(number)


@backend.task("q", retry=Retry(0))
def new(number):
    raise KeyError(number)
"""
MANY = 1500


def test_a_new_failure_among_thousands_of_old_ones_has_its_traceback_and_its_call(command, broker, tmp_path):
    settings = Settings(Address("127.0.0.1", broker.port))
    connection = Connection(settings.address, settings.timeout_s)
    connection.ask([b"use q\r\n"])
    bodies = [b'{"endpoint":"old","args":[%d]}' % number for number in range(MANY)]
    bodies += [b'{"endpoint":"new","args":[%d]}' % number for number in range(500)]
    connection.ask([b"put 0 0 60 %d\r\n%b\r\n" % (len(body), body) for body in bodies])
    connection.close()
    (tmp_path / "app.py").write_text(APP)
    command("worker", "q", app=str(tmp_path / "app.py"))
    wait_until(lambda: broker.count("q", "buried") == len(bodies), "all are buried")
    with Console(settings) as console:
        failures = console.failures("q")
        told = list(console.read_stories(failures.stories))
        recent = StoryReader().read(console)
    whole = Counter(story.endpoint for story in told if story.traceback and story.call)
    # One more in each minute, if this machine is slow.
    assert MAX_WHOLE <= whole["old"] <= MAX_WHOLE + 5
    assert 1 <= whole["new"] <= 5
    assert {story.message for story in told if story.endpoint == "new" and story.traceback} >= {"0"}
    assert recent.of("q").total == len(bodies)
    assert {story.kind for story in recent.of("q").stories} >= {"KeyError"}
