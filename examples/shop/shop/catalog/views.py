import csv
import io

from flask import Blueprint, abort, flash, redirect, render_template, request, url_for
from sqlalchemy import select
from werkzeug.wrappers import Response

from ..extensions import db
from ..models import Product, Upload
from ..security import require_owner
from .tasks import import_products

blueprint = Blueprint("catalog", __name__)
imports = Blueprint("imports", __name__, url_prefix="/imports")
imports.before_request(require_owner)


@blueprint.get("/")
def index() -> str:
    return render_template("products.html", page=db.paginate(select(Product).order_by(Product.sku), per_page=20))


@blueprint.get("/products/<sku>")
def show(sku: str) -> str:
    return render_template("product.html", product=db.session.get(Product, sku) or abort(404))


@imports.get("/")
def index_of_imports() -> str:
    uploads = db.session.scalars(select(Upload).order_by(Upload.id.desc()).limit(20)).all()
    is_running = any(upload.done < upload.total and not upload.problem for upload in uploads)
    return render_template("imports.html", uploads=uploads, is_running=is_running)


@imports.post("/")
def create() -> Response:
    file = request.files["file"]
    try:
        content = file.read().decode("utf-8-sig")
        total = sum(1 for _ in csv.DictReader(io.StringIO(content)))
    except (UnicodeDecodeError, csv.Error) as error:
        flash(f"This is no CSV in UTF-8: {error}.")
    else:
        upload = Upload(filename=file.filename or "products.csv", content=content, total=total)
        db.session.add(upload)
        db.session.flush()  # the database sets upload.id
        import_products(upload.id)
        db.session.commit()
    return redirect(url_for("imports.index_of_imports"))
