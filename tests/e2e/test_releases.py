"""Releases behind a link that a deploy switches to the next one before it sends HUP."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sys
import sysconfig
from pathlib import Path

import pytest
from helpers import ROOT, Program
from support.waiting import wait_until

pytestmark = pytest.mark.any_broker

BIN = Path(sys.executable).parent
QUEUE = "com.example/default"
APP = """
import os
from flask import Flask
from flask_backend import Backend

app = Flask(__name__)
backend = Backend(app)
os.environ.setdefault("FROM_IMPORT", "{n}")


@backend.task("com.example/default")
def tell():
    import marker
    told = ["{n}", os.environ.get("FROM_FILE", "{n}"), os.environ["FROM_IMPORT"], marker.RELEASE]
    app.logger.info("release %s", " ".join(told))


os.chdir("/")
"""
MANAGE = """
from app import app
from flask_backend import BackendCommand
from flask_script import Manager

manager = Manager(app)
manager.add_command("backend", BackendCommand)
manager.run()
"""
SUPERVISE = f"supervise --workers 1 --queue {QUEUE}"


class Releases:
    """A folder of releases, a link to one of them, and a supervisor started through the link."""

    def __init__(self, folder: Path, broker) -> None:
        self.folder = folder
        self.current = folder / "current"
        self._broker = broker
        self._jobs = 0

    def make(self, number: int) -> Path:
        release = self.folder / "releases" / str(number)
        release.mkdir(parents=True)
        (release / "app.py").write_text(APP.format(n=number))
        (release / "manage.py").write_text(MANAGE)
        (release / "marker.py").write_text(f"RELEASE = '{number}'")
        (release / ".env").write_text(f"FROM_FILE={number}\n")
        return release

    def deploy(self, number: int) -> None:
        self.make(number)
        self.point_at(number)

    def point_at(self, number: int) -> None:
        link = self.folder / "link"
        link.symlink_to(f"releases/{number}")
        link.replace(self.current)

    def start(self, line: str, cwd: Path | str = "/", **env: str) -> Program:
        path = f"{BIN}:{os.environ['PATH']}"
        env = {**self._broker.env, "PATH": path, "PYTHONPATH": str(ROOT), **env}
        self.supervisor = Program("/bin/sh", "-c", line, log=self.folder / "log", cwd=cwd, env=env)
        self.supervisor.wait_for("supervisor: ready: ")
        return self.supervisor

    def reload(self) -> None:
        before = self.supervisor.output.count("supervisor: ready: ")
        self.supervisor.process.send_signal(signal.SIGHUP)
        wait_until(
            lambda: self.supervisor.output.count("supervisor: ready: ") > before or self.has_failed, "it reloads"
        )
        assert not self.has_failed, self.supervisor.output
        wait_until(lambda: self._broker.waiting(QUEUE) == 1, "only the new worker waits")

    @property
    def has_failed(self) -> bool:
        return "reload failed" in self.supervisor.output

    def tell(self) -> list[str]:
        """Return a worker's report: the numbers of its code, its .env, its environment and its other modules."""
        self._jobs += 1
        self._broker.put(QUEUE, json.dumps({"endpoint": "tell"}).encode())
        found = wait_until(
            lambda: len(told := re.findall(r"release (\d \d \d \d)", self.supervisor.output)) == self._jobs and told,
            f"it tells; log:\n{self.supervisor.output}",
        )
        return found[-1].split()

    def end(self) -> None:
        if hasattr(self, "supervisor"):
            self.supervisor.end()


@pytest.fixture
def releases(tmp_path, broker):
    pytest.importorskip("dotenv")
    releases = Releases(tmp_path, broker)
    releases.deploy(1)
    yield releases
    releases.end()


@pytest.mark.parametrize(
    "line",
    [
        f"cd {{current}} && exec flask-backend --app app {SUPERVISE}",
        f"cd {{current}} && exec flask-backend {SUPERVISE}",
        f"cd {{current}} && exec python -m flask_backend --app app {SUPERVISE}",
        f"cd {{current}} && exec flask --app app.py backend {SUPERVISE}",
        f"cd {{current}} && exec python manage.py backend {SUPERVISE}",
        f"cd {{current}} && exec ../../current/run {SUPERVISE}",
        f"cd {{current}} && exec sh -c 'exec flask-backend --app ./app {SUPERVISE}'",
    ],
    ids=["app", "default", "module", "flask", "flask-script", "relative", "shell"],
)
def test_a_reload_takes_the_release_that_the_link_points_to(releases, line):
    for number in (1, 2):
        if number == 2:
            releases.deploy(2)
        run = releases.folder / "releases" / str(number) / "run"
        run.write_text((BIN / "flask-backend").read_text())
        run.chmod(0o755)
        if number == 1:
            releases.start(line.format(current=releases.current))
            assert releases.tell() == ["1"] * 4
    releases.reload()
    assert releases.tell() == ["2"] * 4
    shutil.rmtree(releases.folder / "releases" / "1")
    releases.reload()
    assert releases.tell() == ["2"] * 4
    assert releases.supervisor.stop() == 0


def test_a_changed_env_file_takes_effect(releases):
    releases.start(f"cd {releases.current} && exec flask-backend --app app {SUPERVISE}")
    (releases.current / ".env").write_text("FROM_FILE=7\n")
    releases.reload()
    assert releases.tell() == ["1", "7", "1", "1"]
    assert releases.supervisor.stop() == 0


def test_without_a_shell_the_folder_has_the_name_that_pwd_gives_it(releases):
    releases.start(f"exec flask-backend --app app {SUPERVISE}", cwd=releases.current, PWD=str(releases.current))
    releases.deploy(2)
    releases.reload()
    assert releases.tell() == ["2"] * 4
    assert releases.supervisor.stop() == 0


def test_a_virtual_environment_in_the_release_is_that_of_the_new_one(releases):
    make_venv(releases.folder / "releases" / "1", "1")
    releases.start(f"cd {releases.current} && exec venv/bin/flask-backend --app app {SUPERVISE}", PYTHONPATH="")
    make_venv(releases.make(2), "2")
    releases.point_at(2)
    releases.reload()
    assert releases.tell() == ["2"] * 4
    prefixes = re.findall("prefix (.*)", releases.supervisor.output)
    assert prefixes[-1] == str(releases.folder / "releases" / "2" / "venv")
    assert releases.supervisor.stop() == 0


def make_venv(release: Path, number: str) -> None:
    """Make a virtual environment with the same packages as ours."""
    python = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    packages = release / "venv" / "lib" / python / "site-packages"
    packages.mkdir(parents=True)
    tell = "import sys; print('prefix', sys.prefix, flush=True)"
    (packages / "all.pth").write_text(f"{sysconfig.get_path('purelib')}\n{ROOT}\n{tell}\n")
    (release / "venv" / "bin").mkdir()
    base = Path(sys.base_prefix) / "bin"
    (release / "venv" / "pyvenv.cfg").write_text(f"home = {base}\ninclude-system-site-packages = false\n")
    (release / "venv" / "bin" / "python").symlink_to(base / python)
    script = release / "venv" / "bin" / "flask-backend"
    script.write_text(f"#!{release}/venv/bin/python\nfrom flask_backend.cli import main\nmain()\n")
    script.chmod(0o755)


def test_a_missing_release_leaves_the_old_one_serving(releases):
    releases.start(f"cd {releases.current} && exec flask-backend --app app {SUPERVISE}")
    releases.current.unlink()
    releases.supervisor.process.send_signal(signal.SIGHUP)
    releases.supervisor.wait_for("reload failed: .*No such file or directory: .*current'; the old app goes on")
    assert releases.tell() == ["1"] * 4
    releases.deploy(2)
    before = releases.supervisor.output.count("supervisor: ready: ")
    releases.supervisor.process.send_signal(signal.SIGHUP)
    wait_until(lambda: releases.supervisor.output.count("supervisor: ready: ") > before, "it reloads")
    assert releases.supervisor.stop() == 0


def test_a_version_that_cannot_take_over_is_refused_and_the_old_one_goes_on(releases):
    other = releases.folder / "other"
    other.mkdir()
    releases.start(f"cd {releases.current} && exec flask-backend --app app {SUPERVISE}", PYTHONPATH=f"{ROOT}:{other}")
    (other / "sitecustomize.py").write_text("from flask_backend.supervisor import reload\nreload.FORMAT = '1'\n")
    releases.deploy(2)
    releases.supervisor.process.send_signal(signal.SIGHUP)
    releases.supervisor.wait_for("cannot take over from the one that runs: restart it instead")
    releases.supervisor.wait_for("reload failed: the check of the new app exited with status 3; the old app goes on")
    assert releases.tell() == ["1"] * 4
    assert releases.supervisor.stop() == 0
