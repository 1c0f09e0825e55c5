"""Instances of the unit in a booted machine, each with its own app."""

from __future__ import annotations

import json
import re
import signal
import subprocess

from nspawn import Machine
from support.waiting import wait_until

APP = """
import os, subprocess, time
from pathlib import Path
from flask import Flask
from flask_backend import Backend, Retry

VERSION = 1
QUEUE = "com.example/NAME"
app = Flask(__name__)
backend = Backend(app)
here = Path(os.environ.get("STATE_DIRECTORY", "/nowhere"))

@backend.before_first_task(QUEUE)
def hook():
    (here / "hook").touch()

@backend.task(QUEUE)
def note(text):
    with (here / "ledger").open("a") as ledger:
        ledger.write(f"{text} {VERSION}\\n")

@backend.task(QUEUE)
def wait(name):
    (here / f"{name}.started").touch()
    while not (here / name).exists():
        time.sleep(0.02)
    (here / f"{name}.finished").touch()

@backend.task(QUEUE)
def environment():
    seen = subprocess.run(["env"], capture_output=True, text=True, check=True).stdout
    (here / "part").write_text("\\n".join(os.environ) + seen)
    (here / "part").replace(here / "environment")

@backend.task(QUEUE)
def write(*paths):
    lines = []
    for path in paths:
        try:
            Path(path).write_text("x")
            lines.append(f"{path} written")
        except OSError as error:
            lines.append(f"{path} {error.strerror}")
    (here / "part").write_text("\\n".join(lines))
    (here / "part").replace(here / "written")

@backend.task(QUEUE)
def send(number, pid):
    try:
        os.kill(pid, number)
        answer = "sent"
    except OSError as error:
        answer = error.strerror
    (here / "part").write_text(answer)
    (here / "part").replace(here / "answer")

@backend.task(QUEUE, retry=Retry(max_retries=0))
def fail():
    raise ValueError("two\\nlines")
"""


class Instance:
    """An instance of the unit, its app and its settings."""

    def __init__(self, machine: Machine, name: str) -> None:
        self.machine = machine
        self.name = name
        self.unit = f"flask-backend@{name}.service"
        self.queue = f"com.example/{name}"
        self._state = f"/var/lib/private/flask-backend/{name}"
        self.release(APP)
        self.set(BACKEND_WORKERS="2")

    def release(self, app: str, number: int = 1) -> None:
        """Put the code of a release into a folder of its own, and point the link at it."""
        folder = f"/srv/releases/{self.name}-{number}"
        self.machine.run("mkdir", "-p", folder)
        self.machine.path(f"{folder}/app.py").write_text(app.replace("NAME", self.name))
        self.machine.run("ln", "-sfn", "/srv/demo/venv", f"{folder}/venv")
        self.machine.run("ln", "-sfn", folder, f"/srv/{self.name}")

    def set(self, **variables: str) -> None:
        """Write the settings of the app."""
        lines = [f"{name}={value}\n" for name, value in {"FLASK_APP": "app", **variables}.items()]
        self.machine.path(f"/etc/flask-backend/{self.name}.env").write_text("".join(lines))

    def edit(self, *settings: str) -> None:
        """Change the unit, as `systemctl edit` does."""
        folder = f"/etc/systemd/system/{self.unit}.d"
        self.machine.run("mkdir", "-p", folder)
        self.machine.path(f"{folder}/override.conf").write_text("\n".join(["[Service]", *settings, ""]))
        self.machine.run("systemctl", "daemon-reload")

    def systemctl(self, verb: str, *options: str) -> str:
        return self.machine.run("systemctl", verb, *options, self.unit)

    def try_systemctl(self, verb: str, *options: str) -> subprocess.CompletedProcess[str]:
        return self.machine.try_to("systemctl", verb, *options, self.unit)

    def show(self, name: str) -> str:
        """Return one property of the unit."""
        return self.systemctl("show", f"--property={name}", "--value").rstrip("\n")

    @property
    def pid(self) -> int:
        """The pid of the supervisor, in the container."""
        return int(self.show("MainPID"))

    def kill(self, number: signal.Signals) -> None:
        """Send a signal to the supervisor."""
        self.machine.run("kill", f"-{number.value}", str(self.pid))

    def workers(self) -> list[int]:
        """The pids of the other processes of the unit, in the container."""
        text = self.machine.run("systemd-cgls", "--unit", self.unit, "--full", "--no-pager")
        pids = [int(word) for word in re.findall(r"(?m)^\W*(\d+) ", text)]
        return [pid for pid in pids if pid != self.pid]

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run `flask-backend` as root."""
        return self.machine.try_to("/srv/demo/venv/bin/flask-backend", *arguments, folder="/srv/demo")

    def schedule(self, *statements: str) -> None:
        """Run statements of Python where the app can schedule."""
        code = "\n".join(["from app import *", "with app.app_context():", *(f"    {line}" for line in statements)])
        self.machine.run("/srv/demo/venv/bin/python", "-c", code, folder=f"/srv/releases/{self.name}-1")

    def touch(self, name: str) -> None:
        self.machine.path(f"{self._state}/{name}").touch()

    def has(self, name: str) -> bool:
        """Whether a file exists where the tasks write."""
        return self.machine.path(f"{self._state}/{name}").exists()

    def read(self, name: str) -> str:
        """Wait for a file that a task writes; return its text."""
        wait_until(lambda: self.has(name), f"{name} is written; {self.describe()}")
        return self.machine.path(f"{self._state}/{name}").read_text()

    def ledger(self) -> list[str]:
        return self.read("ledger").splitlines() if self.has("ledger") else []

    def count(self, what: str) -> int:
        """Return a number of the queue's statistics."""
        done = self.machine.run(
            "/srv/demo/venv/bin/python",
            "-c",
            f"""
import greenstalk
with greenstalk.Client(("127.0.0.1", 11300)) as client:
    try:
        print(client.stats_tube({self.queue!r})["current-jobs-{what}"])
    except greenstalk.NotFoundError:
        print(0)
""",
        )
        return int(done)

    def journal(self, *options: str) -> list[dict[str, str]]:
        """Return the records of the unit in the journal."""
        self.machine.run("journalctl", "--sync")
        text = self.machine.run("journalctl", "--output=json", "--all", f"--unit={self.unit}", *options)
        return [json.loads(line) for line in text.splitlines()]

    def describe(self) -> str:
        """Return what helps to understand a failure."""
        return self.machine.run("systemctl", "status", "--no-pager", "--lines=30", "--full", self.unit, check=False)
