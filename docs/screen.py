"""Draw docs/screen.svg, the picture of the README: what two commands show in a terminal.

Usage: .venv/bin/python docs/screen.py. Starts an embedded broker and a supervisor, in a temporary folder and on a free
port. The folder and the host are replaced; the rest is as printed.
"""

from __future__ import annotations

import contextlib
import os
import pty
import re
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from html import escape
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from support.beanstalkd import free_port
from support.waiting import wait_until

PICTURE = Path(__file__).with_name("screen.svg")
COMMAND = str(Path(sys.executable).with_name("flask-backend"))
COLUMNS = 80
APP = """
from flask import Flask
from flask_backend import Backend, Bury, Retry

app = Flask(__name__)
backend = Backend(app)
MAIL = "com.example/mail"


@backend.task(MAIL, retry=Retry(max_retries=0))
def welcome(address: str) -> None:
    if "@" not in address:
        raise ValueError(f"no @ in {address!r}")


@backend.task(MAIL)
def invoice(number: int) -> None:
    if number > 2:
        raise Bury("no such invoice")


@backend.task("com.example/reports")
def report(year: int) -> None: ...


if __name__ == "__main__":
    report(2026)
    invoice.map(range(1, 5))
    welcome.map(["ada@example.com", "alan", "grace"])
"""

MARGIN, ROW, CHARACTER = 20, 19, 9  # the last as wide as the font's characters
WIDTH = 2 * MARGIN + COLUMNS * CHARACTER
# The colours of a terminal by their ANSI codes.
COLOURS = {"31": "#ff7b72", "32": "#7ee787", "33": "#e3b341", "36": "#79c0ff"}
STYLE = """
text { font: 15px ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; fill: #e6edf3; white-space: pre; }
.typed { fill: #7ee787; } .bold { font-weight: 700; }
"""


def main() -> None:
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        (folder / "app.py").write_text(APP)
        port = free_port()
        uri = f"btq://127.0.0.1:{port}"
        env = os.environ | {"BACKEND_CONNECTION_URI": uri, "FLASK_APP": "app", "COLUMNS": str(COLUMNS)}

        def start(*arguments: str) -> None:
            process = subprocess.Popen([COMMAND, *arguments], cwd=folder, env=env, stderr=subprocess.DEVNULL)
            stack.callback(process.wait)
            stack.callback(process.terminate)

        start("broker", "--port", str(port))
        start("supervise", "--queue", "com.example/mail=2")
        wait_until(lambda: " 2 idle" in shown("queues", folder, env), "two idle workers")
        subprocess.run([sys.executable, "app.py"], cwd=folder, env=env, check=True)
        wait_until(lambda: re.search(r"welcome +ValueError +2", shown("failures", folder, env)), "two failures")
        lines = []
        for command in ("queues", "failures"):
            text = shown(command, folder, env).replace(str(folder), "/srv/mail").replace(socket.gethostname(), "web1")
            lines += [f"$ flask-backend {command}", *text.splitlines(), ""]
    PICTURE.write_text(draw(lines[:-1]))


def shown(command: str, folder: Path, env: Mapping[str, str]) -> str:
    """Return what a command shows on a terminal, with its colours."""
    ours, theirs = pty.openpty()
    with subprocess.Popen([COMMAND, command], cwd=folder, env=env, stdout=theirs, stderr=theirs):
        os.close(theirs)
        output = b""
        with contextlib.suppress(OSError):  # the end, on Linux
            while part := os.read(ours, 4096):
                output += part
    os.close(ours)
    return output.decode().replace("\r\n", "\n")


def draw(lines: list[str]) -> str:
    height = 2 * MARGIN + ROW * len(lines)
    size = f'width="{WIDTH}" height="{height}"'
    rows = [
        f'<text x="{MARGIN}" y="{MARGIN + ROW * number + 14}" xml:space="preserve">{spans(line)}</text>'
        for number, line in enumerate(lines)
        if line
    ]
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" {size} viewBox="0 0 {WIDTH} {height}">',
            "<title>flask-backend queues, and flask-backend failures, in a terminal</title>",
            f"<style>{STYLE}</style>",
            f'<rect {size} rx="8" fill="#0d1117"/>',
            *rows,
            "</svg>\n",
        ]
    )


def spans(line: str) -> str:
    if line.startswith("$ "):
        return f'<tspan class="typed">$</tspan> <tspan class="bold">{escape(line[2:])}</tspan>'
    parts = re.split(r"\x1b\[([\d;]*)m", line)
    result, codes = escape(parts[0]), ""
    for codes, text in zip(parts[1::2], parts[2::2], strict=True):
        colour = next((COLOURS[code] for code in codes.split(";") if code in COLOURS), None)
        result += f'<tspan fill="{colour}">{escape(text)}</tspan>' if colour else escape(text)
    return result


if __name__ == "__main__":
    main()
