"""Draw on a terminal: only the lines that have changed. At the end the terminal is as it was before."""

from __future__ import annotations

import os
import select
import signal
import termios
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import FrameType, TracebackType
from typing import Any, Self

from flask_backend.cli.output import width_of

from .keys import KeyReader

# How long a sequence of a key may take to arrive, over a slow line. Then its beginning is the key Escape.
_ESCAPE_S = 0.1
# The size of a terminal that does not know its own, such as a serial line: the smallest common one.
_SIZE = (80, 24)
# The alternate screen, without a cursor and without automatic line breaks; and the end of all that.
_ENTER = b"\x1b[?1049h\x1b[?25l\x1b[?7l\x1b[0m\x1b[2J"
_LEAVE = b"\x1b[0m\x1b[2J\x1b[H\x1b[?7h\x1b[?25h\x1b[?1049l"

# What the signals mean for a program on a terminal.
_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
_OTHERS = (signal.SIGWINCH, signal.SIGTSTP, signal.SIGCONT)


@dataclass(frozen=True, slots=True)
class Line:
    """A line of the screen, and its style as parameters of SGR, such as ``1;31``; empty is plain."""

    text: str
    style: str = ""


class TerminalGoneError(Exception):
    """The terminal was closed."""


class Interrupted(Exception):  # noqa: N818  # it is not an error
    """A signal asks the program to end. ``number`` is unset for Ctrl-C."""

    def __init__(self, number: int | None) -> None:
        super().__init__()
        self.number = number


class Terminal:
    """The terminal on stdin and stdout, as a context: inside, the program has it for itself."""

    def __init__(self, *, has_colours: bool) -> None:
        self._in, self._out = 0, _open_output()
        self._has_colours = has_colours
        self._keys = KeyReader()
        self._drawn: list[Line] = []
        self._drawn_size: tuple[int, int] | None = None
        self._modes: list[Any] | None = None
        self._arrived: list[int] = []
        self._wake_r, self._wake_w = os.pipe()
        for end in (self._wake_r, self._wake_w):
            os.set_blocking(end, False)
        self._handlers: dict[int, Any] = {}

    def __enter__(self) -> Self:
        signal.set_wakeup_fd(self._wake_w, warn_on_full_buffer=False)
        for number in (*_ENDING, *_OTHERS):
            # nohup ignores HUP, and a shell without job control TSTP. Ctrl-C must work even where INT was ignored.
            if number not in (signal.SIGHUP, signal.SIGTSTP) or signal.getsignal(number) is not signal.SIG_IGN:
                self._handlers[number] = signal.signal(number, self._note)
        self._take()
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _tb: TracebackType | None
    ) -> None:
        self._give_back()
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(-1)

    def wake(self) -> None:
        """End the wait for keys, from any thread."""
        with suppress(BlockingIOError):  # full of wake-ups already
            os.write(self._wake_w, b"\0")

    @property
    def size(self) -> tuple[int, int]:
        """The columns and the lines."""
        try:
            columns, lines = os.get_terminal_size(self._out)
        except OSError:
            columns = lines = 0
        return columns or _SIZE[0], lines or _SIZE[1]

    def draw(self, lines: Sequence[Line]) -> None:
        """Draw a screen, of which only the lines that have changed are written, at once."""
        size = self.size
        parts: list[str] = []
        if size != self._drawn_size:
            parts.append("\x1b[0m\x1b[2J")
            self._drawn, self._drawn_size = [], size
        shown = list(lines[: size[1]])
        for number, line in enumerate(shown):
            if number >= len(self._drawn) or self._drawn[number] != line:
                # At the end of a full line the cursor is on its last column, which must not be erased.
                rest = "\x1b[K" if width_of(line.text) < size[0] else ""
                parts.append(f"\x1b[{number + 1};1H{self._styled(line)}{rest}")
        if len(shown) < len(self._drawn):
            parts.append(f"\x1b[{len(shown) + 1};1H\x1b[J")
        self._drawn = shown
        self._write("".join(parts).encode(errors="replace"))

    def wait(self, timeout_s: float) -> list[str]:
        """Return the keys that were pressed; an empty list after ``timeout_s``, a wake-up, or a new size.

        Raises :exc:`Interrupted` at a signal to end, and :exc:`TerminalGoneError` when the terminal is closed.
        """
        readable, _, _ = select.select([self._in, self._wake_r], [], [], max(0.0, timeout_s))
        if self._wake_r in readable:
            os.read(self._wake_r, 4096)
        self._act_on_signals()
        if self._in not in readable:
            return []
        keys = self._keys.feed(self._read())
        while self._keys.is_waiting:
            if not select.select([self._in], [], [], _ESCAPE_S)[0]:
                return keys + self._keys.end()
            keys += self._keys.feed(self._read())
        return keys

    def _styled(self, line: Line) -> str:
        codes = [code for code in line.style.split(";") if code and (self._has_colours or not _is_colour(code))]
        return f"\x1b[{';'.join(codes)}m{line.text}\x1b[0m" if codes else line.text

    def _read(self) -> bytes:
        try:
            data = os.read(self._in, 4096)
        except OSError as error:
            raise TerminalGoneError from error
        if not data:
            raise TerminalGoneError
        return data

    def _write(self, data: bytes) -> None:
        """Write; a terminal that takes nothing does not keep a signal from ending the program."""
        while data:
            try:
                data = data[os.write(self._out, data) :]
            except BlockingIOError:
                readable, _, _ = select.select([self._wake_r], [self._out], [])
                if readable:
                    os.read(self._wake_r, 4096)
                    self._raise_if_ended()
            except OSError as error:
                raise TerminalGoneError from error

    # -- signals ---------------------------------------------------------------------------------------------

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self._arrived.append(number)

    def _act_on_signals(self) -> None:
        self._raise_if_ended()
        while self._arrived:
            match self._arrived.pop(0):
                case signal.SIGTSTP:
                    self._suspend()
                case signal.SIGCONT:
                    self._take()  # a shell may have changed the modes
                case _:  # the size is read at the next drawing
                    pass

    def _raise_if_ended(self) -> None:
        for number in self._arrived:
            if number in _ENDING:
                raise Interrupted(None if number == signal.SIGINT else number)

    def _suspend(self) -> None:
        """Stop, as Ctrl-Z asks, and go on with a new screen."""
        self._give_back()
        signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTSTP)
        signal.signal(signal.SIGTSTP, self._note)
        self._take()

    # -- the modes -------------------------------------------------------------------------------------------

    def _take(self) -> None:
        try:
            self._modes = self._modes or termios.tcgetattr(self._in)
            modes = termios.tcgetattr(self._in)
            modes[0] &= ~(termios.IXON | termios.IXOFF)  # Ctrl-S must not stop the output
            modes[3] &= ~(termios.ICANON | termios.ECHO | termios.IEXTEN)  # signals of Ctrl-C and Ctrl-Z stay
            modes[6][termios.VMIN], modes[6][termios.VTIME] = 1, 0
            termios.tcsetattr(self._in, termios.TCSANOW, modes)
        except termios.error as error:
            raise TerminalGoneError from error
        self._drawn_size = None
        self._write(_ENTER)

    def _give_back(self) -> None:
        if self._modes is None:
            return
        with suppress(OSError):  # it is gone, or takes nothing
            os.write(self._out, _LEAVE)
        with suppress(termios.error):
            termios.tcsetattr(self._in, termios.TCSANOW, self._modes)
        self._modes = None


def _open_output() -> int:
    """Return a descriptor of stdout whose writes do not block: O_NONBLOCK on the other one would affect the shell."""
    try:
        return os.open("/proc/self/fd/1", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:  # a terminal of another user, after su
        return 1


def _is_colour(code: str) -> bool:
    return code.startswith("3") and len(code) == 2  # noqa: PLR2004  # 30 to 37, the colours of text


def why_unfit() -> str | None:
    """Return why the screen cannot be shown here, if so."""
    if not (os.isatty(0) and os.isatty(1)):
        return "stdin and stdout must be a terminal"
    kind = os.environ.get("TERM", "")
    if kind in ("", "dumb", "unknown"):
        return f"the terminal must be able to move its cursor, and TERM is {kind or 'not set'}"
    return None
