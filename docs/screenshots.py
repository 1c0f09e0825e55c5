"""Take the screenshots of the dashboard: `./run screenshots`.

Usage: .venv/bin/python docs/screenshots.py [--to FOLDER] [--seconds N] [--buried N] [--publish]

Real workers on a real broker do the work of a small shop, some of which fails; Chromium shows the pages, 1280 by 800
unless the name says otherwise. The lines of the queues need --seconds of work, up to 300. --buried is the number of
buried jobs of one scene: they are put there directly, each with its story, since workers would take hours.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from PIL import Image, ImageChops
from support.beanstalkd import Beanstalkd
from support.chromium import Chromium
from support.sites import serve
from support.stories import bury_many
from support.waiting import wait_until

from flask_backend.extension import EXTENSION_KEY
from flask_backend.message import encode_call, head_of

HERE = Path(__file__).parent
PUBLISHED = HERE / "screenshots"
SOME = 40  # failures, before the pictures of them
BURIED_AT_ONCE = 500
KINDS = (
    ("shop.PaymentDeclinedError", "the card was declined, insufficient funds"),
    ("ConnectionError", "the payment gateway does not answer"),
    ("KeyError", "'currency'"),
)
COMMAND = str(Path(sys.executable).with_name("flask-backend"))
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

    def __init__(self, shop: Any, folder: Path, stack: ExitStack) -> None:
        self.shop = shop
        self.folder = folder
        self.broker = Beanstalkd()
        stack.callback(self.broker.stop)
        os.environ.update(self.broker.env)
        self.app = shop.create_app()
        self.root = stack.enter_context(serve(self.app))
        self.browser = Chromium()
        stack.callback(self.browser.quit)
        self.supervisor: subprocess.Popen[bytes] | None = None
        self._stack = stack

    def supervise(self, *queues: str) -> subprocess.Popen[bytes]:
        arguments = [part for queue in queues for part in ("--queue", queue)]
        command = [COMMAND, "--app", f"{self.shop.__file__}:create_app", "supervise", *arguments]
        started = subprocess.Popen(command, stderr=subprocess.DEVNULL)
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
        shop, number, until = self.shop, 1, time.monotonic() + seconds
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
                if number % 15 == 0:
                    shop.refund(number)
            time.sleep(0.5)  # the customers


# -- the scenes ----------------------------------------------------------------------------------------------------


def show_unwatched(stage: Stage) -> None:
    with stage.app.app_context():
        stage.shop.export_orders.map([f"2026-{month:02}" for month in range(1, 12)])
    stage.open()
    stage.take("queue-without-worker")


def show_failures(stage: Stage) -> None:
    with stage.app.app_context():
        stage.shop.resize("products/poster.tiff")
    orders, images = stage.shop.ORDERS, stage.shop.IMAGES
    wait_until(lambda: stage.broker.count(orders, "buried") > SOME, "there are failures", 60)
    wait_until(lambda: stage.broker.count(images, "buried"), "a job has killed three workers", 60)
    stage.open("/failures")
    stage.take("failures")
    stage.browser.follow("tbody th a", "charge")
    for box in stage.browser.find_all("td input[type=checkbox]")[:3]:
        box.click()
    stage.take("group")
    stage.browser.follow(".acts a", "Retry all")
    stage.take("question")


def show_failure(stage: Stage) -> None:
    stage.open("/failures?pattern=charge/ConnectionError")
    stage.browser.follow("tbody td a", "job")
    stage.take("failure")
    stage.browser.print(stage.folder / "failure.pdf")
    if shutil.which("pdftoppm"):
        pages = ["pdftoppm", "-r", "80", "-png", stage.folder / "failure.pdf", stage.folder / "failure-printed"]
        subprocess.run(pages, check=True)


def show_job(stage: Stage) -> None:
    with stage.app.app_context():
        job = stage.shop.export_orders.options(delay=7200)("2026-12")
    stage.open(f"/job?queue={job.queue}&id={job.id}")
    stage.take("job-explained")


def show_hostile(stage: Stage) -> None:
    body = {"endpoint": "<script>alert(1)</script>", "args": ["\u202eevig \x1b[2J", "<img src=x onerror=alert(2)>"]}
    job = stage.broker.put(stage.shop.EXPORT, json.dumps(body, ensure_ascii=False).encode())
    stage.open(f"/job?queue={stage.shop.EXPORT}&id={job}")
    stage.take("hostile-body")


def show_schedules(stage: Stage) -> None:
    stage.open("/schedules")
    stage.browser.wait(lambda: stage.browser.find("tbody th", "nightly index"), "the periodic tasks are registered")
    stage.browser.follow("tr:last-of-type button", "Pause")
    stage.open("/schedules")
    stage.take("schedules")


def show_reload(stage: Stage) -> None:
    with stage.app.app_context():
        stage.shop.rebuild_index("main")
    wait_until(lambda: stage.broker.count(stage.shop.SEARCH, "reserved"), "the index is being built")
    stage.supervisor.send_signal(signal.SIGHUP)
    stage.browser.wait(lambda: "RELOADING" in stage.open("/workers").text, "it reloads")
    stage.take("workers-in-a-reload")


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
        stage.open("/queue?queue=" + stage.shop.ORDERS)
        stage.take("without-scripts")


def show_focus(stage: Stage) -> None:
    stage.open().press("j", "j")
    stage.take("focus")


def show_reader(stage: Stage) -> None:
    stage.browser.devtools("Network.setCookie", name="role", value="reader", url=stage.root)
    stage.open("/failures")
    stage.browser.follow("tbody th a", "charge")
    stage.take("read-only")
    stage.browser.devtools("Network.clearBrowserCookies")


def show_queues(stage: Stage) -> None:
    for theme in ("light", "dark"):
        stage.browser.prefer(theme, reduced_motion=True)
        stage.take(f"queues-{theme}")


def show_outage(stage: Stage) -> None:
    stage.broker.kill()
    stage.browser.prefer("light", reduced_motion=True)
    stage.browser.wait(lambda: "Stale since" in stage.browser.find("#status").text, "the page is stale")
    stage.take("broker-away-stale")
    stage.open()
    stage.take("broker-away")


SCENES = (
    show_unwatched,
    show_failures,
    show_failure,
    show_job,
    show_hostile,
    show_schedules,
    show_phone,
    show_zoom,
    show_closed,
    show_without_scripts,
    show_focus,
    show_reader,
    show_reload,
)


def show_many(stage: Stage, count: int) -> None:
    for start in range(0, count, BURIED_AT_ONCE):
        age_s = 7 * 86400 * (1 - start / count)
        bury_many(
            stage.app.extensions[EXTENSION_KEY].settings_of(stage.app),
            stage.shop.ORDERS,
            min(BURIED_AT_ONCE, count - start),
            encode_call(head_of("charge"), [9, "9.50"], {}, f"{start:032x}"),
            endpoint="charge",
            buried_at=time.time() - age_s,
            exception=lambda number: KINDS[number % 7 % 3][0],
            message=lambda number: KINDS[number % 7 % 3][1],
        )
    stage.open("/failures")
    stage.take(f"buried-{count}")


def publish(folder: Path) -> None:
    """Write the pictures of the README and of the documentation: without the empty part below, with few colours."""
    PUBLISHED.mkdir(exist_ok=True)
    for name in ("queues-light", "queues-dark", "failures", "failure"):
        with Image.open(folder / f"{name}.png") as taken:
            picture = taken.convert("RGB")
        background = Image.new("RGB", picture.size, picture.getpixel((picture.width - 1, picture.height - 1)))
        _, _, _, bottom = ImageChops.difference(picture, background).getbbox() or (0, 0, 0, 0)
        cropped = picture.crop((0, 0, picture.width, min(picture.height, bottom + 18)))
        cropped.quantize(64).save(PUBLISHED / f"{name}.png", optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--to", type=Path, default=HERE.parent / "build" / "screenshots", metavar="FOLDER")
    parser.add_argument("--seconds", type=float, default=60, metavar="N", help="how long the shop works; default: 60")
    parser.add_argument("--buried", type=int, default=100_000, metavar="N", help="of one scene; default: 100000")
    parser.add_argument("--publish", action="store_true", help="also write the pictures in docs/screenshots")
    options = parser.parse_args()
    options.to.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="shop-") as name:
        folder = Path(name)
        (folder / "fonts.conf").write_text(FONTS)
        os.environ["FONTCONFIG_FILE"] = str(folder / "fonts.conf")
        shutil.copy(HERE / "screenshots_app.py", folder / "shop.py")
        sys.path.insert(0, name)
        shop = importlib.import_module("shop")
        with ExitStack() as stack:
            play(Stage(shop, options.to, stack), stack, options.seconds)
        with ExitStack() as stack:
            show_many(Stage(shop, options.to, stack), options.buried)
    if options.publish:
        publish(options.to)


def play(stage: Stage, stack: ExitStack, seconds: float) -> None:
    shop = stage.shop
    stage.supervisor = stage.supervise(f"{shop.MAIL}=3", f"{shop.ORDERS}=4", f"{shop.IMAGES}=2", f"{shop.SEARCH}=2")
    customers = threading.Thread(target=stage.work, args=[seconds])
    customers.start()
    stack.callback(customers.join)
    watching = Chromium()
    stack.callback(watching.quit)
    watching.open(stage.url())
    for scene in SCENES:
        scene(stage)
    customers.join()
    stage.browser.quit()
    stage.browser = watching
    show_queues(stage)
    show_outage(stage)


if __name__ == "__main__":
    main()
