"""Create products.

Revision ID: c2309aa6ec77
Revises:
Create Date: 2026-11-07 09:00:00
"""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "c2309aa6ec77"
down_revision: str | None = None
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    """Apply the revision."""
    # gen_random_uuid() is built in from PostgreSQL 13; before, the extension pgcrypto brings it. In one DO block and
    # not in Python, so that offline SQL (--sql) decides on the server it is run against.
    op.execute(
        """
        DO $$
        BEGIN
            IF current_setting('server_version_num')::int < 130000 THEN
                CREATE EXTENSION IF NOT EXISTS pgcrypto;
            END IF;
        END
        $$
        """
    )
    op.create_table(
        "products",
        sa.Column(
            "id", sa.Uuid(), server_default=sa.text("gen_random_uuid()"), nullable=False, comment="Identity of the row."
        ),
        sa.Column("sku", sa.Text(), nullable=False, comment="Stock keeping unit, such as TEA-GREEN-100."),
        sa.Column("name", sa.Text(), nullable=False, comment="Name on the shelf and on the receipt."),
        sa.Column("description", sa.Text(), nullable=True, comment="What a customer might want to know."),
        sa.Column("category", sa.Text(), nullable=True, comment="Shelf it stands on."),
        sa.Column("price", sa.Numeric(precision=12, scale=2), nullable=False, comment="Price of one, tax included."),
        sa.Column(
            "is_active", sa.Boolean(), server_default=sa.text("true"), nullable=False, comment="Whether it is on sale."
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
        sa.CheckConstraint("sku ~ '^[A-Z0-9]+(-[A-Z0-9]+)*$'", name=op.f("ck_products_sku_form")),
        sa.CheckConstraint("btrim(name) <> ''", name=op.f("ck_products_name_not_blank")),
        sa.CheckConstraint("price >= 0 AND price <> 'NaN'", name=op.f("ck_products_price")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_products")),
        sa.UniqueConstraint("sku", name=op.f("uq_products_sku")),
        comment="What the shop sells.",
    )
    op.create_index(op.f("ix_products_category"), "products", ["category"], unique=False)


def downgrade() -> None:
    """Take the revision back."""
    op.drop_index(op.f("ix_products_category"), table_name="products")
    op.drop_table("products")
    # The extension pgcrypto stays: it may have been there before, and others may use it by now.
