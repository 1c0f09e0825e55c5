"""Real programs, and a simple browser."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Mapping
from http.cookiejar import CookieJar
from pathlib import Path
from urllib.request import HTTPCookieProcessor, ProxyHandler, Request, build_opener

from support.waiting import wait_until
from werkzeug.datastructures import FileStorage
from werkzeug.test import encode_multipart

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
DEADLINE_S = 20


class Program:
    """A program in a separate process. All its output goes to one file."""

    def __init__(self, *command: str | Path, log: Path, cwd: Path = ROOT, env: Mapping[str, str] | None = None) -> None:
        self._log = log
        # Settings in the environment of the tests' caller must not reach these programs.
        inherited = {key: value for key, value in os.environ.items() if not key.startswith(("FLASK_", "BACKEND_"))}
        with log.open("wb") as file:
            self.process = subprocess.Popen(
                command,
                cwd=cwd,
                env=inherited | {"PYTHONDONTWRITEBYTECODE": "1"} | dict(env or {}),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
            )

    @property
    def has_ended(self) -> bool:
        return self.process.poll() is not None

    @property
    def output(self) -> str:
        return self._log.read_text(errors="replace")

    def wait_for(self, pattern: str) -> re.Match[str]:
        """Wait until the program has printed this text."""
        wait_until(lambda: self.has_ended or re.search(pattern, self.output), f"{pattern!r} in:\n{self.output}")
        match = re.search(pattern, self.output)
        assert match, f"it has ended without saying {pattern!r}:\n{self.output}"
        return match

    def stop(self) -> int:
        """Send TERM; return the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(DEADLINE_S)

    def end(self) -> None:
        """Clean up after a passed or failed test."""
        if not self.has_ended:
            self.process.terminate()
            try:
                self.process.wait(DEADLINE_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


class Browser:
    """Keeps cookies and follows redirects. An answer other than 200 raises."""

    def __init__(self, address: str) -> None:
        self._address = address.rstrip("/")
        self._opener = build_opener(ProxyHandler({}), HTTPCookieProcessor(CookieJar()))

    def get(self, path: str = "/") -> str:
        return self._open(path, None, {})

    def post(self, path: str, **fields: str | FileStorage) -> str:
        boundary, body = encode_multipart(fields)
        return self._open(path, body, {"Content-Type": f"multipart/form-data; boundary={boundary}"})

    def _open(self, path: str, body: bytes | None, headers: dict[str, str]) -> str:
        request = Request(self._address + path, body, headers)  # noqa: S310  # the address is a test's own
        with self._opener.open(request, timeout=DEADLINE_S) as answer:
            return answer.read().decode()
