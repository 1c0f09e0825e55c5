"""`flask-backend top` in a terminal, beside real supervisors."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress

import pytest
from click.testing import CliRunner
from support.supervised import COMMAND
from support.terminal import Terminal
from support.waiting import wait_until
from support.workload import QUEUE

from flask_backend.cli import main
from flask_backend.cli.commands import top
from flask_backend.config import Settings
from flask_backend.operations.live import SupervisorWatch
from flask_backend.system import page
from flask_backend.system.procfs import PROC_IS_THERE

pytestmark = [pytest.mark.any_broker, pytest.mark.skipif(not PROC_IS_THERE, reason="needs Linux")]

ENVIRONMENT = {key: value for key, value in os.environ.items() if not key.startswith(("BACKEND_", "FLASK_", "LC_"))}
ENVIRONMENT |= {"TERM": "xterm", "LANG": "C.UTF-8", "PYTHONWARNINGS": "error"}
# Runs a command as a job of a shell, which goes on with it after Enter, and shows the modes of the terminal.
IN_A_SHELL = 'set -m; stty -g; "$@"; echo "code $?"; stty -g; echo; read _; fg %1; echo "code $?"; stty -g'


class Top:
    """The command in a terminal of its own."""

    def __init__(self, *args: str, size=(80, 24), under: tuple[str, ...] = (), **env: str) -> None:
        self.terminal = Terminal()
        self.terminal.resize(*size)
        self.modes = self.terminal.modes()
        self.process = subprocess.Popen(
            [*self.terminal.start(streams="012"), *under, *COMMAND, "top", *args], env=ENVIRONMENT | env
        )

    def wait_for(self, pattern: str) -> re.Match[str]:
        return self.terminal.wait_for(pattern)

    def type(self, *keys: str) -> None:
        self.terminal.type("".join(keys).encode())

    @property
    def lines(self) -> list[str]:
        return self.terminal.picture.lines

    def assert_left_as_it_was(self, code: int) -> None:
        assert self.process.wait(20) == code
        self.terminal.read()
        picture = self.terminal.picture
        assert (picture.is_alternate, picture.hides_cursor, picture.cuts_lines) == (False, False, False)
        assert self.terminal.modes() == self.modes

    def end(self) -> None:
        self.terminal.close()
        self.process.kill()
        self.process.wait()


@pytest.fixture
def show():
    started: list[Top] = []

    def show(*args: str, **options) -> Top:
        started.append(Top(*args, **options))
        return started[-1]

    yield show
    for each in started:
        each.end()


@pytest.fixture
def supervised(supervise):
    supervised = supervise(workers=2)
    supervised.wait_ready()
    return supervised


def test_it_shows_the_supervisor_its_queues_workers_stacks_and_failures_and_pauses(
    show, supervised, tasks, broker, tmp_path
):
    tasks.wait_for(str(tmp_path / "go"))
    supervised.wait_for_line("begin waited")
    job = tasks.decide("bury")
    wait_until(lambda: broker.count(QUEUE, "buried") == 1, "it is buried")
    shown = show("--pid", str(supervised.pid))
    shown.wait_for(rf"^supervisor {supervised.pid}, up \d+s: running for \d+s, 2 workers, 2 of 2 ready$")
    shown.wait_for(rf"^app {tasks.app.name}, broker {broker.uri}$")
    shown.wait_for(rf"^{QUEUE} +0 +1 +0 +1 +- +[\d.-]+ +[\d.-]+ +2/2$")
    shown.wait_for(rf"^ +\d+ {QUEUE} +wait_for +\d+s")
    shown.type("s")
    shown.wait_for(r'^  File ".*workload\.py", line \d+ in wait_for$')
    shown.type("\x1b")
    shown.wait_for(r"^\[2 workers 1-2 of 2\]")
    shown.type("1f")
    shown.wait_for(rf"^{QUEUE} +decide +Bury +1 +\d+s ago +{job.id} +no such user$")
    shown.type("G")
    shown.wait_for(rf"flask-backend retry {job.id} --broker {broker.uri}$")
    shown.type("qp")
    shown.wait_for(rf"^Pause {QUEUE} \(0 ready\)\? y/N$")
    shown.type("y")
    shown.wait_for(rf"^paused {QUEUE} until it is resumed$")
    assert broker.tube(QUEUE)["pause-time-left"] > 0
    shown.wait_for(rf"^{QUEUE} +paused ")
    shown.type("py")
    shown.wait_for(rf"^resumed {QUEUE}$")
    assert broker.tube(QUEUE)["pause-time-left"] == 0
    shown.type("3")
    shown.wait_for(rf"^{QUEUE} +decide +0 +0 +1 +")
    shown.type("?")
    shown.wait_for(r"^\[help\]")
    shown.type("qq")
    shown.assert_left_as_it_was(0)
    (tmp_path / "go").touch()
    supervised.wait_for_line("waited")


def test_only_what_changes_is_drawn_and_a_new_size_is_used(show, supervised):
    shown = show("--pid", str(supervised.pid), NO_COLOR="1", size=(140, 40))
    shown.wait_for(r"^\[2 workers 1-2 of 2\]")
    shown.wait_for(r" 0 +0 +0 +0 +- +0 +0 +2/2")
    clearings = shown.terminal.picture.clearings
    first = shown.lines
    data = b""
    until = time.monotonic() + 2.5

    def look():
        nonlocal data
        data += shown.terminal.read()
        return time.monotonic() > until and shown.lines[0] != first[0]

    wait_until(look, "seconds pass")
    assert len(data) < 4 * 500, data  # the ages and the clock
    assert not re.search(rb"\x1b\[[\d;]*3\dm", data)
    assert shown.terminal.picture.clearings == clearings
    for size in ((60, 20), (20, 5), (200, 50), (80, 24)):
        shown.terminal.resize(*size)
        shown.wait_for(r"^supervisor ")
        wait_until(lambda: shown.terminal.read() == b"" and shown.lines[-1], "it is drawn")
        assert len(shown.lines) == size[1]
        assert max(map(len, shown.lines)) <= size[0]
    shown.type("q")
    shown.assert_left_as_it_was(0)


@pytest.mark.parametrize("end", ["\x03", signal.SIGTERM, signal.SIGHUP, "\x1c"])
def test_it_leaves_the_terminal_as_it_was(show, supervised, end):
    shown = show("--pid", str(supervised.pid))
    shown.wait_for(r"^\[2 workers")
    picture = shown.terminal.picture
    assert (picture.is_alternate, picture.hides_cursor, picture.cuts_lines) == (True, True, True)
    assert shown.terminal.modes() != shown.modes
    shown.process.send_signal(end) if isinstance(end, signal.Signals) else shown.type(end)
    shown.assert_left_as_it_was({"\x03": 0, "\x1c": -signal.SIGQUIT}.get(end, -end if isinstance(end, int) else None))


def test_a_closed_terminal_ends_it(show, supervised):
    shown = show("--pid", str(supervised.pid))
    shown.wait_for(r"^\[2 workers")
    shown.terminal.close()
    assert shown.process.wait(20) == -signal.SIGHUP


def test_an_exception_is_shown_on_the_terminal_as_it_was():
    code = """
import flask_backend.cli.screen.terminal as module
with module.Terminal(has_colours=True) as terminal:
    terminal.draw([module.Line("drawn", "1;31")])
    raise ValueError("a bug")
"""
    terminal = Terminal()
    modes = terminal.modes()
    process = subprocess.Popen([*terminal.start(streams="012"), sys.executable, "-c", code], env=ENVIRONMENT)
    assert process.wait(20) == 1
    terminal.wait_for(r"^ValueError: a bug$")
    picture = terminal.picture
    assert (picture.is_alternate, picture.hides_cursor, picture.cuts_lines) == (False, False, False)
    assert "drawn" not in picture.text.splitlines()
    assert terminal.modes() == modes
    terminal.close()


def test_a_terminal_that_takes_no_output_does_not_keep_it_from_ending(show, supervised):
    shown = show("--pid", str(supervised.pid), size=(300, 100))
    shown.wait_for(r"^\[2 workers")
    for number in range(1000):
        before = shown.terminal.unread
        shown.type("?q"[number % 2])  # each draws many lines, which this test does not read
        with suppress(AssertionError):  # the terminal is full, or the machine busy
            wait_until(lambda before=before: shown.terminal.unread > before, "it draws", 0.5)
            continue
        break
    shown.process.send_signal(signal.SIGTERM)
    assert shown.process.wait(20) == -signal.SIGTERM
    assert shown.terminal.modes() == shown.modes


def test_ctrl_z_gives_the_terminal_back_and_fg_goes_on(show, supervised):
    shown = show("--pid", str(supervised.pid), under=("sh", "-c", IN_A_SHELL, "sh"), size=(140, 24))
    shown.wait_for(r"^\[2 workers")
    shown.type("\x1a")
    shown.wait_for(rf"^code {128 + signal.SIGTSTP}$")
    picture = shown.terminal.picture
    assert (picture.is_alternate, picture.hides_cursor) == (False, False)
    shown.type("\n")
    shown.wait_for(r"^\[2 workers")
    assert picture.is_alternate
    shown.type("q")
    shown.wait_for(r"^code 0$")
    assert shown.process.wait(20) == 0
    shown.terminal.read()
    modes = re.findall(r"^[0-9a-f:]{60,}$", shown.terminal.picture.text, re.MULTILINE)
    assert len(modes) == 3, shown.lines
    assert len(set(modes)) == 1


def test_a_frozen_supervisor_a_broker_that_is_away_and_the_end_are_shown_and_keys_work(show, supervised, broker):
    shown = show("--pid", str(supervised.pid))
    shown.wait_for(rf"^{QUEUE} +0 +0")
    supervised.send(signal.SIGSTOP)
    shown.wait_for(r"^frozen for \d+ s: a signal has stopped it$")
    broker.freeze()
    try:
        shown.wait_for(r"^broker away for \d+s: ")
        shown.type("4")
        shown.wait_for(r"\[4 deaths none\]")
    finally:
        broker.thaw()
    shown.wait_for(rf"^{QUEUE} +0 +0")
    supervised.send(signal.SIGKILL)
    shown.wait_for(rf"^supervisor {supervised.pid} has ended$")
    broker.kill()
    shown.wait_for(r"^broker away for \d+s: ")
    shown.type("2")
    shown.wait_for(r"\[2 workers none\]")
    shown.type("q")
    shown.assert_left_as_it_was(0)


def test_an_ascii_locale_gets_ascii(show, supervise, tasks):
    supervised = supervise("--queue", f"{QUEUE}=1", "--queue", "com.example/inbox=1")
    supervised.wait_for_log("ready: ")
    shown = show("--pid", str(supervised.pid), LC_ALL="POSIX", size=(40, 20))
    shown.wait_for(r"^\[2 workers 1-2 of 2\]")
    assert shown.terminal.picture.text.isascii()
    assert "~" in shown.terminal.picture.text


@pytest.mark.parametrize("kind", ["dumb", "", "unknown"])
def test_a_terminal_that_cannot_move_its_cursor_is_named(show, kind):
    shown = show(TERM=kind)
    assert shown.process.wait(20) == 2
    shown.terminal.read()
    text = "".join(shown.lines)
    assert f"and TERM is {kind or 'not set'}; `flask-backend status` with" in text


@pytest.mark.parametrize("streams", ["", "0", "1"])
def test_without_a_terminal_it_says_so_in_a_sentence(streams):
    terminal = Terminal()
    result = subprocess.run(
        [*terminal.start(streams=streams), *COMMAND, "top"],
        env=ENVIRONMENT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    terminal.close()
    assert result.returncode == 2
    assert result.stderr == (
        "Error: top draws on a terminal: stdin and stdout must be a terminal; "
        "`flask-backend status` with --watch or --json does not\n"
    )
    assert not result.stdout


def test_the_supervisor_must_be_known(monkeypatch):
    monkeypatch.setattr("flask_backend.cli.screen.terminal.why_unfit", lambda: None)

    def run(found, *args):
        monkeypatch.setattr(
            page, "find", lambda pid=None: {key: each for key, each in found.items() if pid in (None, key)}
        )
        result = CliRunner().invoke(main, ["top", *args])
        return result.exit_code, result.stderr.splitlines()[-1]

    assert run({}) == (1, "Error: no supervisor of this user runs here: start one with `flask-backend supervise`")
    assert run({}, "--pid", "7")[0] == 1
    apps = {7: App("mail"), 8: App("web"), 9: App(None)}
    several = "Error: several supervisors run here (7 of mail, 8 of web, 9); choose one with --pid"
    assert run(apps) == (2, several)
    monkeypatch.setattr(top, "PROC_IS_THERE", False)
    assert run({}) == (1, "Error: top reads /proc, which only Linux has")


class App:
    """A supervisor of an app with this name."""

    def __init__(self, name: str | None) -> None:
        self.page = self
        self._name = name

    @property
    def pid(self) -> int:
        return {"mail": 7, "web": 8}.get(self._name or "", 9)

    def facts(self):
        return {"app": self._name} if self._name else {}


def test_top_imports_neither_the_app_nor_flask():
    code = (
        "import sys\nfrom flask_backend.cli import main\n"
        "try:\n    main(['--app', 'no.such:app', 'top'])\nexcept SystemExit:\n    pass\n"
        "import flask_backend.cli.screen.screen, flask_backend.operations.live\n"
        "assert not {'flask', 'psutil'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


@pytest.mark.parametrize("may_change", [True, False])
def test_the_next_supervisor_is_shown_after_a_restart_unless_one_was_named(monkeypatch, may_change):
    looked_at = []

    def look(watch):
        looked_at.append(watch.pid)

    monkeypatch.setattr(SupervisorWatch, "look", look)
    monkeypatch.setattr(page, "find", lambda _pid=None: {8: None})
    shown = top._Top(7, Settings(), may_change=may_change)
    assert shown._look() is None
    assert looked_at == ([7, 8] if may_change else [7])
