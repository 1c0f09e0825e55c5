"""The loop of ``flask-backend dev``: inspects the app, keeps its programs running, and reloads them after changes."""

from __future__ import annotations

import ipaddress
import os
import signal
import socket
import time
from contextlib import suppress
from pathlib import Path
from selectors import EVENT_READ, DefaultSelector
from types import FrameType

from flask_backend.config import Address
from flask_backend.deaths import Exit
from flask_backend.system.exits import ExitCode

from .inquiry import App, Inquiry
from .plan import DevelopmentPlan
from .programs import CommandLine, Program
from .transcript import Transcript
from .watching import Watch

NAMES = {"web": 36, "workers": 32, "broker": 35, "board": 34, "app": 31, "dev": 33}  # and their colours: SGR, ECMA-48

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGCHLD)
_GRACE_S = 5.0  # the web server and the broker exit at once, unless code of the app delays them
_DRAIN_GRACE_S = 10.0  # beyond the drain timeout, which the supervisor enforces itself
_WAIT_S = 1.0  # a deadline may be this late
# A restart does not help a broker that dies sooner: its port is taken, or its file is broken.
_BROKER_MIN_S = 5.0


class Development:
    """Runs the broker, the web server and the supervisor of one app, until stopped."""

    def __init__(self, plan: DevelopmentPlan, transcript: Transcript) -> None:
        self._plan = plan
        self._transcript = transcript
        self._selector = DefaultSelector()
        self._watch = Watch(plan.folder, plan.extra)
        self._inquiry = Inquiry(self._selector, plan.inquiry())
        self._web = self._program("web", _GRACE_S)
        self._workers = self._program("workers", plan.drain_timeout_s + _DRAIN_GRACE_S)
        self._broker = self._program("broker", _GRACE_S)
        self._dashboard = self._program("board", _GRACE_S)
        self._programs = (self._web, self._workers, self._broker, self._dashboard, self._inquiry.program)
        self._commands: dict[Program, CommandLine] = {}  # of the programs in this session
        if plan.workers:
            self._commands[self._workers] = plan.supervisor()
        if plan.listener:
            self._commands[self._web] = plan.web(plan.listener)
            self._say(f"web: {show_url(plan.listener)}")
        self._wanted: set[Program] = set()
        self._address: str | None = None  # of the broker; whether to run one is decided once per address
        self._runs_broker = False
        self._has_served = False
        self._is_stopping = False
        self._exit_code = ExitCode.OK
        self._wakeup_r, self._wakeup_w = os.pipe()

    def run(self) -> ExitCode:
        """Run until INT, TERM or HUP, which stop all programs in order. A second INT or TERM, or QUIT, kills them."""
        self._listen_to_signals()
        self._inquiry.ask()
        try:
            self._reconcile()
            while not self._is_over:
                for number in self._wait():
                    self._handle(number)
                self._look_for_changes()
                self._reap()
                self._kill_overdue()
                self._reconcile()
        finally:
            for program in self._programs:
                program.kill()  # only an error leaves programs to kill
        return self._exit_code

    @property
    def _is_over(self) -> bool:
        return self._is_stopping and not any(program.is_running for program in self._programs)

    # -- wait ------------------------------------------------------------------------------------------------

    def _listen_to_signals(self) -> None:
        for fd in (self._wakeup_r, self._wakeup_w):
            os.set_blocking(fd, False)
        self._selector.register(self._wakeup_r, EVENT_READ, lambda: None)
        signal.set_wakeup_fd(self._wakeup_w, warn_on_full_buffer=False)
        for number in _SIGNALS:
            if number is not signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:  # nohup ignores it
                signal.signal(number, _leave_it_to_the_loop)

    def _wait(self) -> list[signal.Signals]:
        """Wait for an event, read the output of the programs, and return the signals received."""
        timeout_s = _WAIT_S if self._is_stopping else self._watch.wait_s(time.monotonic())
        for key, _ in self._selector.select(timeout_s):
            key.data()
        with suppress(BlockingIOError):
            return [signal.Signals(number) for number in os.read(self._wakeup_r, 4096)]
        return []

    # -- handle ----------------------------------------------------------------------------------------------

    def _handle(self, number: signal.Signals) -> None:
        if number is signal.SIGCHLD:
            return  # every turn reaps
        if number is signal.SIGHUP and self._is_stopping:
            return  # a closing terminal sends it twice: from the kernel and from the shell
        if number is signal.SIGQUIT or self._is_stopping:
            self._say("killing all")
            self._is_stopping = True
            for program in self._programs:
                program.kill()
        else:
            self._say(f"{number.name}: stopping; a second one kills")
            self._is_stopping = True

    def _look_for_changes(self) -> None:
        if not self._is_stopping and (changed := self._watch.look(time.monotonic())):
            self._say(f"changed: {show_files(changed, self._plan.folder)}: reloading")
            self._inquiry.ask()

    # -- reap ------------------------------------------------------------------------------------------------

    def _reap(self) -> None:
        for program in self._programs:
            if exit_ := program.reap():
                if program is self._inquiry.program:
                    self._hear_answer(exit_)
                elif not program.was_told_to_end:
                    self._lose(program, exit_)

    def _lose(self, program: Program, exit_: Exit) -> None:
        """Report how a program ended by itself. Only the broker is restarted before the next change."""
        if program is self._broker and time.monotonic() - program.started_at >= _BROKER_MIN_S:
            self._say(f"{program.name}: {exit_}; starting it again")
            return
        self._wanted.discard(program)
        self._say(f"{program.name}: {exit_}; starts again at the next change")

    def _hear_answer(self, exit_: Exit) -> None:
        answer = self._inquiry.read_answer()
        if self._inquiry.program.was_told_to_end:
            return
        if answer is not None:
            self._watch.follow(answer.files)
        if answer is None or answer.app is None:
            for line in self._inquiry.lines:
                self._transcript.write("app", line)
            if answer and answer.is_refused and not self._has_served:
                self._exit_code = ExitCode.CONFIG
                self._is_stopping = True
                return
            goes_on = "the old one goes on; " if self._has_served else ""
            died = "" if answer else f" (it {exit_})"
            self._say(f"the app does not load{died}: {goes_on}waiting for a change")
        else:
            self._serve(answer.app)

    # -- what the app needs ----------------------------------------------------------------------------------

    def _serve(self, app: App) -> None:
        """Make all programs run this version of the app. The supervisor reloads by itself, without a gap."""
        self._decide_on_broker(app)
        if self._plan.has_dashboard:
            self._wanted.add(self._dashboard)
        self._serve_web()
        self._serve_queues(app.queues)
        self._has_served = True

    def _decide_on_broker(self, app: App) -> None:
        """Run a broker at the address that the app expects, if it does not answer and is on this machine."""
        if app.broker != self._address:
            self._address = app.broker
            address = Address.parse(app.broker)
            self._broker.stop()  # it listens on the old address
            self._dashboard.stop()  # likewise, it shows that one
            self._commands[self._dashboard] = self._plan.dashboard(address)
            self._runs_broker = not app.broker_answers and is_here(address)
            self._commands[self._broker] = self._plan.broker(address)
            if not self._runs_broker:
                self._say(f"broker: {app.broker}{'' if app.broker_answers else ', which does not answer yet'}")
                if self._plan.broker_file:
                    self._say(f"{self._plan.broker_file} is not used: no embedded broker runs")
        if self._runs_broker:
            self._wanted.add(self._broker)
        else:
            self._wanted.discard(self._broker)

    def _serve_web(self) -> None:
        if self._web in self._commands:
            self._wanted.add(self._web)
            self._web.stop()  # it restarts, since it is wanted

    def _serve_queues(self, queues: list[str]) -> None:
        if self._workers not in self._commands:
            return
        if not queues:
            self._say("the app has no queues: no workers")
            self._wanted.discard(self._workers)
            return
        self._wanted.add(self._workers)
        if not self._workers.was_told_to_end:
            self._workers.send(signal.SIGHUP)

    # -- reconcile -------------------------------------------------------------------------------------------

    def _kill_overdue(self) -> None:
        now = time.monotonic()
        for program in self._programs:
            program.kill_overdue(now)

    def _reconcile(self) -> None:
        """Start the wanted programs that do not run; stop running programs that are not wanted."""
        if self._transcript.is_lost:
            self._is_stopping = True
        if self._is_stopping:
            self._want_nothing()
        elif self._inquiry.is_due and not self._inquiry.program.is_running:
            self._inquiry.start()
        for program in (self._broker, self._web, self._workers, self._dashboard):
            if program not in self._wanted:
                program.stop()
            elif not program.is_running and self._may_start(program):
                program.start(self._commands[program])

    def _want_nothing(self) -> None:
        """Mark all programs as unwanted, the broker only after the others have ended."""
        self._inquiry.program.kill()
        others_run = any(program.is_running for program in self._programs if program is not self._broker)
        self._wanted &= {self._broker} if others_run else set()

    def _may_start(self, program: Program) -> bool:
        """Wait for the broker's first output: programs that start earlier only log connection errors."""
        has_to_wait = program is not self._broker and self._broker in self._wanted and not self._broker.has_spoken
        return not self._is_stopping and not has_to_wait

    def _program(self, name: str, grace_s: float) -> Program:
        return Program(name, lambda line: self._transcript.write(name, line), self._selector, grace_s)

    def _say(self, text: str) -> None:
        self._transcript.write("dev", text.encode(errors="surrogateescape"))


def is_here(address: Address) -> bool:
    """Whether only this machine can reach an address."""
    try:
        return ipaddress.ip_address(address.host).is_loopback
    except ValueError:
        return address.host == "localhost"


def show_url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def show_files(files: set[str], folder: str) -> str:
    """Return the names of some files, relative to a folder if they are in it."""
    names = sorted(os.path.relpath(file, folder) if Path(file).is_relative_to(folder) else file for file in files)
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""  # noqa: PLR2004  # three fit on a line
    return ", ".join(names[:3]) + more


def _leave_it_to_the_loop(_number: int, _frame: FrameType | None) -> None:
    pass
