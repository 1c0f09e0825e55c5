"""The test kit in a user's own project: the fixtures for pytest, and how commands react to an app set up for tests."""

from __future__ import annotations

import os
import subprocess
import sys

import psutil
import pytest

CONFTEST = """
import pytest
from shop import create_app

pytest_plugins = ["flask_backend.testing.plugin"]


@pytest.fixture
def uri():
    return "memory://"


@pytest.fixture
def app(uri):
    return create_app({"BACKEND_CONNECTION_URI": uri})
"""

SHOP = """
import os
from pathlib import Path

from flask import Flask
from flask_backend import Backend, Retry

backend = Backend()


@backend.task("com.example/mail", retry=Retry(max_retries=0))
def confirm(order):
    if order == "bad":
        raise ValueError("no such order")
    if "OUTBOX" in os.environ:
        Path(os.environ["OUTBOX"]).write_text(f"order {order}")


def create_app(config=None):
    app = Flask(__name__)
    app.config.from_mapping(config or {})
    backend.init_app(app)

    @app.post("/orders/<order>")
    def buy(order):
        confirm.options(delay=60)(order)
        return "thank you"

    return app
"""

IN_MEMORY = """
import pytest
from shop import confirm


@pytest.mark.parametrize("order", ["1", "2", "3", "4"])
def test_an_order_is_confirmed_after_a_minute(app, backend_memory, order):
    app.test_client().post(f"/orders/{order}")
    backend_memory.assert_scheduled(confirm, order, delay=60)
    assert backend_memory.drain() == []
    backend_memory.move_time(60)
    assert [ran.scheduled.args for ran in backend_memory.drain()] == [[order]]


def test_nothing_is_left_of_other_tests(backend_memory):
    assert backend_memory.scheduled() == []
"""

IN_PROCESSES = """
import os
from pathlib import Path

import pytest
from shop import confirm

from flask_backend.broker.connection import Connection
from flask_backend.config import Address, Settings
from flask_backend.testing import processes


@pytest.fixture
def uri(backend_server):
    return backend_server


def stats(uri):
    [reply] = Connection(Address.parse(uri), 5).ask([b"stats\\r\\n"])
    return reply.stats


def write_down(pid):
    with Path(os.environ["PIDS"]).open("a") as file:
        file.write(f"{pid} ")


def test_a_worker_confirms(app, uri, backend_worker, tmp_path):
    write_down(stats(uri)["pid"])
    worker = backend_worker("com.example/mail", app="shop:create_app", OUTBOX=str(tmp_path / "outbox"))
    write_down(worker.process.pid)
    with app.app_context():
        worker.wait_for(confirm("1"))
        with pytest.raises(AssertionError, match="is buried:[^$]*ValueError: no such order"):
            worker.wait_for(confirm("bad"))
    assert (tmp_path / "outbox").read_text() == "order 1"


@pytest.mark.parametrize("each", range(3))
def test_each_test_has_a_broker_of_its_own(app, uri, each):
    write_down(stats(uri)["pid"])
    assert stats(uri)["total-jobs"] == 0
    with app.app_context():
        confirm("1")
    assert stats(uri)["total-jobs"] == 1


@pytest.fixture
def no_beanstalkd(monkeypatch):
    monkeypatch.setattr(processes.shutil, "which", lambda *_, **__: None)


def test_the_embedded_broker_does_where_beanstalkd_is_not_installed(no_beanstalkd, uri):
    write_down(stats(uri)["pid"])
    assert "embedded broker" in stats(uri)["os"]
"""


@pytest.fixture
def project(tmp_path):
    """Write a user's project; return how to run its tests."""
    files = {"conftest.py": CONFTEST, "shop.py": SHOP, "test_memory.py": IN_MEMORY, "test_processes.py": IN_PROCESSES}
    for name, text in (files | {"pytest.ini": "[pytest]\n"}).items():
        (tmp_path / name).write_text(text)

    def run(*args: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider", *args],
            capture_output=True,
            text=True,
            timeout=50,
            cwd=tmp_path,
            env=environment() | {"PIDS": str(tmp_path / "pids")},
        )
        return done.stdout + done.stderr

    return run


@pytest.mark.parametrize("options", [(), ("-n", "2")], ids=["in one process", "in parallel"])
def test_the_fixtures_serve_a_project_and_leave_no_process_behind(project, tmp_path, options):
    if options:
        pytest.importorskip("xdist", reason="pytest-xdist is not installed")
    output = project(*options)
    assert "10 passed" in output, output
    pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
    assert len(pids) == len(set(pids)) == 6
    assert not [pid for pid in pids if psutil.pid_exists(pid)]


@pytest.mark.parametrize("command", [["worker", "com.example/mail"], ["queues"]], ids=" ".join)
def test_commands_refuse_an_app_whose_broker_is_for_tests(command, project, tmp_path):
    (tmp_path / "app.py").write_text("import shop\n\napp = shop.create_app({'BACKEND_CONNECTION_URI': 'sync://'})\n")
    refused = run_command(*command, cwd=tmp_path)
    assert refused.returncode == 3, refused.stderr
    assert "BACKEND_CONNECTION_URI is sync://, which is a stand-in for tests" in refused.stderr


def test_commands_refuse_a_broker_that_is_for_tests(tmp_path):
    refused = run_command("queues", "--broker", "memory://", cwd=tmp_path)
    assert refused.returncode == 2, refused.stderr
    assert "'--broker': BACKEND_CONNECTION_URI is memory://, which is a stand-in for tests" in refused.stderr


def run_command(*args, cwd) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "flask_backend", *args],
        capture_output=True,
        text=True,
        timeout=30,
        cwd=cwd,
        env=environment(),
    )


def environment() -> dict[str, str]:
    """Return our environment without settings for other programs."""
    return {key: value for key, value in os.environ.items() if not key.startswith(("FLASK_", "BACKEND_", "PYTEST_"))}
