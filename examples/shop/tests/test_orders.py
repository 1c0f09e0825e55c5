from datetime import timedelta

from shop.extensions import db
from shop.models import Order, Product
from shop.orders.tasks import confirm_order, confirm_payment, remind_of_payment

QUEUE = "com.example/payments"
PAYMENT = {"order": 1, "cents": 780, "reference": "A-17"}


def order(client, **form):
    form = {"sku": "mint", "quantity": 2, "email": "ada@example.com"} | form
    return client.post("/orders/", data=form, follow_redirects=True).text


def mails(caplog):
    return [record.getMessage() for record in caplog.records if record.getMessage().startswith("mail to")]


def test_an_order_is_confirmed_once(client, backend_memory, caplog):
    caplog.set_level("INFO")
    assert "on its way to ada@example.com" in order(client)
    backend_memory.assert_scheduled(confirm_order, 1)
    confirm_order(1)
    backend_memory.drain()
    [mail] = mails(caplog)
    assert "Thank you for your order of 2 × Mint.\nPlease pay 7.80 €." in mail
    assert db.session.get(Product, "mint").stock == 1


def test_an_order_of_too_many_leaves_no_trace(client, backend_memory):
    assert "There is not enough in stock." in order(client, quantity=4)
    assert backend_memory.scheduled() == []
    assert db.session.get(Order, 1) is None
    assert db.session.get(Product, "mint").stock == 3


def test_a_form_that_is_filled_in_wrongly_is_no_order(client, backend_memory):
    for wrong in (
        {"quantity": 0},
        {"quantity": "many"},
        {"email": "ada"},
        {"email": "a@b.c\nBcc: d@e.f"},
        {"email": "a@b.c, d@e.f"},
    ):
        assert "Enter a quantity" in order(client, **wrong)
    assert backend_memory.scheduled() == []


def test_a_form_of_another_site_is_refused(client, backend_memory):
    data = {"sku": "mint", "quantity": 1, "email": "ada@example.com"}
    for headers in ({"Sec-Fetch-Site": "cross-site"}, {"Origin": "https://evil.example"}):
        assert client.post("/orders/", data=data, headers=headers).status_code == 403
    for headers in ({"Sec-Fetch-Site": "same-origin"}, {"Origin": "http://localhost"}):
        assert client.post("/orders/", data=data, headers=headers).status_code == 302


def test_a_payment_that_comes_twice_is_noted_once(client, app, backend_memory, caplog):
    caplog.set_level("INFO")
    order(client)
    for _ in range(2):
        app.extensions["backend"].send(QUEUE, PAYMENT)
    backend_memory.drain()
    assert [mail.splitlines()[0] for mail in mails(caplog)] == [
        "mail to ada@example.com: Your order 1",
        "mail to ada@example.com: The payment of your order 1",
    ]
    backend_memory.assert_scheduled(confirm_payment, 1)
    assert db.session.get(Order, 1).payment == "A-17"


def test_a_payment_that_fits_no_order_is_kept_for_a_person(client, app, backend_memory):
    order(client)
    for message in (PAYMENT | {"cents": 1}, PAYMENT | {"order": 9}, {"from": "elsewhere"}):
        app.extensions["backend"].send(QUEUE, message)
    backend_memory.drain()
    assert [buried.note.reason for buried in backend_memory.buried()] == [
        "there is no order 1 of 1 cents",
        "there is no order 9 of 780 cents",
        "this is not the message of a payment",
    ]


def test_an_unpaid_order_is_reminded_of_after_a_day(client, backend_memory, caplog):
    caplog.set_level("INFO")
    order(client)
    backend_memory.assert_scheduled(remind_of_payment, 1, delay=timedelta(days=1))
    backend_memory.drain()
    backend_memory.move_time(timedelta(days=1))
    backend_memory.drain()
    assert any("waits for its payment" in mail for mail in mails(caplog))


def test_a_reminder_that_would_come_days_late_is_dropped(client, backend_memory):
    order(client)
    backend_memory.move_time(timedelta(days=4))
    endpoints = [ran.scheduled.endpoint for ran in backend_memory.drain()]
    assert "confirm_order" in endpoints
    assert "remind_of_payment" not in endpoints


def test_a_mail_server_that_is_away_gets_the_mail_later(client, app, backend_memory, caplog):
    caplog.set_level("INFO")
    app.config["MAIL_SERVER"] = "mail.invalid"
    order(client)
    [ran] = backend_memory.drain(raise_errors=False)
    assert isinstance(ran.error, OSError)
    app.config["MAIL_SERVER"] = None
    backend_memory.move_time(60)
    backend_memory.drain()
    assert len(mails(caplog)) == 1
