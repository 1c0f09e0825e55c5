"""The quickstart and the tutorial, as written: their files are made, their commands run, and their screens compared."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import ROOT
from support.beanstalkd import free_port
from support.waiting import wait_until

START = ROOT / "docs" / "start"
INSTALLS = ("python3 -m venv", "pip install")


class Reader:
    """A reader who follows a page, in an empty folder, with separate ports."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._web_port = str(free_port())
        self._broker_port = str(free_port())
        inherited = {key: value for key, value in os.environ.items() if not key.startswith(("FLASK_", "BACKEND_"))}
        self._env = inherited | {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "FLASK_RUN_PORT": self._web_port,
            "BACKEND_CONNECTION_URI": f"btq://127.0.0.1:{self._broker_port}",
            "no_proxy": "*",
            "PYTHONDONTWRITEBYTECODE": "1",  # a file that changes within a second of its compilation looks unchanged
        }
        self._log = folder / "dev.log"
        self._heard = 0  # how much of the first terminal was read
        self.dev: subprocess.Popen[bytes] | None = None

    def write(self, code: str) -> None:
        name, code = re.match(r"# (\S+)\n(.*)", code, re.DOTALL).groups()
        (self._folder / name).write_text(code)

    def type(self, command: str, expected: list[str]) -> None:
        if command.startswith(INSTALLS):
            return
        if command.endswith(" dev"):
            with self._log.open("wb") as log:
                self.dev = subprocess.Popen(command.split(), stdout=log, stderr=log, cwd=self._folder, env=self._env)
            self.hear(expected)
            return
        command = command.replace("5000", self._web_port)
        shown = ""

        def is_as_expected() -> bool:
            nonlocal shown
            done = subprocess.run(  # noqa: S602  # the page's own, as typed into a shell
                command, shell=True, text=True, capture_output=True, cwd=self._folder, env=self._env, timeout=30
            )
            shown = done.stdout + done.stderr
            return done.returncode == 0 and find(expected, shown, self._ports) is not None

        # A command that only looks may run again, since a reader is slower; one that changes something runs once.
        if command == "flask-backend failures":
            wait_until(is_as_expected, command)
        else:
            assert is_as_expected(), f"{command} shows\n{shown}"

    def hear(self, expected: list[str]) -> None:
        """Wait until the first terminal shows the lines, after the output already read."""

        def heard() -> int | None:
            return find(expected, self._log.read_text()[self._heard :], self._ports)

        wait_until(lambda: heard() is not None, f"{expected} in {self._log.read_text()[self._heard :]}")
        self._heard += heard()

    @property
    def _ports(self) -> dict[str, str]:
        return {"5000": self._web_port, "11300": self._broker_port}


def find(expected: list[str], text: str, ports: dict[str, str]) -> int | None:
    """Return where the last of the expected lines ends in a text that has them all in order, except for numbers."""
    end = 0
    for line in expected:
        found = re.compile(pattern_of(line, ports)).search(text, end)
        if found is None:
            return None
        end = found.end()
    return end


def pattern_of(line: str, ports: dict[str, str]) -> str:
    parts = [re.escape(part) for part in re.split(r"(\d+)", line)]
    parts[1::2] = [ports.get(number, r"\d+") for number in parts[1::2]]
    pattern = re.sub(r"(\\ )+", r"\\s+", "".join(parts))
    return pattern.replace("/srv/hello/", ".*").replace(r"web\d+", r"\S+").replace(r"\d+s\s+ago", r"\w+\s+ago")


def blocks_of(page: Path) -> list[tuple[str, str]]:
    return re.findall(r"^```(\w+)\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)


def commands_of(block: str) -> Iterator[tuple[str, list[str]]]:
    for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
        command, *expected = part.splitlines()
        yield command, [line for line in expected if line]


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl here")
@pytest.mark.timeout(120)
@pytest.mark.parametrize("page", ["quickstart", "tutorial"])
def test_the_page_does_what_it_describes(page, tmp_path):
    reader = Reader(tmp_path)
    try:
        for kind, block in blocks_of(START / f"{page}.md"):
            match kind:
                case "python":
                    reader.write(block)
                case "console":
                    for command, expected in commands_of(block):
                        reader.type(command, expected)
                case "text":
                    reader.hear(block.splitlines())
        reader.dev.send_signal(signal.SIGINT)
        assert reader.dev.wait(20) == 0
    finally:
        if reader.dev is not None and reader.dev.poll() is None:
            reader.dev.kill()
            reader.dev.wait()


def test_the_tutorial_has_everything_it_promises():
    blocks = blocks_of(START / "tutorial.md")
    commands = [command for kind, block in blocks if kind == "console" for command, _ in commands_of(block)]
    for needed in ("dev", "curl", "failures", "sed", "retry", "pytest"):
        assert any(needed in command for command in commands), needed
