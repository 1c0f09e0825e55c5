"""The shop of the screenshots: tasks that work, fail, and kill their worker, and the dashboard for some roles."""

from __future__ import annotations

import os
import random
import signal
import time
from urllib.request import urlopen

from flask import Flask, request

from flask_backend import Backend, Bury, Retry, current_job
from flask_backend.dashboard import Dashboard

MAIL, ORDERS, IMAGES, SEARCH, EXPORT = "shop/mail", "shop/orders", "shop/images", "shop/search", "shop/export"
GATEWAY = "http://127.0.0.1:9/charge"  # where nothing listens

backend = Backend()


class PaymentDeclinedError(Exception):
    """The bank has declined."""


@backend.task(MAIL, retry=Retry(max_retries=0))
def send_receipt(order: int, address: str) -> None:
    time.sleep(random.uniform(0.01, 0.03))  # the mail server
    if "@" not in address:
        raise ValueError(f"order {order}: {address!r} is not an address")


@backend.task(ORDERS, retry=Retry(max_retries=0))
def charge(order: int, amount: str, card: str) -> None:
    time.sleep(random.uniform(0.02, 0.06))  # the bank
    if order % 9 == 0:
        raise PaymentDeclinedError(f"order {order}: card {card} was declined, insufficient funds")
    if order % 50 == 1:
        settle_at_gateway(order, amount)


@backend.task(ORDERS)
def refund(order: int) -> None:
    raise Bury(f"order {order} was paid by voucher: a person decides")


def settle_at_gateway(order: int, amount: str) -> None:
    try:
        urlopen(f"{GATEWAY}?order={order}&amount={amount}", timeout=2)  # noqa: S310  # an address of this machine
    except OSError as error:
        raise ConnectionError(f"the payment gateway does not answer for order {order}") from error


@backend.task(IMAGES, retry=Retry(max_retries=0))
def resize(path: str) -> None:
    if path.endswith(".tiff"):
        os.kill(os.getpid(), signal.SIGKILL)  # as the system does when memory runs out
    time.sleep(random.uniform(0.1, 0.5))  # the work


@backend.periodic("15 2 * * *", name="nightly index", timezone="Europe/Prague", args=["main"])
@backend.task(SEARCH)
def rebuild_index(_shop: str) -> None:
    for done in range(10_000):
        current_job.progress(done, 10_000)
        time.sleep(0.05)  # the work


@backend.task(SEARCH)
def index_product(_number: int) -> None:
    time.sleep(0.1)  # the work


@backend.periodic("@monthly", timezone="America/New_York", catch_up="skip", grace=6 * 3600)
@backend.task(ORDERS)
def close_books() -> None: ...


@backend.periodic(every=60, overlap=False)
@backend.task(ORDERS)
def fetch_payments() -> None:
    time.sleep(0.3)  # the bank


@backend.periodic("0 8 * * MON-FRI", name="morning report", timezone="Europe/Prague")
@backend.task(MAIL)
def report_to_owner() -> None: ...


@backend.task(EXPORT)
def export_orders(month: str) -> None: ...


ROLES = {
    "operator": {"view", "view_arguments", "retry", "delete", "cancel", "pause", "schedule", "control"},
    "reader": {"view"},
}


def may(action: str, _what: object) -> bool:
    return action in ROLES.get(request.cookies.get("role", "operator"), ())


def create_app() -> Flask:
    app = Flask("shop")
    backend.init_app(app)
    app.register_blueprint(Dashboard(may, user=lambda: "ada"), url_prefix="/backend")
    app.register_blueprint(Dashboard(name="closed"), url_prefix="/closed")
    return app
