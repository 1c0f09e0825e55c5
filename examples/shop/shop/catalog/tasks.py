"""The import of products. It may take long, and goes on after a deploy."""

import csv
import io
import re
from collections.abc import Iterable
from itertools import islice

from flask import current_app

from flask_backend import Discard, current_job

from ..extensions import backend, db
from ..models import Product, Upload

ROWS = 100  # of one transaction
MOST = 100_000_000  # cents, or pieces in stock


@backend.task("com.example/imports", time_limit=3600)
def import_products(upload_id: int) -> None:
    upload = find_upload(upload_id)
    upload.done = current_job.cursor or 0  # more than 0 if an earlier run was interrupted
    current_app.logger.info("import of %s, from row %d of %d", upload.filename, upload.done, upload.total)
    rows = islice(csv.DictReader(io.StringIO(upload.content)), upload.done, None)
    while batch := list(islice(rows, ROWS)):
        store(upload, batch)
        upload.done += len(batch)
        db.session.commit()
        current_job.progress(upload.done, upload.total)
        current_job.checkpoint(upload.done)


def find_upload(upload_id: int) -> Upload:
    if (upload := db.session.get(Upload, upload_id)) is None:
        raise Discard(f"upload {upload_id} was deleted")
    return upload


def store(upload: Upload, batch: Iterable[dict[str, str]]) -> None:
    """Insert or update products: a second time does no harm. A wrong row ends the import, and is shown on its page."""
    products = {}
    for number, row in enumerate(batch, upload.done + 1):
        try:
            product = read_product(row)
        except RowError as error:
            upload.problem = f"Row {number} {error}."
            db.session.commit()
            raise Discard(upload.problem) from error
        products[product.sku] = product  # the last one, if several have this sku
    with db.session.no_autoflush:  # the commit writes: SQLite lets one write at a time, and orders must not wait long
        for product in products.values():
            db.session.merge(product)


class RowError(Exception):
    """A row is no product; the text is for the person who uploaded it."""


def read_product(row: dict[str, str]) -> Product:
    try:
        sku, name, stock = row["sku"], row["name"].strip(), int(row["stock"])
        cents = round(float(row["price"]) * 100)
    except (ArithmeticError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise RowError("needs sku, name, price and stock") from error
    if not name or not re.fullmatch(r"[A-Za-z0-9-]{1,40}", sku):
        raise RowError("needs a name, and a sku of letters, digits and hyphens")
    if not (0 < cents <= MOST and 0 <= stock <= MOST):
        raise RowError("has a price or a stock that is too small or too large")
    return Product(sku=sku, name=name, cents=cents, stock=stock)
