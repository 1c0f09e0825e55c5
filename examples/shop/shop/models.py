"""The tables. SQLite keeps no time zones: all times are UTC."""

import secrets
from datetime import UTC, date, datetime

from sqlalchemy import CheckConstraint, ForeignKey
from sqlalchemy.orm import Mapped, mapped_column, relationship

from .extensions import Base


def now() -> datetime:
    return datetime.now(UTC).replace(tzinfo=None)


class Product(Base):
    __tablename__ = "products"
    __table_args__ = (CheckConstraint("stock >= 0"),)

    sku: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str]
    cents: Mapped[int]
    stock: Mapped[int]


class Order(Base):
    __tablename__ = "orders"

    id: Mapped[int] = mapped_column(primary_key=True)
    key: Mapped[str] = mapped_column(unique=True, default=secrets.token_urlsafe)  # its page: nobody guesses the address
    sku: Mapped[str] = mapped_column(ForeignKey(Product.sku))
    quantity: Mapped[int]
    cents: Mapped[int]
    email: Mapped[str]
    placed_at: Mapped[datetime] = mapped_column(default=now, index=True)
    payment: Mapped[str | None]  # the reference of the payment
    product: Mapped[Product] = relationship()


class Mail(Base):
    """A mail that was sent."""

    __tablename__ = "mails"

    key: Mapped[str] = mapped_column(primary_key=True)
    sent_at: Mapped[datetime] = mapped_column(default=now)


class Upload(Base):
    """A file of products, and how far its import is."""

    __tablename__ = "uploads"

    id: Mapped[int] = mapped_column(primary_key=True)
    filename: Mapped[str]
    content: Mapped[str] = mapped_column(deferred=True)  # in the database, since the worker may be on another host
    total: Mapped[int]
    done: Mapped[int] = mapped_column(default=0)
    problem: Mapped[str | None]
    uploaded_at: Mapped[datetime] = mapped_column(default=now)


class Report(Base):
    """The sales of a day."""

    __tablename__ = "reports"

    day: Mapped[date] = mapped_column(primary_key=True)
    orders: Mapped[int]
    cents: Mapped[int]
