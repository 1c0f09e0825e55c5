import re

from flask import Blueprint, abort, flash, redirect, render_template, request, url_for
from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from werkzeug.wrappers import Response

from ..extensions import db
from ..models import Mail, Order, Product
from .tasks import confirm_order, remind_of_payment

MOST = 100  # of one product in an order
EMAIL = re.compile(r"[\w.!#$%&'*+/=?^`{|}~-]+@[\w-]+(\.[\w-]+)*", re.ASCII)  # one address, as browsers check it

blueprint = Blueprint("orders", __name__, url_prefix="/orders")


def place_order(product: Product, quantity: int, email: str) -> Order:
    """Add an order, in the caller's transaction. Its commit raises IntegrityError if the stock is too small."""
    order = Order(product=product, quantity=quantity, cents=quantity * product.cents, email=email)
    db.session.add(order)
    db.session.flush()  # the database sets order.id
    confirm_order(order.id)
    remind_of_payment(order.id)
    product.stock = Product.stock - quantity  # computed by the database: another order may come at the same time
    return order


@blueprint.post("/")
def create() -> Response:
    product = db.session.get(Product, request.form["sku"]) or abort(404)
    email, quantity = request.form["email"].strip(), request.form.get("quantity", 0, type=int)
    if not 1 <= quantity <= MOST or not EMAIL.fullmatch(email):
        flash(f"Enter a quantity from 1 to {MOST}, and your e-mail address.")
        return redirect(url_for("catalog.show", sku=product.sku))
    try:
        order = place_order(product, quantity, email)
        db.session.commit()
    except IntegrityError:
        db.session.rollback()
        flash("There is not enough in stock.")
        return redirect(url_for("catalog.show", sku=product.sku))
    return redirect(url_for("orders.show", key=order.key))


@blueprint.get("/<key>")
def show(key: str) -> str:
    order = db.first_or_404(select(Order).filter_by(key=key))
    return render_template("order.html", order=order, mail=db.session.get(Mail, f"order-{order.id}"))
