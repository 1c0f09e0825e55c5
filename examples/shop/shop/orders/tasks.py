"""What happens after an order: mails to the customer, and the message of a payment."""

from datetime import timedelta
from typing import Any

from flask import render_template

from flask_backend import Bury, Discard, Retry

from ..extensions import backend, db
from ..mail import send_once
from ..models import Order

# A mail server that is away or overloaded gets the mail later: the ten retries take more than four hours.
MAIL_RETRY = Retry(max_retries=10, min_backoff=30, max_backoff=3600)


@backend.task("com.example/mail", retry=MAIL_RETRY, time_limit=60)
def confirm_order(order_id: int) -> None:
    mail(find_order(order_id), "order")


@backend.task("com.example/mail", retry=MAIL_RETRY, time_limit=60)
def confirm_payment(order_id: int) -> None:
    mail(find_order(order_id), "payment")


@backend.task("com.example/mail", retry=MAIL_RETRY, time_limit=60, delay=timedelta(days=1), expires=timedelta(days=3))
def remind_of_payment(order_id: int) -> None:
    if (order := find_order(order_id)).payment is None:
        mail(order, "reminder")


def find_order(order_id: int) -> Order:
    if (order := db.session.get(Order, order_id)) is None:
        raise Discard(f"order {order_id} was deleted")
    return order


def mail(order: Order, kind: str) -> None:
    subject, _, text = render_template(f"mail/{kind}.txt", order=order).partition("\n\n")
    send_once(f"{kind}-{order.id}", order.email, subject, text)


@backend.receiver("com.example/payments", time_limit=60)
def payment(message: Any) -> None:
    """Note a payment: {"order": 7, "cents": 750, "reference": "A-17"}, from the payment provider."""
    match message:
        case {"order": int(number), "cents": int(cents), "reference": str(reference)}:
            order = db.session.get(Order, number)
        case _:
            raise Bury("this is not the message of a payment")
    if order is None or order.cents != cents:
        raise Bury(f"there is no order {number} of {cents} cents")
    if order.payment is None:  # else the message has come twice
        order.payment = reference
        confirm_payment(order.id)
        db.session.commit()
