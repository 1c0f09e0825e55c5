from __future__ import annotations

import signal

import hypothesis
import pytest
from flask import Flask
from support import workload
from support.beanstalkd import Beanstalkd
from support.supervised import Command, Supervised
from support.terminal import Terminal

# A shell starts background commands with SIGINT and SIGQUIT ignored, and all processes of the tests would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGQUIT, signal.SIG_DFL)
# Under nohup SIGHUP is ignored, and supervisors keep that: no HUP would reload them.
signal.signal(signal.SIGHUP, signal.SIG_DFL)

# A machine that others use too may stop for longer than any deadline.
hypothesis.settings.register_profile("without deadline", deadline=None)
hypothesis.settings.load_profile("without deadline")


def pytest_addoption(parser):
    parser.addoption("--only-with-broker", action="store_true", help="Only tests of what depends on TEST_BROKER.")


def pytest_collection_modifyitems(config, items):
    if config.getoption("only_with_broker"):
        items[:] = [
            item
            for item in items
            if {"broker", "durable_broker"} & set(item.fixturenames) and not item.get_closest_marker("any_broker")
        ]


@pytest.fixture
def broker():
    server = Beanstalkd()
    yield server
    server.stop()


@pytest.fixture
def durable_broker(tmp_path):
    binlog = tmp_path / "binlog"
    binlog.mkdir()
    server = Beanstalkd(binlog)
    yield server
    server.stop()


@pytest.fixture
def supervise(broker, tmp_path):
    """Start supervisors that do not outlive the test."""
    started: list[Supervised] = []

    def start(*args: str, **options) -> Supervised:
        supervised = Supervised(options.pop("broker", broker), tmp_path, *args, **options)
        started.append(supervised)
        return supervised

    yield start
    for supervised in started:
        supervised.end()


@pytest.fixture
def command(broker, tmp_path):
    """Start any of our commands, so that it does not outlive the test."""
    started: list[Command] = []

    def start(*args: str, **options) -> Command:
        running = Command(options.pop("broker", broker), tmp_path, *args, **options)
        started.append(running)
        return running

    yield start
    for running in started:
        running.end()


@pytest.fixture
def closing_terminal():
    terminal = Terminal()
    yield terminal
    terminal.close()


@pytest.fixture
def tasks(broker, monkeypatch):
    """The workload's tasks, scheduled on this test's broker."""
    app = Flask("producer")
    app.config["BACKEND_CONNECTION_URI"] = broker.uri
    workload.backend.init_app(app)
    with app.app_context():
        yield workload
