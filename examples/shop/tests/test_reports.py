from datetime import datetime, timedelta

from shop.extensions import db
from shop.models import Order, Report, now
from shop.reports import report_sales


def add_order(cents, placed_at):
    db.session.add(Order(sku="mint", quantity=1, cents=cents, email="ada@example.com", placed_at=placed_at))
    db.session.commit()


def test_yesterday_and_today_are_reported_and_yesterday_is_mailed_once(owner, backend_memory, caplog):
    caplog.set_level("INFO")
    today = now().date()
    midnight = datetime.combine(today, datetime.min.time())
    add_order(390, midnight)
    add_order(780, midnight - timedelta(seconds=1))
    add_order(100_000, midnight - timedelta(days=1))
    add_order(1, midnight - timedelta(days=1, seconds=1))
    for _ in range(2):
        report_sales()
    backend_memory.drain()
    reports = {report.day: (report.orders, report.cents) for report in db.session.query(Report)}
    assert reports == {today: (1, 390), today - timedelta(days=1): (2, 100_780)}
    assert caplog.text.count("2 orders, 1,007.80 €. All reports: http://127.0.0.1:5000/reports/") == 1
    page = owner.get("/reports/").text
    assert "1,007.80 €" in page
    assert page.index(str(today)) < page.index("1,007.80 €")


def test_a_report_is_due_each_day(backend_memory):
    for _ in range(3):
        backend_memory.move_time(timedelta(hours=25))  # the longest day
        assert "report_sales" in {ran.scheduled.endpoint for ran in backend_memory.drain()}


def test_reports_are_for_the_owner(client):
    assert client.get("/reports/").status_code == 401
