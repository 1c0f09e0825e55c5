from collections.abc import Iterator

import pytest
from flask import Flask
from flask.testing import FlaskClient
from shop import create_app
from shop.extensions import db
from shop.models import Product

pytest_plugins = ["flask_backend.testing.plugin"]


@pytest.fixture
def app() -> Iterator[Flask]:
    app = create_app(
        {
            "TESTING": True,
            "SECRET_KEY": "tests",
            "ADMIN_PASSWORD": "secret",
            "SQLALCHEMY_DATABASE_URI": "sqlite://",
            "BACKEND_CONNECTION_URI": "memory://",
            "MAIL_SERVER": None,
        }
    )
    with app.app_context():
        db.create_all()
        db.session.add(Product(sku="mint", name="Mint", cents=390, stock=3))
        db.session.commit()
        yield app
        db.session.remove()
        db.engine.dispose()


@pytest.fixture
def client(app: Flask) -> FlaskClient:
    return app.test_client()


@pytest.fixture
def owner(app: Flask) -> FlaskClient:
    client = app.test_client()
    client.environ_base["HTTP_AUTHORIZATION"] = "Basic OnNlY3JldA=="  # ":secret"
    return client
