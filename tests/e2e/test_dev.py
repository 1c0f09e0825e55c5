"""`flask-backend dev` and its programs, and a breakpoint in a task."""

from __future__ import annotations

import os
import pty
import re
import signal
import socket
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from subprocess import Popen

import psutil
import pytest
from helpers import Browser, Program
from support.beanstalkd import free_port
from support.waiting import wait_until

BIN = Path(sys.executable).parent
QUEUE = "com.example/default"
APP = """
import time
from pathlib import Path
from flask import Flask
from flask_backend import Backend
from words import GREETING

app = Flask(__name__)
backend = Backend(app)

@backend.task("com.example/default")
def greet(name):
    app.logger.info("%s %s", GREETING, name)

@backend.task("com.example/default")
def sleep(seconds):
    app.logger.info("sleeping")
    time.sleep(seconds)
    app.logger.info("awake")

@app.get("/<name>")
def index(name):
    greet(name)
    return GREETING

@app.get("/sleep/<int:seconds>")
def sleeping(seconds):
    sleep(seconds)
    return "soon"
"""

WAIT = """Path("begun").touch()
    while not Path("gate").exists():
        time.sleep(0.01)
    Path("done").touch()"""


class Dev:
    """A folder with an app, and a running `dev`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.log = folder / "log"
        self.family: set[psutil.Process] = set()
        self.write("app.py", APP)
        self.write("words.py", "GREETING = 'hello'\n")

    def write(self, name: str, text: str) -> None:
        (self.folder / name).write_text(text)

    def start(self, *args: str, under: Sequence[str] = (), **env: str) -> Dev:
        uri = {"BACKEND_CONNECTION_URI": f"btq://127.0.0.1:{self.port}"}
        command = (*under, BIN / "flask-backend", "dev", "--port", "0", *args)
        self.program = Program(*command, log=self.log, cwd=self.folder, env=uri | env)
        return self

    def wait_for(self, pattern: str, times: int = 1) -> None:
        wait_until(lambda: len(re.findall(pattern, self.output)) >= times, f"{pattern!r} in:\n{self.output}")

    def wait_ready(self, times: int = 1) -> None:
        self.wait_for("workers .* ready: com.example/default=1", times)
        self.note_family()

    @property
    def output(self) -> str:
        return self.program.output

    @property
    def browser(self) -> Browser:
        return Browser(self.program.wait_for(r"http://127.0.0.1:\d+")[0])

    def note_family(self) -> None:
        """Record all existing processes: they cannot be found from dev once it has ended."""
        self.family.update(psutil.Process(self.program.process.pid).children(recursive=True))

    def find(self, text: str) -> psutil.Process:
        self.note_family()
        return next(process for process in self.family if is_alive(process) and text in " ".join(process.cmdline()))

    def send(self, number: signal.Signals) -> None:
        self.note_family()
        self.program.process.send_signal(number)

    def assert_clean_exit(self, code: int) -> None:
        assert self.program.process.wait(20) == code, self.output
        self.assert_nothing_is_left()

    def assert_nothing_is_left(self) -> None:
        for process in self.family:
            wait_until(lambda process=process: not is_alive(process), f"{process} is gone")
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", self.port))

    def end(self) -> None:
        if hasattr(self, "program"):
            if not self.program.has_ended:
                self.note_family()
            self.program.end()
        for process in self.family:
            with suppress(psutil.NoSuchProcess):
                process.kill()


def is_alive(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


@pytest.fixture
def dev(tmp_path):
    running = Dev(tmp_path)
    yield running
    running.end()


def test_changes_reach_the_web_server_and_the_workers_but_for_broken_ones(dev):
    dev.start()
    assert dev.browser.get("/Ada") == "hello"  # requested before the server is up, which must not raise
    dev.wait_for("workers .* hello Ada")
    dev.wait_ready()

    dev.write("words.py", "GREETING = 'welcome'\n")
    dev.wait_for(r"dev     \| changed: words.py: reloading")
    dev.wait_ready(2)
    dev.wait_for("Debugger is active", 2)
    assert dev.browser.get("/Bob") == "welcome"
    dev.wait_for("workers .* welcome Bob")

    dev.write("words.py", "GREETING = 'salut'\n1 / 0\n")
    dev.wait_for(r"dev     \| the app does not load: the old one goes on; waiting for a change")
    assert "app     | ZeroDivisionError" in dev.output
    assert dev.browser.get("/Cy") == "welcome"
    dev.wait_for("workers .* welcome Cy")

    dev.write("words.py", "GREETING = 'salut'\n")
    dev.wait_ready(3)
    dev.wait_for("Debugger is active", 3)
    assert dev.browser.get("/Di") == "salut"
    dev.wait_for("workers .* salut Di")

    dev.send(signal.SIGINT)
    dev.assert_clean_exit(0)
    lines = dev.output.splitlines()
    assert all(re.match(r"(dev    |web    |workers|broker |board  |app    ) \|( \S|$|  )", line) for line in lines), (
        lines
    )
    assert "\x1b" not in dev.output


def test_a_broken_app_an_app_without_queues_and_a_dead_broker_are_waited_for(dev):
    dev.write("words.py", "def (")
    dev.start()
    dev.wait_for(r"dev     \| the app does not load: waiting for a change")
    assert "app     | SyntaxError" in dev.output

    dev.write("words.py", "GREETING = 'hello'\n")
    dev.write("app.py", APP.replace("@backend", "#"))
    dev.wait_for("the app has no queues: no workers")
    dev.wait_for("Debugger is active")
    assert "supervisor" not in dev.output
    dev.find(" broker ").kill()
    dev.wait_for(r"dev     \| broker: was killed by signal 9 .*; starts again at the next change")

    dev.write("app.py", APP)
    dev.wait_ready()
    dev.wait_for(r"broker  \| broker at", 2)
    dev.write("app.py", APP.replace("@backend", "#"))
    dev.wait_for("SIGTERM: stopping")


def test_the_dashboard_is_served_beside_the_web_server_until_the_end(dev):
    dev.start().wait_ready()
    link = dev.program.wait_for(r"board   \| (http://127\.0\.0\.1:\d+)/(\?token=\S+)")
    browser = Browser(link[1])
    assert "<h1>Queues</h1>" in browser.get(f"/{link[2]}")  # after the redirect
    dev.wait_for(r"board   \| http://", 2)  # a link for another browser

    dev.write("words.py", "GREETING = 'welcome'\n")
    dev.wait_ready(2)
    # The app reloads, the dashboard stays. The queue is there as soon as the new worker watches it.
    wait_until(lambda: "com.example/default" in browser.get("/"), "the queue is shown")
    dev.find(" dashboard ").kill()
    dev.wait_for(r"dev     \| board: was killed by signal 9 .*; starts again at the next change")
    dev.write("words.py", "GREETING = 'salut'\n")
    dev.wait_for(r"board   \| dashboard of", 2)
    dev.send(signal.SIGINT)
    dev.assert_clean_exit(0)


def test_dev_can_run_without_the_dashboard(dev):
    dev.start("--no-dashboard").wait_ready()
    dev.send(signal.SIGINT)
    dev.assert_clean_exit(0)
    assert "board" not in dev.output


def test_killed_dev_leaves_no_process(dev):
    dev.start().wait_ready()
    dev.wait_for("Debugger is active")
    dev.send(signal.SIGKILL)
    dev.program.process.wait()
    dev.assert_nothing_is_left()


def test_ctrl_c_lets_tasks_finish_and_a_second_one_does_not(dev):
    dev.start("--no-web").wait_ready()
    call = [BIN / "flask-backend", "call", "--yes", "sleep"]
    environment = os.environ | {"BACKEND_CONNECTION_URI": f"btq://127.0.0.1:{dev.port}"}
    assert Popen([*call, "[0.5]"], cwd=dev.folder, env=environment).wait() == 0
    dev.wait_for("sleeping")
    dev.send(signal.SIGINT)
    dev.assert_clean_exit(0)
    assert "awake" in dev.output
    assert "web" not in dev.output

    dev.start("--no-web").wait_ready()
    assert Popen([*call, "[600]"], cwd=dev.folder, env=environment).wait() == 0
    dev.wait_for("sleeping")
    dev.send(signal.SIGINT)
    dev.wait_for("workers .* SIGTERM: stopping")
    dev.send(signal.SIGINT)
    dev.assert_clean_exit(0)


@pytest.mark.parametrize("streams", ["", "012"], ids=["output-in-a-file", "output-at-the-terminal"])
def test_tasks_finish_when_the_terminal_closes(dev, broker, closing_terminal, streams):
    gate, done = dev.folder / "gate", dev.folder / "done"
    dev.write("app.py", APP.replace("time.sleep(seconds)", WAIT))
    dev.start("--no-web", under=closing_terminal.start(streams=streams), BACKEND_CONNECTION_URI=broker.uri)
    call = [BIN / "flask-backend", "call", "--yes", "sleep", "[0]"]
    environment = os.environ | {"BACKEND_CONNECTION_URI": broker.uri}
    wait_until(lambda: broker.waiting(QUEUE) == 1, "the worker waits")
    dev.note_family()
    assert Popen(call, cwd=dev.folder, env=environment).wait() == 0
    wait_until((dev.folder / "begun").exists, "the task runs")
    closing_terminal.close()
    dev.send(signal.SIGHUP)  # as the shell does, after the kernel
    wait_until(lambda: broker.waiting(QUEUE) == 0, "the worker has stopped waiting")
    gate.touch()
    assert dev.program.process.wait(20) == 0
    assert done.exists()
    for process in dev.family:
        wait_until(lambda process=process: not is_alive(process), f"{process} is gone")


def test_nohup_keeps_it_from_the_end_of_its_terminal_and_its_workers_reload(dev, closing_terminal):
    dev.start("--no-web", under=[*closing_terminal.start(), "nohup"]).wait_ready()
    closing_terminal.close()
    dev.send(signal.SIGHUP)
    dev.write("words.py", "GREETING = 'welcome'\n")
    dev.wait_ready(2)
    assert "SIGHUP" not in dev.output
    dev.send(signal.SIGTERM)
    dev.assert_clean_exit(0)


def test_a_running_broker_is_used_and_a_dead_program_restarts_at_the_next_change(dev, broker):
    dev.start("--file", "jobs.db", BACKEND_CONNECTION_URI=broker.uri).wait_ready()
    dev.wait_for("Debugger is active")
    assert f"dev     | broker: {broker.uri}\n" in dev.output
    assert "dev     | jobs.db is not used: no embedded broker runs\n" in dev.output
    dev.find("run --no-reload").kill()
    dev.find("flask-backend: master").kill()
    dev.wait_for(r"dev     \| web: was killed by signal 9 .*; starts again at the next change")
    dev.wait_for(r"dev     \| workers: was killed by signal 9 .*; starts again at the next change")
    dev.write("words.py", "GREETING = 'welcome'\n")
    dev.wait_ready(2)
    assert dev.browser.get("/Ada") == "welcome"
    dev.send(signal.SIGTERM)
    dev.assert_clean_exit(0)
    assert not re.search("^broker", dev.output, re.MULTILINE)


def test_dev_can_run_without_workers(dev):
    dev.start("--workers", "0")
    assert dev.browser.get("/Ada") == "hello"
    dev.send(signal.SIGINT)
    dev.assert_clean_exit(0)
    assert "workers" not in dev.output


def test_a_taken_port_is_reported(dev):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        dev.start("--port", str(port))
        assert dev.program.process.wait(20) == 1
    assert dev.output == (
        f"Error: cannot listen on 127.0.0.1, port {port}: Address already in use; "
        "stop the program that listens there, or choose another --port or --host, or --no-web\n"
    )


class Terminal:
    """A program whose input and output are a terminal."""

    def __init__(self, *command: str | Path, cwd: Path, **env: str) -> None:
        self._master, slave = pty.openpty()
        os.set_blocking(self._master, False)
        inherited = {key: value for key, value in os.environ.items() if not key.startswith(("FLASK_", "BACKEND_"))}
        self.process = Popen(command, cwd=cwd, env=inherited | env, stdin=slave, stdout=slave, stderr=slave)
        os.close(slave)
        self.shown = ""

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def interrupt(self) -> None:
        """Act like Ctrl-C once the program waits: just before, readline would not notice."""
        process = psutil.Process(self.process.pid)
        wait_until(lambda: process.status() == psutil.STATUS_SLEEPING, "it sleeps")
        process.send_signal(signal.SIGINT)

    def wait_for(self, text: str) -> None:
        wait_until(lambda: text in self._read(), f"{text!r} in:\n{self.shown}")

    def _read(self) -> str:
        with suppress(BlockingIOError, OSError):  # no such process
            self.shown += os.read(self._master, 10_000).decode()
        return self.shown

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self._master)


@pytest.fixture
def terminal():
    started: list[Terminal] = []

    def start(*command: str | Path, cwd: Path, **env: str) -> Terminal:
        started.append(Terminal(*command, cwd=cwd, **env))
        return started[-1]

    yield start
    for running in started:
        running.end()


@pytest.mark.parametrize(
    ("variables", "prefix"), [({}, "\x1b[33mdev     |\x1b[0m web: "), ({"NO_COLOR": "1"}, "dev     | web: ")]
)
def test_a_terminal_gets_colours_unless_they_are_disabled(terminal, tmp_path, variables, prefix):
    running = terminal(BIN / "flask-backend", "dev", "--port", "0", cwd=tmp_path, **variables)
    running.wait_for("waiting for a change")  # there is no app
    assert running.shown.startswith(prefix)
    running.process.send_signal(signal.SIGINT)
    assert running.process.wait(20) == 0


BREAKPOINT = """
from flask import Flask
from flask_backend import Backend
app = Flask(__name__)
backend = Backend(app)
@backend.task("com.example/default", ttr=1)
def add(a, b):
    total = a + b
    breakpoint()
    print("the total is", total)
"""


def test_a_breakpoint_has_the_terminal_and_its_job_stays_reserved(terminal, broker, tmp_path):
    (tmp_path / "app.py").write_text(BREAKPOINT)
    broker.put(QUEUE, b'{"endpoint": "add", "args": [1, 2]}', ttr=1)
    command = (BIN / "flask-backend", "worker", "--no-fork", QUEUE)
    running = terminal(*command, cwd=tmp_path, **broker.env)
    running.wait_for("(Pdb) ")
    running.interrupt()
    running.wait_for("--KeyboardInterrupt--\r\n(Pdb) ")
    running.interrupt()
    running.wait_for("--KeyboardInterrupt--\r\n(Pdb) --KeyboardInterrupt--\r\n(Pdb) ")
    running.type("total * 1000\n")
    running.wait_for("3000")
    seen = broker.job(1)["age"]
    wait_until(lambda: broker.job(1)["age"] >= seen + 2, "twice the time that the job may be silent")
    assert (broker.job(1)["state"], broker.job(1)["timeouts"]) == ("reserved", 0)
    running.type("continue\n")
    running.wait_for("the total is 3")
    wait_until(lambda: broker.is_empty(QUEUE), "the job is done")
    running.process.send_signal(signal.SIGINT)
    assert running.process.wait(20) == 0
