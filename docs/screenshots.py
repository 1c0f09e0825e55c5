"""Take the screenshots of the dashboard: `./run screenshots`.

Usage: .venv/bin/python docs/screenshots.py [--to FOLDER] [--seconds N] [--buried N] [--only NAME ...]

Real workers on a real broker do the work of a small shop, some of which fails; Chromium shows the pages, 1280 by 800
unless the name says otherwise. The lines of the queues need --seconds of work, up to 300. --buried is the number of
buried jobs of one scene: they are put there directly, each with its story, since workers would take hours.
"""

from __future__ import annotations

import argparse
import math
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import screenshots_app as shop
from support.beanstalkd import Beanstalkd
from support.chromium import Chromium
from support.sites import serve
from support.waiting import wait_until

from flask_backend.message import encode_call, head_of
from flask_backend.names import failures_tube
from flask_backend.stories import MAX_WHOLE, Story

HERE = Path(__file__).parent
COMMAND = [str(Path(sys.executable).with_name("flask-backend")), "--app", f"{HERE / 'screenshots_app.py'}:create_app"]
FONTS = """<?xml version="1.0"?>
<!DOCTYPE fontconfig SYSTEM "fonts.dtd">
<fontconfig>
<match target="pattern">
<test name="family" qual="all" compare="not_contains"><string>mono</string></test>
<test name="family" qual="all" compare="not_contains"><string>Mono</string></test>
<test name="family" qual="all" compare="not_eq"><string>Menlo</string></test>
<test name="family" qual="all" compare="not_eq"><string>Consolas</string></test>
<edit name="family" mode="prepend_first" binding="strong"><string>Inter</string></edit>
</match>
<include>/etc/fonts/fonts.conf</include>
</fontconfig>"""


class Stage:
    """The shop at work, and a browser."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder = folder
        self.broker = Beanstalkd()
        stack.callback(self.broker.stop)
        os.environ.update(self.broker.env)
        self.app = shop.create_app()
        self.root = stack.enter_context(serve(self.app))
        self.browser = Chromium()
        stack.callback(self.browser.quit)
        self._stack = stack

    def supervise(self, *queues: str) -> subprocess.Popen[bytes]:
        arguments = [part for queue in queues for part in ("--queue", queue)]
        started = subprocess.Popen([*COMMAND, "supervise", *arguments], stderr=subprocess.DEVNULL)
        self._stack.callback(started.wait)
        self._stack.callback(started.send_signal, signal.SIGQUIT)
        return started

    def url(self, path: str = "/") -> str:
        return f"{self.root}/backend{path}"

    def open(self, path: str = "/", *, theme: str = "light") -> Chromium:
        self.browser.prefer(theme, reduced_motion=True)
        self.browser.open(self.url(path))
        return self.browser

    def take(self, name: str) -> None:
        self.browser.screenshot(self.folder / f"{name}.png")
        print(f"{name}.png")  # noqa: T201  # the progress

    def work(self, seconds: float) -> None:
        """Schedule calls for so long, at rates that change; some of them fail."""
        number, until = 1, time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            swell = 1 + 0.6 * math.sin(left / 18) + 0.3 * random.random()
            with self.app.app_context():
                for _ in range(int(8 * swell)):
                    number += 1
                    shop.charge(number, f"{number % 90 + 9}.50", f"4111 **** **** {number % 9000 + 1000}")
                    shop.send_receipt(number, f"customer{number}@example.com" if number % 40 else f"customer{number}")
                shop.resize(f"products/{number}.png")
                if number % 7 == 0:
                    shop.index_product(number)
                if number % 90 == 0:
                    shop.refund(number)
            time.sleep(0.5)  # the customers


def show_queues(stage: Stage) -> None:
    for theme in ("light", "dark"):
        stage.browser.prefer(theme, reduced_motion=True)
        stage.take(f"queues-{theme}")


def show_unwatched(stage: Stage) -> None:
    with stage.app.app_context():
        shop.export_orders.map([f"2026-{month:02}" for month in range(1, 12)])
    stage.open()
    stage.take("queue-without-worker")


def show_phone(stage: Stage) -> None:
    stage.browser.resize(360, 740, 2, is_mobile=True)
    stage.open()
    stage.take("phone-360")
    stage.browser.resize()


def show_zoom(stage: Stage) -> None:
    stage.browser.resize(640, 400, 2)  # the layout of a window of 1280 by 800 at 200 %
    stage.open()
    stage.take("zoom-200")
    stage.browser.resize()


def show_closed(stage: Stage) -> None:
    stage.browser.open(f"{stage.root}/closed/")
    stage.take("closed-403")


def show_without_scripts(stage: Stage) -> None:
    with stage.browser.without_scripts():
        stage.open("/queue?queue=" + shop.ORDERS)
        stage.take("without-scripts")


def show_focus(stage: Stage) -> None:
    stage.open().press("j", "j")
    stage.take("focus")


def show_workers(stage: Stage) -> None:
    stage.open("/workers")
    stage.take("workers")


def bury(broker: Beanstalkd, count: int) -> None:
    """Put so many buried jobs on the broker, and the story of each, as workers leave them."""
    with socket.create_connection((broker.host, broker.port)) as connection:
        # Nobody reads the replies; the last one shows that all came.
        threading.Thread(target=lambda: [*iter(lambda: connection.recv(1 << 20), b"")], daemon=True).start()
        failures = failures_tube(shop.ORDERS)
        now = time.time()
        for start in range(1, count + 1, 1000):
            ids = range(start, min(start + 1000, count + 1))
            commands = [f"use {shop.ORDERS}\r\n".encode()]
            commands += [_put(9, encode_call(head_of("charge"), [job, "9.50"], {}, f"{job:032x}")) for job in ids]
            connection.sendall(b"".join(commands))
        for start in range(1, count + 1, 1000):
            ids = range(start, min(start + 1000, count + 1))
            commands = [f"reserve-job {job}\r\nbury {job} 9\r\n".encode() for job in ids]
            commands += [f"use {failures}\r\n".encode()]
            for job in ids:
                story = _tell(job, now - (count - job) * 7 * 86400 / count)
                commands.append(_put(story.priority, (story if job <= MAX_WHOLE else story.shortened()).encode()))
            connection.sendall(b"".join(commands))
        wait_until(lambda: broker.count(failures, "ready") == count, f"{count} stories are there", 600)


def _put(priority: int, body: bytes) -> bytes:
    return b"put %d 0 60 %d\r\n%b\r\n" % (priority, len(body), body)


def _tell(job: int, at: float) -> Story:
    exception, message = (
        ("PaymentDeclinedError", f"order {job}: the card was declined"),
        ("ConnectionError", "the payment gateway does not answer"),
        ("KeyError", "'currency'"),
    )[job % 7 % 3]
    facts = {"endpoint": "charge", "call": f"charge({job}, '9.50')", "attempts": 10, "allowed": 10}
    reason = f"failed 10 times: {exception}: {message}"
    return Story(job, shop.ORDERS, reason, at, "web1", 4711, exception=exception, message=message, **facts)


def show_schedules(stage: Stage) -> None:
    stage.open("/schedules")
    stage.browser.wait(lambda: stage.browser.find("tbody th", "nightly index"), "the periodic tasks are registered")
    stage.browser.follow("tr:last-of-type button", "Pause")
    stage.open("/schedules")
    stage.take("schedules")


SCENES = (
    show_schedules,
    show_unwatched,
    show_phone,
    show_zoom,
    show_closed,
    show_without_scripts,
    show_focus,
    show_workers,
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--to", type=Path, default=HERE.parent / "build" / "screenshots", metavar="FOLDER")
    parser.add_argument("--seconds", type=float, default=60, metavar="N")
    parser.add_argument("--buried", type=int, default=100_000, metavar="N")
    options = parser.parse_args()
    options.to.mkdir(parents=True, exist_ok=True)
    fonts = Path(tempfile.mkdtemp()) / "fonts.conf"
    fonts.write_text(FONTS)
    os.environ["FONTCONFIG_FILE"] = str(fonts)  # Inter, if it is installed, as the system's font of many is like it
    with ExitStack() as stack:
        stage = Stage(options.to, stack)
        stage.supervise(f"{shop.MAIL}=3", f"{shop.ORDERS}=4", f"{shop.IMAGES}=2", f"{shop.SEARCH}=2")
        worker = threading.Thread(target=stage.work, args=[options.seconds])
        worker.start()
        watching = Chromium()
        stack.callback(watching.quit)
        watching.open(stage.url())
        for scene in SCENES:
            scene(stage)
        worker.join()
        stage.browser = watching
        show_queues(stage)


if __name__ == "__main__":
    main()
