"""A small shop. The pages are the views of its blueprints; the tasks behind them run in workers."""

import os
from collections.abc import Mapping
from typing import Any

from flask import Flask

from flask_backend.dashboard import Dashboard

from . import catalog, orders, reports, security
from .extensions import backend, db


def create_app(config: Mapping[str, Any] | None = None) -> Flask:
    app = Flask(__name__)
    app.config.from_mapping(
        SECRET_KEY="development" if app.debug else None,
        SESSION_COOKIE_SAMESITE="Lax",
        MAX_CONTENT_LENGTH=16 << 20,
        ADMIN_PASSWORD=None,  # without one, the owner's pages are open in debug mode, and closed otherwise
        SQLALCHEMY_DATABASE_URI="sqlite:///shop.sqlite",  # in the instance folder
        BACKEND_AFTER_COMMIT="sqlalchemy",  # a call is sent after the commit of what it is about, and never without it
        BACKEND_BASE_URL="http://127.0.0.1:5000",  # for the links in mails
        MAIL_SERVER=None,  # without one, mails are logged
        MAIL_PORT=25,
        MAIL_DEFAULT_SENDER="shop@example.com",
        MAIL_OWNER="owner@example.com",
    )
    app.config.from_prefixed_env()  # FLASK_SECRET_KEY, FLASK_SQLALCHEMY_DATABASE_URI, FLASK_MAIL_SERVER ...
    app.config.from_mapping(config)

    if dsn := os.environ.get("SENTRY_DSN"):
        import sentry_sdk

        from flask_backend.contrib.sentry import FlaskBackendIntegration

        sentry_sdk.init(dsn, integrations=[FlaskBackendIntegration()], traces_sample_rate=0.1)

    db.init_app(app)
    backend.init_app(app)
    security.init_app(app)
    for blueprint in (catalog.blueprint, catalog.imports, orders.blueprint, reports.blueprint):
        app.register_blueprint(blueprint)
    app.register_blueprint(Dashboard(security.may), url_prefix="/backend")

    app.add_template_filter(money)
    app.cli.command("init-db", help="Create the missing tables.")(db.create_all)
    if app.debug:
        with app.app_context():
            db.create_all()
    return app


def money(cents: int) -> str:
    return f"{cents / 100:,.2f} €"
