"""Declare the tables of ``pshop_db``."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from typing import Annotated
from uuid import UUID

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Computed,
    DateTime,
    FetchedValue,
    ForeignKey,
    Identity,
    MetaData,
    Numeric,
    SmallInteger,
    Text,
    UniqueConstraint,
    func,
    text,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

from atriz_database.model import NAMING_CONVENTION, reference

PrimaryKey = Annotated[
    UUID, mapped_column(primary_key=True, server_default=text("gen_random_uuid()"), comment="Identity of the row.")
]
CreatedAt = Annotated[datetime, mapped_column(server_default=func.now(), comment="When the row was made.")]
UpdatedAt = Annotated[
    datetime,
    mapped_column(
        server_default=func.now(),
        # A trigger writes it, so the ORM must read it again after every UPDATE.
        server_onupdate=FetchedValue(),
        comment="When the row last changed; a trigger keeps it.",
    ),
]

# Money. Every CHECK on it names 'NaN': numeric holds it, and PostgreSQL takes it to be greater than every number.
Money = Numeric(12, 2)


class Base(DeclarativeBase):
    """Collect the tables of this database."""

    metadata = MetaData(naming_convention=NAMING_CONVENTION)
    type_annotation_map = {str: Text, datetime: DateTime(timezone=True)}  # noqa: RUF012 - SQLAlchemy's own interface


class Product(Base):
    """Something the shop sells."""

    __tablename__ = "products"
    __table_args__ = (
        CheckConstraint("sku ~ '^[A-Z0-9]+(-[A-Z0-9]+)*$'", name="sku_form"),
        CheckConstraint("btrim(name) <> ''", name="name_not_blank"),
        CheckConstraint("price >= 0 AND price <> 'NaN'", name="price"),
        {"comment": "What the shop sells."},
    )

    id: Mapped[PrimaryKey]
    sku: Mapped[str] = mapped_column(unique=True, comment="Stock keeping unit, such as TEA-GREEN-100.")
    name: Mapped[str] = mapped_column(comment="Name on the shelf and on the receipt.")
    description: Mapped[str | None] = mapped_column(comment="What a customer might want to know.")
    category: Mapped[str | None] = mapped_column(index=True, comment="Shelf it stands on.")
    price: Mapped[Decimal] = mapped_column(Money, comment="Price of one, tax included.")
    is_active: Mapped[bool] = mapped_column(server_default=text("true"), comment="Whether it is on sale.")
    created_at: Mapped[CreatedAt]
    updated_at: Mapped[UpdatedAt]


class Inventory(Base):
    """How much of one product lies in one place."""

    __tablename__ = "inventory"
    __table_args__ = (
        UniqueConstraint("product_id", "location"),
        CheckConstraint("btrim(location) <> ''", name="location_not_blank"),
        CheckConstraint("quantity >= 0", name="quantity"),
        CheckConstraint("reorder_level >= 0", name="reorder_level"),
        {"comment": "How much of each product lies where."},
    )

    id: Mapped[PrimaryKey]
    product_id: Mapped[UUID] = mapped_column(ForeignKey("products.id", ondelete="CASCADE"), comment="Which product.")
    location: Mapped[str] = mapped_column(server_default=text("'shop'::text"), comment="Where it lies.")
    quantity: Mapped[int] = mapped_column(server_default=text("0"), comment="How many are there.")
    reorder_level: Mapped[int] = mapped_column(
        server_default=text("0"), comment="At how many more should be ordered; 0 for never."
    )
    created_at: Mapped[CreatedAt]
    updated_at: Mapped[UpdatedAt]


class Sale(Base):
    """One receipt."""

    __tablename__ = "sales"
    __table_args__ = (
        CheckConstraint("status IN ('completed', 'refunded', 'voided')", name="status"),
        CheckConstraint("payment_method IN ('cash', 'card', 'voucher')", name="payment_method"),
        CheckConstraint("total >= 0 AND total <> 'NaN'", name="total"),
        {"comment": "Receipts."},
    )

    id: Mapped[PrimaryKey]
    receipt_number: Mapped[int] = mapped_column(
        BigInteger, Identity(always=True), unique=True, comment="Number on the receipt; may leave gaps."
    )
    user_id: Mapped[UUID] = reference("core.users.id", nullable=False, comment="Cashier; a user of core.")
    status: Mapped[str] = mapped_column(
        server_default=text("'completed'::text"), comment="Whether the sale stands: completed, refunded or voided."
    )
    payment_method: Mapped[str] = mapped_column(comment="How it was paid: cash, card or voucher.")
    total: Mapped[Decimal] = mapped_column(
        Money, server_default=text("0"), comment="Sum of the lines; a trigger on sale_items keeps it."
    )
    sold_at: Mapped[datetime] = mapped_column(server_default=func.now(), index=True, comment="When the customer paid.")
    created_at: Mapped[CreatedAt]
    updated_at: Mapped[UpdatedAt]

    items: Mapped[list[SaleItem]] = relationship(
        cascade="all, delete-orphan", passive_deletes=True, order_by="SaleItem.line_number"
    )


class SaleItem(Base):
    """One line of a receipt."""

    __tablename__ = "sale_items"
    __table_args__ = (
        UniqueConstraint("sale_id", "line_number"),
        CheckConstraint("line_number > 0", name="line_number"),
        CheckConstraint("quantity > 0", name="quantity"),
        CheckConstraint("unit_price >= 0 AND unit_price <> 'NaN'", name="unit_price"),
        CheckConstraint("discount BETWEEN 0 AND quantity * unit_price", name="discount"),
        {"comment": "Lines of receipts."},
    )

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True, comment="Identity of the row.")
    sale_id: Mapped[UUID] = mapped_column(ForeignKey("sales.id", ondelete="CASCADE"), comment="Which receipt.")
    line_number: Mapped[int] = mapped_column(SmallInteger, comment="Place on the receipt, from 1.")
    # No cascade: what was sold stays known; a product that is no longer sold gets is_active = false.
    product_id: Mapped[UUID] = mapped_column(ForeignKey("products.id"), index=True, comment="What was sold.")
    quantity: Mapped[int] = mapped_column(comment="How many were sold.")
    unit_price: Mapped[Decimal] = mapped_column(Money, comment="Price of one on that day.")
    discount: Mapped[Decimal] = mapped_column(Money, server_default=text("0"), comment="Taken off the whole line.")
    line_total: Mapped[Decimal] = mapped_column(
        Money,
        # With the cast that PostgreSQL would put in: only so does Alembic find model and database the same.
        Computed("((quantity)::numeric * unit_price) - discount", persisted=True),
        comment="What the line comes to.",
    )
