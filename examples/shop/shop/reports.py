"""The report of the sales, each morning."""

from datetime import date, datetime, time, timedelta

from flask import Blueprint, current_app, render_template
from sqlalchemy import func, select

from .extensions import backend, db
from .mail import send_once
from .models import Order, Report, now
from .security import require_owner

blueprint = Blueprint("reports", __name__, url_prefix="/reports")
blueprint.before_request(require_owner)


@blueprint.get("/")
def index() -> str:
    reports = db.session.scalars(select(Report).order_by(Report.day.desc()).limit(30)).all()
    return render_template("reports.html", reports=reports)


@backend.periodic("0 6 * * *", timezone="Europe/Prague")
@backend.task("com.example/reports", time_limit=600)
def report_sales() -> None:
    """Sum up yesterday and today, and mail yesterday's sales to the owner. A second run computes the same again."""
    today = now().date()
    yesterday = sum_up(today - timedelta(days=1))
    sum_up(today)
    db.session.commit()
    text = render_template("mail/report.txt", report=yesterday)
    send_once(f"report-{yesterday.day}", current_app.config["MAIL_OWNER"], f"Sales of {yesterday.day}", text)


def sum_up(day: date) -> Report:
    begin = datetime.combine(day, time())
    is_of_day = Order.placed_at.between(begin, begin + timedelta(days=1) - timedelta.resolution)
    sales = select(func.count(), func.coalesce(func.sum(Order.cents), 0)).where(is_of_day)
    orders, cents = db.session.execute(sales).one()
    return db.session.merge(Report(day=day, orders=orders, cents=cents))
