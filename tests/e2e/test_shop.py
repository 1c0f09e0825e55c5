"""The shop of the examples, driven as its README describes: under `dev`, with a real broker and a mail server."""

from __future__ import annotations

import io
import re
import shutil
import signal
import socketserver
import sqlite3
import sys
import threading
from contextlib import closing
from email import message_from_bytes, policy
from email.message import EmailMessage
from pathlib import Path

import psutil
import pytest
from flask import Flask
from helpers import EXAMPLES, Browser, Program
from support.waiting import wait_until
from werkzeug.datastructures import FileStorage

from flask_backend import Backend

SHOP = EXAMPLES / "shop"
FLASK_BACKEND = Path(sys.executable).with_name("flask-backend")
pytestmark = pytest.mark.any_broker
READY = r"flask_backend\.supervisor: ready: "
ROWS = 2000


class MailServer(socketserver.ThreadingTCPServer):
    """A server of SMTP, RFC 5321, that keeps the mails."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), MailSession)
        self.mails: list[EmailMessage] = []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def env(self) -> dict[str, str]:
        return {"FLASK_MAIL_SERVER": "127.0.0.1", "FLASK_MAIL_PORT": str(self.server_address[1])}

    def subjects(self) -> list[str]:
        return [mail["Subject"] for mail in self.mails]


class MailSession(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        self.wfile.write(b"220 ready\r\n")
        while command := self.rfile.readline().strip().upper():
            match command[:4]:
                case b"QUIT":
                    return
                case b"DATA":
                    self.wfile.write(b"354 go on\r\n")
                    lines = list(iter(self.rfile.readline, b".\r\n"))
                    self.server.mails.append(message_from_bytes(b"".join(lines), policy=policy.default))
            self.wfile.write(b"250 done\r\n")


@pytest.fixture
def mail_server():
    with MailServer() as server:
        yield server
        server.shutdown()


class Shop:
    """A copy of the shop, as of a newcomer, and its programs."""

    def __init__(self, folder: Path, env: dict[str, str]) -> None:
        self.folder = folder
        self._env = env
        self._programs: list[Program] = []
        shutil.copytree(SHOP, folder, ignore=shutil.ignore_patterns("instance", "__pycache__"))

    def start(self, *command: str | Path, **env: str) -> Program:
        log = self.folder / f"{len(self._programs)}.log"
        self._programs.append(Program(*command, log=log, cwd=self.folder, env=self._env | env))
        return self._programs[-1]

    def end(self) -> None:
        for program in self._programs:
            program.end()


@pytest.fixture
def shop(tmp_path, broker, mail_server):
    shop = Shop(tmp_path / "shop", broker.env | mail_server.env)
    yield shop
    shop.end()


@pytest.fixture
def dev(shop):
    program = shop.start(FLASK_BACKEND, "--app", "shop", "dev", "--port", "0")
    program.wait_for(READY)
    return program


@pytest.fixture
def browser(dev):
    return Browser(dev.wait_for(r"http://127\.0\.0\.1:\d+")[0])


def upload(browser: Browser, content: bytes, name: str) -> str:
    return browser.post("/imports/", file=FileStorage(io.BytesIO(content), name))


def order(browser: Browser, sku: str, quantity: int) -> str:
    return browser.post("/orders/", sku=sku, quantity=str(quantity), email="ada@example.com")


def import_products(browser: Browser) -> None:
    upload(browser, (SHOP / "products.csv").read_bytes(), "products.csv")
    wait_until(lambda: "12 of 12" in browser.get("/imports/"), "the products are imported")


def test_an_order_is_confirmed_after_its_commit_and_a_payment_by_another_system(
    browser, broker, mail_server, shop, dev
):
    import_products(browser)
    assert "Darjeeling First Flush" in order(browser, "darjeeling", 2)
    wait_until(lambda: mail_server.subjects() == ["Your order 1"], "the mail has come")
    [mail] = mail_server.mails
    assert (mail["To"], mail["Message-ID"]) == ("ada@example.com", "<order-1@example.com>")
    assert "Please pay 25.00 €." in mail.get_content()

    # The call is made, and dropped with the order.
    assert "There is not enough in stock." in order(browser, "darjeeling", 11)
    assert broker.tube("com.example/mail")["total-jobs"] == 2  # the mail, and a reminder
    assert "10 in stock" in browser.get("/products/darjeeling")

    provider, payments = Flask("provider"), Backend()
    provider.config.update(broker.env)
    payments.init_app(provider)
    with provider.app_context():
        for _ in range(2):
            payments.send("com.example/payments", {"order": 1, "cents": 2500, "reference": "A-17"})
    assert shop.start(sys.executable, "pay.py", "2", "1").process.wait(20) == 0
    wait_until(lambda: broker.count("com.example/payments", "buried") == 1, "the wrong payment is buried")
    wait_until(lambda: mail_server.subjects() == ["Your order 1", "The payment of your order 1"], "the mail has come")
    dev.wait_for("decided Bury: there is no order 2 of 1 cents")
    assert "com.example/payments" in browser.get("/backend/")

    wait_until(lambda: not broker.is_empty("com.example/reports.schedule"), "the scheduler has begun")
    asked = shop.start(FLASK_BACKEND, "schedules", "run", "report_sales", "--yes")
    assert asked.process.wait(20) == 0, asked.output
    wait_until(lambda: "25.00 €" in browser.get("/reports/"), "the report has the order")
    wait_until(lambda: mail_server.subjects()[2:], "the mail has come")
    assert re.fullmatch(r"Sales of \d{4}-\d\d-\d\d", mail_server.subjects()[2])

    assert dev.stop() == 0, dev.output
    assert broker.count("com.example/mail", "delayed") == 1  # the reminder


def test_an_import_that_a_reload_interrupts_goes_on_at_its_checkpoint(browser, broker, shop, dev):
    rows = "".join(f"tea-{number},Tea {number},3.50,{number}\n" for number in range(ROWS))
    assert f"0 of {ROWS}" in upload(browser, f"sku,name,price,stock\n{rows}".encode(), "teas.csv")
    wait_until(lambda: re.search(rf"\b[1-9]\d* of {ROWS}", browser.get("/imports/")), "the import has begun")
    worker = next(
        process
        for process in psutil.Process(dev.process.pid).children(recursive=True)
        if "worker com.example/imports" in " ".join(process.cmdline())
    )
    worker.send_signal(signal.SIGSTOP)  # so that it is not done before the reload
    try:
        with (shop.folder / "shop" / "mail.py").open("a") as module:
            module.write("# changed\n")
        wait_until(lambda: len(re.findall(READY, dev.output)) == 2, f"new workers in:\n{dev.output}")
    finally:
        worker.send_signal(signal.SIGCONT)

    assert dev.wait_for(rf"import of teas\.csv, from row (\d+) of {ROWS}")[1] == "0"
    dev.wait_for(r"\(import_products\) is left at its checkpoint")
    left_at = int(dev.wait_for(rf"import of teas\.csv, from row ([1-9]\d*) of {ROWS} .* attempt 1\]")[1])
    assert 0 < left_at < ROWS
    wait_until(lambda: f"{ROWS} of {ROWS}" in browser.get("/imports/"), "all rows are imported")
    assert f"{ROWS - 1} in stock" in browser.get(f"/products/tea-{ROWS - 1}")
    wait_until(lambda: broker.is_empty("com.example/imports"), "the job is done")
    assert dev.stop() == 0, dev.output


def test_its_own_tests_pass(shop):
    tests = shop.start(sys.executable, "-m", "pytest", "-p", "no:cacheprovider")
    assert tests.process.wait(60) == 0, tests.output


def test_a_command_makes_the_tables_and_sentry_is_a_setting(shop):
    env = {"SENTRY_DSN": "http://key@127.0.0.1:9/1"}  # which only has to be accepted
    command = shop.start(sys.executable, "-m", "flask", "--app", "shop", "init-db", **env)
    assert command.process.wait(20) == 0, command.output
    with closing(sqlite3.connect(shop.folder / "instance" / "shop.sqlite")) as database:
        assert database.execute("SELECT COUNT(*) FROM products").fetchone() == (0,)
