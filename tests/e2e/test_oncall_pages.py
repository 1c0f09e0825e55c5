"""The pages for people on call: each of their commands runs while its symptom is there."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import greenstalk
import pytest
import yaml
from helpers import ROOT
from support.beanstalkd import Beanstalkd, RealBeanstalkd
from support.supervised import Supervised, title
from support.waiting import wait_until

from flask_backend.names import schedule_tube
from flask_backend.periodic.definition import Definition
from flask_backend.periodic.token import Entry, Release, Token
from flask_backend.periodic.when import Every

ONCALL = ROOT / "docs" / "oncall"
RULES = ROOT / "deploy" / "prometheus" / "rules.yaml"
QUEUE = "com.example/orders"
FORGOTTEN = "com.example/forgotten"

# Tasks that go wrong, and a module that a release may lack.
APP = f"""
import os, signal, time
from pathlib import Path
from flask import Flask
from flask_backend import Backend, Retry
import release

app = Flask(__name__)
backend = Backend(app)
here = Path(__file__).parent

@backend.task({QUEUE!r}, retry=Retry(max_retries=0))
def order(number):
    raise ValueError("no such article")

@backend.task({QUEUE!r})
def hang():
    while not (here / "go").exists():
        time.sleep(0.01)

@backend.task({QUEUE!r})
def crash():
    os.kill(os.getpid(), signal.SIGKILL)

@backend.task({QUEUE!r})
def note(): pass
"""


def sections_of(page: str) -> dict[str, list[str]]:
    """Return the commands below each heading, those in sentences apart."""
    text = (ONCALL / f"{page}.md").read_text()
    found = {}
    for part in re.split(r"(?m)^##? ", text)[1:]:
        heading, _, body = part.partition("\n")
        blocks = re.findall(r"^```sh\n(.*?)^```$", body, re.DOTALL | re.MULTILINE)
        found[heading] = [line for block in blocks for line in block.splitlines()]
    return found


RUNBOOK = sections_of("alerts")
SYMPTOMS = sections_of("troubleshooting")


class Host:
    """A host with a supervisor, on which something is wrong while a person types commands."""

    def __init__(self, broker: Beanstalkd, supervised: Supervised, folder: Path) -> None:
        self.broker = broker
        self.supervised = supervised
        self.folder = folder
        self.shown = ""
        self.words = {"PID": str(supervised.pid), "QUEUE": QUEUE, "ENDPOINT": "order", "HOST": "192.0.2.7"}
        inherited = {key: value for key, value in os.environ.items() if not key.startswith(("FLASK_", "BACKEND_"))}
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}:/usr/sbin:/usr/bin"
        self._env = inherited | broker.env | {"PATH": path}

    def type(self, command: str) -> str:
        """Run a command, confirm its question, and return its output."""
        for word, meaning in self.words.items():
            command = re.sub(rf"\b{word}\b", meaning, command)
        more = {"queues": " --interval 0.1"} | dict.fromkeys(("retry", "delete", "pause", "resume", "call"), " --yes")
        command += more.get(command.removeprefix("flask-backend ").removeprefix("--app shop ").split(" ")[0], "")
        done = subprocess.run(  # noqa: S602  # as typed into a shell
            command,
            shell=True,
            stdin=subprocess.DEVNULL,
            text=True,
            capture_output=True,
            cwd=self.folder,
            env=self._env,
            timeout=30,
        )
        shown = done.stdout + done.stderr
        self.shown += shown
        assert "Usage:" not in shown, shown
        assert done.returncode in {0, 1, 3}, f"{command}: {done.returncode}\n{shown}"
        return shown

    def pause_after(self, command: str) -> None:
        """Wait, as a person does, for what a command begins."""
        if command.startswith("kill -USR1"):
            self.supervised.wait_for_log("in hang")
        elif command.startswith("flask-backend retry"):
            self.settle()

    def call(self, endpoint: str, queue: str = QUEUE, **options: int) -> int:
        body = f'{{"endpoint": "{endpoint}", "args": {[1] if endpoint == "order" else []}}}'
        return self.broker.put(queue, body.encode(), **options)

    def count(self, state: str) -> int:
        return self.broker.count(QUEUE, state)

    def settle(self) -> None:
        """Wait until each job is done, delayed or buried."""

        def is_settled() -> bool:
            tube = self.broker.tube(QUEUE)  # in one reading: a job may move meanwhile
            return tube["current-jobs-ready"] + tube["current-jobs-reserved"] == 0

        wait_until(is_settled, "all jobs are settled")

    def delete(self, job: int) -> None:
        with self.broker.client() as client:
            client.delete(job)

    def pause(self, seconds: int) -> None:
        with self.broker.client() as client:
            client.pause_tube(QUEUE, seconds)

    # -- what is wrong -----------------------------------------------------------------------------------------

    @contextmanager
    def nothing(self) -> Iterator[str]:
        yield rf"supervisor {self.supervised.pid}, up"

    @contextmanager
    def forgotten(self) -> Iterator[str]:
        job = self.call("note", FORGOTTEN)
        yield rf"no worker watches {FORGOTTEN}"
        self.delete(job)

    @contextmanager
    def paused(self) -> Iterator[str]:
        self.call("note")
        self.settle()
        self.pause(3600)
        self.words["ID"] = str(self.call("note"))
        yield r"paused for another"
        self.pause(0)
        self.settle()

    @contextmanager
    def buried(self) -> Iterator[str]:
        self.words["ID"], *_ = [str(self.call("order")) for _ in range(3)]
        wait_until(lambda: self.count("buried") == 3, "all are buried")
        yield r"(?s)ValueError: no such article.*retried 3 jobs.*deleted 3 jobs"
        assert self.count("buried") == 0

    @contextmanager
    def crashed(self) -> Iterator[str]:
        job = self.call("crash")
        self.supervised.wait_for_log("killed by signal 9")
        wait_until(lambda: self.count("delayed"), "the job is released")
        self.delete(job)
        yield r"was killed by signal 9"

    @contextmanager
    def hanging(self) -> Iterator[str]:
        job = self.call("hang")
        busy = wait_until(lambda: [w for w in self.supervised.workers() if "[hang" in title(w)], "a task hangs")
        self.words["WORKER"] = str(busy[0])
        yield r"hang \d+s"
        wait_until(lambda: self.count("delayed"), "the job is released")
        self.delete(job)

    @contextmanager
    def slow(self) -> Iterator[str]:
        for _ in range(6):
            self.call("hang")
        wait_until(lambda: self.count("reserved") == 3, "all workers are busy")
        yield r"hang \d+s"
        wait_until(lambda: self.count("reserved") == 4, "there is one worker more")
        (self.folder / "go").touch()
        self.settle()
        (self.folder / "go").unlink()
        os.kill(self.supervised.pid, signal.SIGTTOU)
        self.supervised.wait_reserving(3, QUEUE)

    @contextmanager
    def frozen(self) -> Iterator[str]:
        os.kill(self.supervised.pid, signal.SIGSTOP)
        yield rf"supervisor {self.supervised.pid} has been frozen for"
        wait_until(lambda: "is alive" in self.type("flask-backend health --pid PID"), "it goes on")

    @contextmanager
    def broken(self) -> Iterator[str]:
        (self.folder / "broken.py").write_text("import widgets")
        self.words["APP"] = "broken"
        yield "No module named 'widgets'"

    @contextmanager
    def refused(self) -> Iterator[str]:
        release = self.folder / "release.py"
        release.write_text("import widgets")
        yield r"(?s)No module named 'widgets'.*reload failed"
        release.write_text("")

    @contextmanager
    def away(self) -> Iterator[str]:
        self.broker.kill()
        yield "cannot connect to Beanstalkd"
        self.broker.start()
        self.supervised.wait_reserving(3, QUEUE)

    @contextmanager
    def unscheduled(self) -> Iterator[str]:
        entry = Entry(Definition("daily", FORGOTTEN, "note", Every(86400)), 1)
        job = self.broker.put(schedule_tube(FORGOTTEN), Token(FORGOTTEN, 1, Release(), {"daily": entry}).encode())
        yield rf"(?s)Every day.*no scheduler watches {FORGOTTEN}"
        with self.broker.client() as client:
            client.delete(job)

    @contextmanager
    def late(self) -> Iterator[str]:
        self.words["ID"] = str(self.call("note", delay=3600))
        yield r"(?s)delayed.*retried 1 job"
        self.settle()


# What is wrong when the commands of a part run: first those of the runbook, then those of the other page.
SITUATIONS = {
    Host.nothing: ("Troubleshooting by symptom", "Memory grows", "A host has vanished", "FlaskBackendSupervisorGone"),
    Host.forgotten: ("FlaskBackendQueueWithoutWorkers", "FlaskBackendBrokerMemory"),
    Host.paused: ("Jobs wait",),
    Host.slow: ("FlaskBackendJobsWaitTooLong",),
    Host.buried: ("FlaskBackendFailureRatio", "FlaskBackendJobsBuried", "Jobs are buried"),
    Host.crashed: ("FlaskBackendWorkersCrash", "Workers die"),
    Host.hanging: ("FlaskBackendJobHangs", "A task hangs"),
    Host.frozen: ("FlaskBackendSupervisorFrozen", "The supervisor is frozen"),
    Host.broken: ("The supervisor does not start, or ends",),
    Host.refused: ("FlaskBackendReloadRefused", "A reload is refused"),
    Host.unscheduled: ("FlaskBackendScheduleMissed", "Periodic tasks are not scheduled"),
    Host.late: ("The clock is wrong",),
    Host.away: ("FlaskBackendBrokerDown", "The broker is away"),
}
# It needs a broker of its own.
FULL = "A full disk of the broker"

# Commands that would act on the machine of the tests, or that its kind may lack: only their words are checked.
ONLY_READ = ("systemctl", "journalctl")


def test_the_runbook_has_a_part_for_each_alert_and_no_other():
    alerts = [rule["alert"] for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]
    assert [heading for heading in RUNBOOK if heading != "Runbook"] == alerts
    text = (ONCALL / "alerts.md").read_text()
    for word in ("Means", "Look", "Mend", "Never"):
        assert len(re.findall(rf"(?m)^\*\*{word}\b", text)) >= len(alerts), word


def test_each_part_with_commands_has_a_situation():
    parts = {heading for heading, commands in (RUNBOOK | SYMPTOMS).items() if commands}
    assert {part for group in SITUATIONS.values() for part in group} | {FULL} == parts


@pytest.mark.timeout(180)
def test_each_command_shows_or_mends_what_it_is_for(broker, supervise, tmp_path):
    (tmp_path / "shop.py").write_text(APP)
    (tmp_path / "release.py").write_text("")
    supervised = supervise("--queue", f"{QUEUE}=3", app="shop", workers=3)
    supervised.wait_reserving(3, QUEUE)
    host = Host(broker, supervised, tmp_path)
    for situation, parts in SITUATIONS.items():
        commands = dict.fromkeys(line for part in parts for line in (RUNBOOK | SYMPTOMS)[part])
        with situation(host) as expected:
            host.shown = ""
            for command in commands:
                if not command.startswith(ONLY_READ):
                    host.type(command)
                    host.pause_after(command)
            assert re.search(expected, host.shown), f"{parts}: {expected!r} is not in\n{host.shown}"


@pytest.mark.timeout(120)
def test_a_full_disk_loses_no_job_once_it_has_room_and_beanstalkd_is_restarted(tmp_path, supervise):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=25m", "tmpfs", str(disk)]
    if os.getuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs the right to mount a file system")
    with ExitStack() as stack:
        stack.callback(subprocess.run, ["umount", "-l", str(disk)], check=True)
        # Beside it there is room for one file of the binlog.
        (disk / "other").write_bytes(bytes(12 << 20))
        broker = RealBeanstalkd(disk)
        stack.callback(broker.stop)
        (tmp_path / "shop.py").write_text(APP)
        (tmp_path / "release.py").write_text("")
        supervised = supervise("--queue", f"{QUEUE}=1", app="shop", workers=1, broker=broker)
        supervised.wait_reserving(1, QUEUE)
        host = Host(broker, supervised, tmp_path)
        jobs = fill(broker, json.dumps({"endpoint": "order", "args": ["x" * 60_000]}).encode())
        supervised.wait_for_log("the server reports an internal error")
        assert "the broker refuses to retry or bury it, and may not hand it out until it is restarted" in supervised.log
        assert "gives it to another worker" not in supervised.log

        call = f"flask-backend --app shop call order '[\"{'x' * 60_000}\"]'"
        assert "out of room for its binlog" in host.type(call)
        for command in SYMPTOMS[FULL]:
            host.type(command.replace("/var/lib/beanstalkd", str(disk)))
        (disk / "other").unlink()
        broker.kill()
        broker.start()
        supervised.wait_reserving(1, QUEUE)
        host.settle()
        deleted = int(re.search(r"deleted (\d+) jobs?", host.shown)[1])
        assert deleted + host.count("buried") == jobs
        assert host.type(call).strip().isdecimal()


def fill(broker: Beanstalkd, body: bytes) -> int:
    """Put jobs until the disk is full; return how many."""
    with broker.client(QUEUE) as client:
        for count in range(10_000):
            try:
                client.put(body)
            except greenstalk.OutOfMemoryError:
                return count
    raise AssertionError("the disk is never full")


@pytest.mark.parametrize("tool", ONLY_READ)
def test_the_words_of_other_commands_exist(tool):
    if not shutil.which(tool):
        pytest.skip(f"no {tool} here")
    text = subprocess.run([tool, "--help"], capture_output=True, text=True).stdout
    commands = [shlex.split(line) for lines in (RUNBOOK | SYMPTOMS).values() for line in lines]
    words = {word for command in commands if command[0] == tool for word in command[1:] if re.match(r"-|[a-z]+$", word)}
    assert words
    for word in words - {"beanstalkd", "err"}:
        assert re.search(rf"(?m)^\s+({word}|.*\s{word})[\s,=]", text), f"{tool} has no {word}"
