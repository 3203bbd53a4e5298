"""Create inventory.

Revision ID: c1db56ad5d5c
Revises: ef0a5650cf86
Create Date: 2026-11-10 09:30:00
"""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "c1db56ad5d5c"
down_revision: str | None = "ef0a5650cf86"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    """Apply the revision."""
    op.create_table(
        "inventory",
        sa.Column(
            "id", sa.Uuid(), server_default=sa.text("gen_random_uuid()"), nullable=False, comment="Identity of the row."
        ),
        sa.Column("product_id", sa.Uuid(), nullable=False, comment="Which product."),
        sa.Column(
            "location", sa.Text(), server_default=sa.text("'shop'::text"), nullable=False, comment="Where it lies."
        ),
        sa.Column("quantity", sa.Integer(), server_default=sa.text("0"), nullable=False, comment="How many are there."),
        sa.Column(
            "reorder_level",
            sa.Integer(),
            server_default=sa.text("0"),
            nullable=False,
            comment="At how many more should be ordered; 0 for never.",
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
        sa.CheckConstraint("btrim(location) <> ''", name=op.f("ck_inventory_location_not_blank")),
        sa.CheckConstraint("quantity >= 0", name=op.f("ck_inventory_quantity")),
        sa.CheckConstraint("reorder_level >= 0", name=op.f("ck_inventory_reorder_level")),
        sa.ForeignKeyConstraint(
            ["product_id"], ["products.id"], name=op.f("fk_inventory_product_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_inventory")),
        sa.UniqueConstraint("product_id", "location", name=op.f("uq_inventory_product_id_location")),
        comment="How much of each product lies where.",
    )
    op.execute(
        "CREATE TRIGGER set_updated_at BEFORE UPDATE ON inventory FOR EACH ROW EXECUTE FUNCTION set_updated_at()"
    )


def downgrade() -> None:
    """Take the revision back."""
    op.drop_table("inventory")
