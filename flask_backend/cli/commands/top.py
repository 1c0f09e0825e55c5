"""The command that shows a supervisor and its queues, live, in a terminal."""

from __future__ import annotations

import locale
import logging
import os
import signal
import sys
import threading
import time
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING

import click

from flask_backend.cli.brokers import broker_option, find_settings
from flask_backend.cli.summary import choose
from flask_backend.system import page as pages
from flask_backend.system.exits import ExitCode
from flask_backend.system.procfs import PROC_IS_THERE

if TYPE_CHECKING:
    from collections.abc import Callable

    from flask_backend.cli.screen.screen import Action, SetPause, ShowFailures, ShowStacks
    from flask_backend.cli.screen.terminal import Terminal
    from flask_backend.config import Settings
    from flask_backend.errors import BackendError
    from flask_backend.operations.live import Look
    from flask_backend.system.page import Found

# How often the page is read: the supervisor takes a turn at least each second.
EVERY_S = 1.0
# How many stories of a queue are read.
STORIES = 200


class UnfitError(click.ClickException):
    """There is no terminal for a screen."""

    exit_code = ExitCode.USAGE


@click.command()
@click.option(
    "--pid", type=click.IntRange(min=1), help="The supervisor. Default: the only one of this user, or of root."
)
@broker_option
@click.pass_context
def top(ctx: click.Context, pid: int | None, broker_uri: str | None) -> None:
    """Show a supervisor and its queues, live, in a terminal; ? shows the keys.

    It shows what `status` and `queues` show, each second: a key shows a worker's Python stacks, another one why jobs of
    a queue are buried. It asks neither the supervisor nor the app. The broker is that of the supervisor, unless another
    one is named.

    Exit codes: 0 ended by q or Ctrl-C; 1 no supervisor runs; 2 wrong usage, or no terminal.
    """
    from flask_backend.cli.screen.terminal import why_unfit

    if not PROC_IS_THERE:
        raise click.ClickException("top reads /proc, which only Linux has")
    if why := why_unfit():
        raise UnfitError(f"top draws on a terminal: {why}; `flask-backend status` with --watch or --json does not")
    found = choose(pid)
    _Top(found.pid, _settings(ctx, broker_uri, found), may_change=pid is None).run()


def _settings(ctx: click.Context, broker_uri: str | None, found: Found) -> Settings:
    """Return the way to the broker: the named one, or that of the supervisor."""
    if broker_uri is None:
        broker_uri = found.page.facts().get("broker")
    return find_settings(ctx, broker_uri)


class _Top:
    """The loop: look, draw, and do what keys ask for."""

    def __init__(self, pid: int, settings: Settings, *, may_change: bool) -> None:
        from flask_backend.cli.screen.screen import Screen
        from flask_backend.cli.screen.terminal import Terminal
        from flask_backend.operations.live import QueueWatch, SupervisorWatch

        self._watch = SupervisorWatch(pid)
        self._may_change = may_change
        self._terminal: Terminal = Terminal(has_colours=not os.environ.get("NO_COLOR"))
        self._queues = QueueWatch(settings, self._terminal.wake)
        self._screen = Screen(self._queues.address, is_ascii=not _has_unicode())
        self._results: SimpleQueue[Callable[[], None]] = SimpleQueue()

    def run(self) -> None:
        from flask_backend.cli.screen.terminal import Interrupted, TerminalGoneError

        logging.getLogger("flask_backend").addHandler(logging.NullHandler())  # a warning would be drawn over the screen
        number: int | None = None
        try:
            with self._terminal:
                self._loop()
        except Interrupted as end:
            number = end.number
        except TerminalGoneError:
            number = signal.SIGHUP
        if number is not None:  # end as the signal does
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    def _loop(self) -> None:
        from flask_backend.cli.screen.screen import Quit

        look, look_at = None, time.monotonic()
        self._queues.start()
        while True:
            if time.monotonic() >= look_at:
                look, look_at = self._look(), time.monotonic() + EVERY_S
            self._take_results()
            self._screen.update(look, self._queues.latest)
            self._terminal.draw(self._screen.draw(*self._terminal.size, time.monotonic()))
            for key in self._terminal.wait(look_at - time.monotonic()):
                action = self._screen.press(key)
                if isinstance(action, Quit):
                    return
                if action is not None:
                    self._act(action)

    def _look(self) -> Look | None:
        """Look at the supervisor; if it has ended, at the only other one, if that is allowed."""
        from flask_backend.operations.live import SupervisorWatch

        look = self._watch.look()
        if look is None and self._may_change and len(found := pages.find()) == 1:
            self._watch = SupervisorWatch(next(iter(found)))
            look = self._watch.look()
        if self._screen.shows_all_queues:
            self._queues.names = None
        elif look is not None:
            self._queues.names = [queue.name for queue in look.supervisor.queues]
        return look

    # -- what takes a while ----------------------------------------------------------------------------------

    def _take_results(self) -> None:
        while True:
            try:
                take = self._results.get_nowait()
            except Empty:
                return
            take()

    def _deliver(self, take: Callable[[], None]) -> None:
        """Let the loop call ``take``, from any thread."""
        self._results.put(take)
        self._terminal.wake()

    def _act(self, action: Action) -> None:
        from flask_backend.cli.screen.screen import SetPause, ShowFailures, ShowStacks

        match action:
            case ShowStacks():
                self._show_stacks(action)
            case ShowFailures():
                self._show_failures(action)
            case SetPause():
                self._set_pause(action)
            case _:
                pass

    def _show_stacks(self, action: ShowStacks) -> None:
        from flask_backend.operations.stacks import StacksError, read_stacks

        supervisor = self._watch.pid
        show = self._text(f"worker {action.worker}", action)

        def read() -> None:
            try:
                text = read_stacks(supervisor, action.worker)
            except StacksError as error:
                text = str(error)
            show(text.split("\n"))

        # A thread of its own, since the broker's may wait for the broker.
        threading.Thread(target=read, name="flask-backend-stacks", daemon=True).start()

    def _show_failures(self, action: ShowFailures) -> None:
        from flask_backend.cli.stories import failure_lines

        width, _ = self._terminal.size
        show = self._text(f"failures of {action.queue}", action)

        def take(result: list[str] | BackendError) -> None:
            show(result if isinstance(result, list) else [str(result)])

        self._queues.ask(lambda console: list(failure_lines(console, action.queue, STORIES, width)), take)

    def _text(self, title: str, action: ShowStacks | ShowFailures) -> Callable[[list[str]], None]:
        """Show a text that is yet to come; return what shows its lines, unless the person has left it."""
        from flask_backend.cli.screen.screen import Text

        text = self._screen.text
        if text is None or text.again != action:  # the old lines stay until the new ones have come
            text = self._screen.text = Text(title, None, action)

        def show(lines: list[str]) -> None:
            self._deliver(lambda: setattr(text, "lines", lines))

        return show

    def _set_pause(self, action: SetPause) -> None:
        queue, seconds = action.queue, action.seconds

        def take(result: bool | BackendError) -> None:  # noqa: FBT001  # the result of an act
            done = f"paused {queue} until it is resumed" if seconds else f"resumed {queue}"
            message = (done if result else f"queue {queue} is gone") if isinstance(result, bool) else str(result)
            self._deliver(lambda: self._screen.tell(message))

        self._queues.ask(lambda console: console.pause(queue, seconds), take)


def _has_unicode() -> bool:
    """Whether the locale, if it is known, and the stream allow other characters than ASCII."""
    return all(name.lower().startswith("utf") for name in (locale.getencoding(), sys.stdout.encoding))
