"""Inspects the app in a separate process, so that ``dev`` survives a failing import.

That process runs the same command, finds a variable in its environment, and writes its answer to an unnamed file. The
app may print anything while it is imported.
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
    """An app that loads: the address of its broker, whether the broker answers, and its queues."""

    broker: str
    broker_answers: bool
    queues: list[str]


@dataclass(frozen=True, slots=True)
class Answer:
    """The result of loading the app. ``files`` are the user's own modules, even if the app does not load.

    ``is_refused`` means that workers cannot run in its interpreter.
    """

    app: App | None
    files: list[str]
    is_refused: bool = False


def asked() -> int | None:
    """Return the descriptor for :func:`answer`, if this process was started to inspect the app."""
    number = os.environ.pop(VARIABLE, None)
    return None if number is None else int(number)


def answer(fd: int, app: App | None, error: BaseException | None = None, *, is_refused: bool = False) -> None:
    with os.fdopen(fd, "w") as file:
        json.dump(asdict(Answer(app, sorted(users_files(error)), is_refused)), file)


class Inquiry:
    """Inspects the app. One inspection runs at a time, and the newest counts."""

    def __init__(self, selector: BaseSelector, arguments: Sequence[str]) -> None:
        """Prepare to run ``dev`` again, with these arguments of the interpreter."""
        self.lines: list[bytes] = []  # the output during the import of the app
        self.program = Program("app", self.lines.append, selector, grace_s=0)
        self.is_due = False
        self._arguments = arguments
        self._file: IO[bytes] | None = None

    def ask(self) -> None:
        """Request an inspection. A running one is killed: its result would be stale."""
        self.is_due = True
        self.program.kill()

    def start(self) -> None:
        self.is_due = False
        self.lines.clear()
        self._file = tempfile.TemporaryFile()  # noqa: SIM115  # closed when it is read
        fd = self._file.fileno()
        self.program.start(CommandLine(self._arguments, {VARIABLE: str(fd)}, [fd]))

    def read_answer(self) -> Answer | None:
        """Return the answer after the program has ended, unless it was killed or crashed."""
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
    """Return the imported Python files and the files that an error came from, without installed packages."""
    modules = [vars(module) for module in list(sys.modules.values()) if hasattr(module, "__dict__")]  # some are None
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


# The standard library and this package: dev itself runs their code, so it does not reload their changes.
_NOT_USERS = {sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib"), str(Path(__file__).parents[1])}
