"""The extensions, without an app: `create_app` gives them one, and all other modules import them from here."""

from flask_sqlalchemy import SQLAlchemy
from sqlalchemy.orm import DeclarativeBase

from flask_backend import Backend


class Base(DeclarativeBase):
    """The base class of all models."""


db = SQLAlchemy(model_class=Base)
backend = Backend()
