"""Draw docs/screen.svg and docs/top.svg, the pictures of the README: what commands show in a terminal.

Usage: .venv/bin/python docs/screen.py. Starts an embedded broker and supervisors, in a temporary folder and on a free
port. The folder, the host and the port are replaced; the rest is as printed. Prints the screen of `top` as text, for
docs/oncall/commands.md.
"""

from __future__ import annotations

import contextlib
import os
import pty
import re
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from html import escape
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from support.beanstalkd import free_port
from support.terminal import Terminal
from support.waiting import wait_until

PICTURE = Path(__file__).with_name("screen.svg")
PICTURE_OF_TOP = Path(__file__).with_name("top.svg")
COMMAND = str(Path(sys.executable).with_name("flask-backend"))
COLUMNS, LINES = 80, 18
APP = """
import sys
import time

from flask import Flask
from flask_backend import Backend, Bury, Retry

app = Flask("example")
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


@backend.task("com.example/images")
def resize(path: str) -> None:
    time.sleep(600 if path == "large.png" else 0.1)  # the work: the large one still runs when the screen is drawn


if __name__ == "__main__":
    if sys.argv[1:]:
        resize.map(["large.png", *(f"{number}.png" for number in range(2000))])
        sys.exit()
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

        def start(*arguments: str) -> int:
            process = subprocess.Popen([COMMAND, *arguments], cwd=folder, env=env, stderr=subprocess.DEVNULL)
            stack.callback(process.wait)
            stack.callback(process.send_signal, signal.SIGQUIT if "supervise" in arguments else signal.SIGTERM)
            return process.pid

        start("broker", "--port", str(port))
        start("supervise", "--queue", "com.example/mail=2")
        wait_until(lambda: " 2 idle" in shown("queues", folder, env), "two idle workers")
        subprocess.run([sys.executable, "app.py"], cwd=folder, env=env, check=True)
        wait_until(lambda: re.search(r"welcome +ValueError +2", shown("failures", folder, env)), "two failures")
        lines = []
        for command in ("queues", "failures"):
            text = shown(command, folder, env).replace(str(folder), "/srv/mail").replace(socket.gethostname(), "web1")
            lines += [f"$ flask-backend {command}", *text.splitlines(), ""]
        PICTURE.write_text(draw("flask-backend queues, and flask-backend failures, in a terminal", lines[:-1]))
        other = start("supervise", "--queue", "com.example/images=3", "--queue", "com.example/mail=2")
        wait_until(lambda: " 3 idle" in shown("queues", folder, env), "three idle workers")
        subprocess.run([sys.executable, "app.py", "images"], cwd=folder, env=env, check=True)
        lines = show_top(other, folder, env)
        PICTURE_OF_TOP.write_text(draw("flask-backend top, in a terminal", lines))
        print("\n".join(re.sub(r"\x1b\[[\d;]*m", "", line).rstrip() for line in lines))  # noqa: T201  # for the docs


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


def show_top(pid: int, folder: Path, env: Mapping[str, str]) -> list[str]:
    """Return the screen of `top` after some seconds, with its styles."""
    terminal = Terminal()
    terminal.resize(COLUMNS, LINES)
    command = [*terminal.start(streams="012"), COMMAND, "top", "--pid", str(pid)]
    with subprocess.Popen(command, cwd=folder, env={**env, "TERM": "xterm"}) as process:
        terminal.wait_for(r"up 1\ds")
        lines = terminal.picture.styled_lines
        terminal.type(b"q")
        process.wait()
    terminal.close()
    return [re.sub(r"(broker btq://127.0.0.1):\d+", r"\1:11300", line) for line in lines]


def draw(title: str, lines: list[str]) -> str:
    height = 2 * MARGIN + ROW * len(lines)
    size = f'width="{WIDTH}" height="{height}"'
    rows = [
        f'<text x="{MARGIN}" y="{MARGIN + ROW * number + 14}" xml:space="preserve">{spans(line)}</text>'
        for number, line in enumerate(lines)
        if line
    ]
    size_of_bar = f'width="{WIDTH - 2 * MARGIN}" height="{ROW}"'
    bars = [
        f'<rect x="{MARGIN}" y="{MARGIN + ROW * number - 1}" {size_of_bar} fill="#30363d"/>'
        for number, line in enumerate(lines)
        if line.startswith("\x1b[7m")
    ]
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" {size} viewBox="0 0 {WIDTH} {height}">',
            f"<title>{title}</title>",
            f"<style>{STYLE}</style>",
            f'<rect {size} rx="8" fill="#0d1117"/>',
            *bars,
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
        style = f' fill="{colour}"' if colour else ' class="bold"' if codes == "1" else ""
        result += f"<tspan{style}>{escape(text)}</tspan>" if style and text else escape(text)
    return result


if __name__ == "__main__":
    main()
