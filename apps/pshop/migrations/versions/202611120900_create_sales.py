"""Create sales and sale_items.

Revision ID: 9d853a47aba8
Revises: c1db56ad5d5c
Create Date: 2026-11-12 09:00:00
"""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "9d853a47aba8"
down_revision: str | None = "c1db56ad5d5c"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    """Apply the revision."""
    op.create_table(
        "sales",
        sa.Column(
            "id", sa.Uuid(), server_default=sa.text("gen_random_uuid()"), nullable=False, comment="Identity of the row."
        ),
        sa.Column(
            "receipt_number",
            sa.BigInteger(),
            sa.Identity(always=True),
            nullable=False,
            comment="Number on the receipt; may leave gaps.",
        ),
        sa.Column("user_id", sa.Uuid(), nullable=False, comment="Cashier; a user of core."),
        sa.Column(
            "status",
            sa.Text(),
            server_default=sa.text("'completed'::text"),
            nullable=False,
            comment="Whether the sale stands: completed, refunded or voided.",
        ),
        sa.Column("payment_method", sa.Text(), nullable=False, comment="How it was paid: cash, card or voucher."),
        sa.Column(
            "total",
            sa.Numeric(precision=12, scale=2),
            server_default=sa.text("0"),
            nullable=False,
            comment="Sum of the lines; a trigger on sale_items keeps it.",
        ),
        sa.Column(
            "sold_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
            comment="When the customer paid.",
        ),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
            comment="When the row was made.",
        ),
        sa.Column(
            "updated_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
            comment="When the row last changed; a trigger keeps it.",
        ),
        sa.CheckConstraint("status IN ('completed', 'refunded', 'voided')", name=op.f("ck_sales_status")),
        sa.CheckConstraint("payment_method IN ('cash', 'card', 'voucher')", name=op.f("ck_sales_payment_method")),
        sa.CheckConstraint("total >= 0 AND total <> 'NaN'", name=op.f("ck_sales_total")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_sales")),
        sa.UniqueConstraint("receipt_number", name=op.f("uq_sales_receipt_number")),
        comment="Receipts.",
    )
    op.create_index(op.f("ix_sales_user_id"), "sales", ["user_id"], unique=False)
    op.create_index(op.f("ix_sales_sold_at"), "sales", ["sold_at"], unique=False)
    op.execute("CREATE TRIGGER set_updated_at BEFORE UPDATE ON sales FOR EACH ROW EXECUTE FUNCTION set_updated_at()")

    op.create_table(
        "sale_items",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False, comment="Identity of the row."),
        sa.Column("sale_id", sa.Uuid(), nullable=False, comment="Which receipt."),
        sa.Column("line_number", sa.SmallInteger(), nullable=False, comment="Place on the receipt, from 1."),
        sa.Column("product_id", sa.Uuid(), nullable=False, comment="What was sold."),
        sa.Column("quantity", sa.Integer(), nullable=False, comment="How many were sold."),
        sa.Column("unit_price", sa.Numeric(precision=12, scale=2), nullable=False, comment="Price of one on that day."),
        sa.Column(
            "discount",
            sa.Numeric(precision=12, scale=2),
            server_default=sa.text("0"),
            nullable=False,
            comment="Taken off the whole line.",
        ),
        sa.Column(
            "line_total",
            sa.Numeric(precision=12, scale=2),
            sa.Computed("((quantity)::numeric * unit_price) - discount", persisted=True),
            nullable=False,
            comment="What the line comes to.",
        ),
        sa.CheckConstraint("line_number > 0", name=op.f("ck_sale_items_line_number")),
        sa.CheckConstraint("quantity > 0", name=op.f("ck_sale_items_quantity")),
        sa.CheckConstraint("unit_price >= 0 AND unit_price <> 'NaN'", name=op.f("ck_sale_items_unit_price")),
        sa.CheckConstraint("discount BETWEEN 0 AND quantity * unit_price", name=op.f("ck_sale_items_discount")),
        sa.ForeignKeyConstraint(["product_id"], ["products.id"], name=op.f("fk_sale_items_product_id")),
        sa.ForeignKeyConstraint(["sale_id"], ["sales.id"], name=op.f("fk_sale_items_sale_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_sale_items")),
        sa.UniqueConstraint("sale_id", "line_number", name=op.f("uq_sale_items_sale_id_line_number")),
        comment="Lines of receipts.",
    )
    op.create_index(op.f("ix_sale_items_product_id"), "sale_items", ["product_id"], unique=False)


def downgrade() -> None:
    """Take the revision back."""
    op.drop_index(op.f("ix_sale_items_product_id"), table_name="sale_items")
    op.drop_table("sale_items")
    op.drop_index(op.f("ix_sales_sold_at"), table_name="sales")
    op.drop_index(op.f("ix_sales_user_id"), table_name="sales")
    op.drop_table("sales")
