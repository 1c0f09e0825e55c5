"""gevent and eventlet: workers refuse a patched interpreter, and a patched web process schedules."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from flask_backend.supervisor.reload import FORMAT

pytestmark = pytest.mark.any_broker

BIN = Path(sys.executable).parent
QUEUE = "com.example/default"
PATCHES = {
    "gevent": "from gevent import monkey; monkey.patch_all()",
    "gevent-socket": "from gevent import monkey; monkey.patch_socket()",
    "eventlet": "import eventlet; eventlet.monkey_patch()",
    "eventlet-time": "import eventlet; eventlet.monkey_patch(time=True)",
}
IMPORTS = {"gevent-import": "import gevent.monkey", "eventlet-import": "import eventlet.patcher"}
APP = """
import os
PATCH = {patch!r}
WHEN = os.environ["WHEN"]
if WHEN == "import":
    exec(PATCH)

from flask import Flask
from flask_backend import Backend

app = Flask(__name__)
backend = Backend(app)


@backend.before_first_task("com.example/default")
def hook():
    if WHEN == "hook":
        exec(PATCH)


@backend.task("com.example/default")
def note(number): ...
"""


def needs(library: str) -> None:
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} is not installed here")


@pytest.fixture
def run(broker, tmp_path):
    """Run a command for an app that patches."""

    def run(*command: str | Path, patch: str, when: str = "import", **env: str):
        needs(patch.partition("-")[0])
        (tmp_path / "app.py").write_text(APP.format(patch=(PATCHES | IMPORTS)[patch]))
        inherited = {key: value for key, value in os.environ.items() if not key.startswith(("FLASK_", "BACKEND_"))}
        environment = inherited | broker.env | {"WHEN": when, "PYTHONDONTWRITEBYTECODE": "1", **env}
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=40)

    return run


def assert_refused(result, patch: str) -> None:
    told = result.stdout + result.stderr
    assert result.returncode == 3, told
    assert told.count(f"{patch.partition('-')[0]} has patched the standard library") >= 1


@pytest.mark.parametrize("patch", PATCHES)
def test_supervise_refuses_an_interpreter_patched_by_the_import(run, patch):
    result = run(BIN / "flask-backend", "supervise", "--workers", "1", patch=patch)
    assert_refused(result, patch)
    assert result.stderr.splitlines()[-1].startswith("Error: ")


@pytest.mark.parametrize("patch", ["gevent", "eventlet"])
@pytest.mark.parametrize(
    "command",
    [["check"], ["worker", QUEUE], ["dev", "--port", "0"], ["dev", "--no-web", "--workers", "0"]],
    ids=["check", "worker", "dev", "dev-alone"],
)
def test_other_commands_that_run_tasks_refuse_it_too(run, patch, command):
    assert_refused(run(BIN / "flask-backend", *command, patch=patch), patch)


@pytest.mark.parametrize("patch", ["gevent", "eventlet"])
@pytest.mark.parametrize("command", [["supervise", "--workers", "1"], ["worker", QUEUE]], ids=["supervise", "worker"])
def test_an_interpreter_patched_by_a_hook_is_refused(run, patch, command):
    result = run(BIN / "flask-backend", *command, patch=patch, when="hook")
    assert_refused(result, patch)
    assert f"a before_first_task hook of {QUEUE}: {patch} has patched" in result.stderr


@pytest.mark.parametrize("patch", ["gevent", "eventlet"])
def test_the_check_of_a_reload_refuses_an_interpreter_patched_by_a_hook(run, patch):
    checked = {"FLASK_BACKEND_CHECK": FORMAT}
    assert_refused(
        run(BIN / "flask-backend", "supervise", "--workers", "1", patch=patch, when="hook", **checked), patch
    )


@pytest.mark.parametrize("patch", IMPORTS)
def test_an_import_alone_is_not_a_patch(run, patch):
    result = run(BIN / "flask-backend", "check", patch=patch)
    assert (result.returncode, "task note" in result.stdout) == (0, True)


PRODUCER = """
import os, sys, time
import app as application
from app import app, note

def schedule(number):
    with app.app_context():
        job = note(number)
        time.sleep(0.001)
        assert job.state() == "ready"

def connections():
    return sum(os.readlink(f"/proc/self/fd/{fd}").startswith("socket:") for fd in os.listdir("/proc/self/fd")
               if os.path.exists(f"/proc/self/fd/{fd}") or os.path.islink(f"/proc/self/fd/{fd}"))

if "gevent" in application.PATCH:
    import gevent
    run_all = lambda: gevent.joinall([gevent.spawn(schedule, n) for n in range(50)], raise_error=True)
else:
    import eventlet
    run_all = lambda: [thread.wait() for thread in [eventlet.spawn(schedule, n) for n in range(50)]]
before = connections()
for _ in range(3):
    run_all()
time.sleep(0.05)
with app.app_context():
    note.map(range(1000))
print("open", connections() - before)
"""


@pytest.mark.parametrize("patch", ["gevent", "eventlet"])
def test_greenlets_of_a_patched_web_process_schedule_and_leave_no_connection_open(run, broker, tmp_path, patch):
    (tmp_path / "producer.py").write_text(PRODUCER)
    result = run(sys.executable, "-W", "ignore", "producer.py", patch=patch)
    assert result.returncode == 0, result.stderr
    assert broker.count(QUEUE, "ready") == 3 * 50 + 1000
    assert int(result.stdout.split()[-1]) <= 4  # of the last greenlet, of the main one, and of the library itself
