"""Asking the app what it needs, in a process of its own: ``dev`` survives whatever its import may do.

That process runs the same command, finds a variable in its environment, and answers into a file that has no name: the
app may print what it likes while it is imported.
"""

from __future__ import annotations

import json
import os
import sys
import sysconfig
import tempfile
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from selectors import BaseSelector
from typing import IO, Any

from .programs import CommandLine, Program

VARIABLE = "FLASK_BACKEND_DEV_INQUIRY"


@dataclass(frozen=True, slots=True)
class App:
    """An app that loads: its broker's address, whether that answers, and its queues."""

    broker: str
    broker_answers: bool
    queues: list[str]


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of loading the app; ``files`` are the user's own modules, of one that does not load too.

    ``is_refused`` says that no worker could run in its interpreter.
    """

    app: App | None
    files: list[str]
    is_refused: bool = False


def asked() -> int | None:
    """Return the descriptor to :func:`answer` on, if this process is one that was asked."""
    number = os.environ.pop(VARIABLE, None)
    return None if number is None else int(number)


def answer(fd: int, app: App | None, error: BaseException | None = None, *, is_refused: bool = False) -> None:
    with os.fdopen(fd, "w") as file:
        json.dump(asdict(Answer(app, sorted(users_files(error)), is_refused)), file)


class Inquiry:
    """Asks the app. There is one question at a time, and the newest counts."""

    def __init__(self, selector: BaseSelector, arguments: Sequence[str]) -> None:
        """Prepare to run ``dev`` anew, by these arguments of the interpreter."""
        self.lines: list[bytes] = []  # what was said while the app was imported
        self.program = Program("app", self.lines.append, selector, grace_s=0)
        self.is_due = False
        self._arguments = arguments
        self._file: IO[bytes] | None = None

    def ask(self) -> None:
        """Have the app asked, anew if it is being asked now: whatever that finds is of the past."""
        self.is_due = True
        self.program.kill()

    def start(self) -> None:
        self.is_due = False
        self.lines.clear()
        self._file = tempfile.TemporaryFile()  # noqa: SIM115  # closed when it is read
        fd = self._file.fileno()
        self.program.start(CommandLine(self._arguments, {VARIABLE: str(fd)}, [fd]))

    def read_answer(self) -> Answer | None:
        """Return what the app has answered, once the program has ended; None if it was killed, or died of it."""
        if self._file is None:
            return None
        with self._file as file:
            self._file = None
            file.seek(0)
            text = file.read()
        if self.program.was_told_to_end or not text:
            return None
        told: dict[str, Any] = json.loads(text)
        return Answer(App(**told["app"]) if told["app"] else None, told["files"], told["is_refused"])


def users_files(error: BaseException | None = None) -> set[str]:
    """Return the Python files that are imported, and those that an error came from, but for what is installed."""
    modules = [vars(module) for module in list(sys.modules.values()) if hasattr(module, "__dict__")]  # None, too
    files: set[object] = {names.get("__file__") for names in modules}
    files.update(_files_of(error))
    return {str(Path(file).absolute()) for file in files if isinstance(file, str) and _is_users(file)}


def _files_of(error: BaseException | None) -> Iterator[str | None]:
    while error is not None:
        if isinstance(error, SyntaxError):
            yield error.filename
        for frame, _ in traceback.walk_tb(error.__traceback__):
            yield frame.f_code.co_filename
        error = error.__cause__ or error.__context__


def _is_users(file: str) -> bool:
    return (
        file.endswith(".py")
        and not {"site-packages", "dist-packages"} & set(Path(file).parts)
        and not any(Path(file).is_relative_to(folder) for folder in _NOT_USERS)
    )


# The standard library, and this package: what has changed in it concerns dev itself.
_NOT_USERS = {sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib"), str(Path(__file__).parents[1])}
